"""Going on with a run: as what it was, from whatever a kill left, or not at all."""

import csv
import dataclasses
import json
from shutil import copytree, rmtree

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import load_file

from affect import store
from affect.cli import main
from affect.config import DataConfig, FederationConfig, OptimizerConfig, PrivacyConfig, SplitConfig
from affect.config import PersonalisationConfig as Personalisation
from affect.config import StrategyConfig as Strategy
from affect.config import TrainerConfig as Trainer
from affect.data.preparation import prepare
from affect.errors import UserError
from affect.federated import federate as module
from affect.federated.draws import seeded
from affect.federated.federate import federate
from affect.federated.history import History
from affect.federated.local import LocalTraining, initial_module
from affect.federated.memory import Memory
from affect.federated.personal import travelling
from affect.training import run as runs
from affect.training.fit import fit
from tests import builders
from tests.test_federate import broken, raises

REMEMBERING = {
    "scaffold": {"strategy": Strategy("scaffold")},
    "fedper": {"personalisation": Personalisation("head", steps=1)},
}
STUCK = OptimizerConfig("sgd", lr=1e-30)
"""No validation is better than the first."""


def nothing(_):
    return []


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resumed")
    builders.cache(folder / "cache", subjects=6)
    return folder


def experiment(corpus, federation=None, **sections):
    """Two training clients, two of validation, two of test; four rounds."""
    split = SplitConfig(val_fraction=0.5, test_fraction=0.34, calibration_fraction=0.25)
    data = DataConfig(cache=str(corpus / "cache"), window_frames=20, batch_size=4, split=split)
    trainer = Trainer(accelerator="cpu", devices=1, progress=False)
    made = builders.experiment(corpus, **{"data": data, "trainer": trainer, **sections})
    chosen = FederationConfig(**{"rounds": 4, **(federation or {})})
    return dataclasses.replace(made, federation=chosen)


class Killed(BaseException):
    """Nothing that the program does can follow a kill."""


def stopped(asked, folder, at=(module, "save_state"), *, before=False, round_=2):
    """The folder of a run that is killed before or after it does something in a round."""
    owner, name = at
    real = getattr(owner, name)

    def kill(*arguments):
        reached = any(getattr(getattr(a, "state", a), "round", 0) == round_ for a in arguments)
        if not (before and reached):
            real(*arguments)
        if reached:
            raise Killed

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(owner, name, kill)
        with pytest.raises(Killed):
            federate(dataclasses.replace(asked, runs=str(folder)), draw=nothing)
    (found,) = (folder / asked.name).iterdir()
    return found


def resumed(folder):
    run = runs.open_run(folder)
    return federate(run.experiment, draw=nothing, resume=run)


@pytest.fixture(scope="module", params=REMEMBERING.values(), ids=REMEMBERING.keys())
def remembering(request, corpus, tmp_path_factory):
    """A whole run, and the folder of one that was killed after two rounds."""
    asked = experiment(corpus, request.param)
    folder = tmp_path_factory.mktemp("remembering")
    return federate(asked, draw=nothing), stopped(asked, folder)


@pytest.fixture(scope="module")
def plain(corpus, tmp_path_factory):
    """The same of plain averaging."""
    asked = experiment(corpus)
    return federate(asked, draw=nothing), stopped(asked, tmp_path_factory.mktemp("plain"))


@pytest.fixture
def copy(tmp_path):
    """Copies a run's folder, to spoil it."""
    return lambda folder: copytree(folder, tmp_path / "run")


def assert_same(one, other):
    """The same weights, scores and rows, but for seconds."""
    weights = [load_file(run.folder / "model.safetensors") for run in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    for name, value in weights[0].items():
        np.testing.assert_array_equal(value, weights[1][name], err_msg=name)
    assert one.record["metrics"] == other.record["metrics"]
    for name in ("metrics.csv", "clients.csv"):
        assert table(one.folder / name) == table(other.folder / name), name


def table(path):
    """The rows, which must be whole, without what a clock says."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows)
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def refusal(capsys, folder, command="federate"):
    """The one line with which the command refuses to go on."""
    before = {p: p.read_bytes() for p in folder.rglob("*.safetensors")}
    capsys.readouterr()
    status = main([command, "--resume", str(folder)])
    out, err = capsys.readouterr()
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert {p: p.read_bytes() for p in folder.rglob("*.safetensors")} == before
    return err


def lost_folder(clients):
    rmtree(clients)
    return "clients/0/2.safetensors is not there"


def lost_file(clients):
    (clients / "1" / "2.safetensors").unlink()
    return "clients/1/2.safetensors is not there"


@pytest.mark.parametrize("lose", [lost_folder, lost_file])
def test_a_run_does_not_go_on_without_what_its_clients_kept(remembering, copy, capsys, lose):
    folder = copy(remembering[1])
    said = lose(folder / "clients")
    assert said in refusal(capsys, folder)


def test_a_strange_file_beside_what_clients_kept_is_nothing(remembering, copy):
    whole, folder = remembering[0], copy(remembering[1])
    (folder / "clients" / "0" / "foo.safetensors").write_bytes(b"?")
    (folder / "clients" / "0" / "9.safetensors").write_bytes(b"of a round that was lost")
    assert_same(whole, resumed(folder))
    assert (folder / "clients" / "0" / "foo.safetensors").exists()


def test_a_client_starts_from_the_last_answer_that_counted(tmp_path):
    memory = Memory(tmp_path)
    states = {round_: {"head": np.full(2, round_, np.float32)} for round_ in (1, 2, 3)}
    memory.keep(0, 1, states[1])
    for lost in (2, 3):
        memory.keep(0, lost, states[lost], before=1)
    for round_ in (1, 3):
        np.testing.assert_array_equal(memory.after(0, round_)["head"], states[round_]["head"])
    assert memory.after(0, None) == {}
    with pytest.raises(UserError, match=r"0/2\.safetensors is not there"):
        memory.after(0, 2)


@pytest.mark.parametrize("federation", REMEMBERING.values(), ids=REMEMBERING.keys())
def test_a_client_keeps_nothing_that_is_not_finite(corpus, tmp_path, federation):
    asked = experiment(corpus, federation)
    entries = store.entries(corpus / "cache")[:1]
    preparation = prepare({"train": entries}, asked.data)
    memory, cpu = Memory(tmp_path), torch.device("cpu")
    local = LocalTraining(asked, preparation, {0: entries}, memory, cpu, seeded(0))
    model = initial_module(asked, preparation.features).model
    start = torch.nn.utils.parameters_to_vector(travelling(model, asked)).detach().numpy()
    spoilt = start * np.float32(np.nan)
    with pytest.raises(UserError, match=r"its (control|head) is not finite: training diverged"):
        local.train(0, 1, spoilt)
    first = local.train(0, 1, start)
    with pytest.raises(UserError, match="is not finite"):
        local.train(0, 2, spoilt, memory=1)
    assert [path.name for path in tmp_path.rglob("*.safetensors")] == ["1.safetensors"]
    assert np.isfinite(local.train(0, 3, first.parameters, memory=1).parameters).all()


EDITS = {
    "optimizer.lr": 0.5,
    "federation.strategy.name": "fedadam",
    "federation.rounds": 6,
    "federation.optimizer": {"name": "sgd"},
    "data.features": ["AU01_r"],
    "data.dimensions": ["valence"],
    "data.split.calibration_fraction": 0.5,
    "trainer.patience": 1,
    "seed": 3,
}


def edit(folder, changes):
    path = folder / "config.yaml"
    values = yaml.safe_load(path.read_text())
    for key, value in changes.items():
        *sections, name = key.split(".")
        section = values
        for part in sections:
            section = section[part]
        section[name] = value
    path.write_text(yaml.safe_dump(values))


@pytest.mark.parametrize(("key", "value"), EDITS.items(), ids=EDITS.keys())
def test_another_configuration_is_refused_by_its_key(plain, copy, capsys, key, value):
    folder = copy(plain[1])
    edit(folder, {key: value})
    said = refusal(capsys, folder)
    assert "config.yaml is not what the run began with" in said
    assert key in said


def test_what_changes_no_result_may_change(plain, copy, corpus, tmp_path):
    whole, folder = plain[0], copy(plain[1])
    copytree(corpus / "cache", tmp_path / "moved")
    builders.cache(tmp_path / "moved", subjects=7)
    free = {
        "name": "renamed",
        "data.cache": str(tmp_path / "moved"),
        "data.memory_mb": 1024,
        "federation.failure_fraction": 0.4,
        "federation.ray.cohorts": 2,
        "tracking.tags": ["again"],
    }
    edit(folder, free)
    assert_same(whole, resumed(folder))


def other_recording(cache, run):
    """With the same provenance, so that the content alone tells them apart."""
    subject = run.record["splits"][0]["train"][0]
    (entry,) = [e for e in store.entries(cache) if e.subject == subject]
    recording = store.read(entry.path)
    lower = {name: values / 2 for name, values in recording.annotations.items()}
    store.write(dataclasses.replace(recording, annotations=lower), cache)
    return f"{entry.key} is another"


def one_more_recording(cache, run):
    subject = run.record["splits"][0]["val"][0]
    store.write(builders.recording(subject, name="2"), cache)
    return f"toy/{subject}/2 has come"


@pytest.mark.parametrize("change", [other_recording, one_more_recording])
def test_other_recordings_are_refused_by_their_names(plain, copy, corpus, tmp_path, capsys, change):
    folder = copy(plain[1])
    cache = copytree(corpus / "cache", tmp_path / "moved")
    edit(folder, {"data.cache": str(cache)})
    said = change(cache, runs.open_run(folder))
    assert said in refusal(capsys, folder)


def test_fit_goes_on_with_its_own_configuration_and_recordings_alone(
    corpus, tmp_path, copy, capsys
):
    run = fit(
        experiment(corpus, trainer=Trainer(1, accelerator="cpu", progress=False)), draw=nothing
    )
    folder = copy(run.folder)
    runs.open_run(folder).update({"status": "running"})
    cache = copytree(corpus / "cache", tmp_path / "moved")
    edit(folder, {"optimizer.lr": 0.5})
    assert "optimizer.lr is 0.5, was 0.003" in refusal(capsys, folder, "fit")
    edit(folder, {"optimizer.lr": 0.003, "federation.rounds": 9, "data.cache": str(cache)})
    assert other_recording(cache, run) in refusal(capsys, folder, "fit")
    (folder / "inputs.json").write_bytes(b"\xff")
    assert "inputs.json" in refusal(capsys, folder, "fit")


POINTS = {
    "before it reports": ((History, "add"), True),
    "after it reports": ((History, "add"), False),
    "before it saves": ((module, "save_state"), True),
}


@pytest.fixture(scope="module")
def failing(corpus):
    """An experiment, and a whole run of it in each round of which a client fails."""
    asked = experiment(corpus, {"rounds": 3, "failure_fraction": 0.5})
    with pytest.MonkeyPatch.context() as patched:
        broken(patched, raises)
        return asked, federate(asked, draw=nothing)


@pytest.mark.parametrize(("at", "before"), POINTS.values(), ids=POINTS.keys())
def test_a_kill_loses_no_row_and_no_failure(failing, tmp_path, monkeypatch, at, before):
    broken(monkeypatch, raises)
    asked, whole = failing
    other = resumed(stopped(asked, tmp_path, at, before=before))
    assert_same(whole, other)
    assert [item["round"] for item in other.record["failures"]] == [1, 2, 3]
    assert other.record["failures"] == whole.record["failures"]


@pytest.mark.parametrize("left", [3, 25, -1])
def test_a_row_that_was_cut_of_a_round_that_is_trained_again_gives_way(plain, copy, left):
    """Cut within its first fields, later, and but for its line's end."""
    whole, folder = plain[0], copy(plain[1])
    for name in ("clients.csv", "metrics.csv"):
        lines, more = (
            path.read_bytes().splitlines(keepends=True)
            for path in (folder / name, whole.folder / name)
        )
        rows = more[len(lines) :]
        # too little of a row of a client tells no round: here the row before it does
        kept = rows[:1] if (name, left) == ("clients.csv", 3) else []
        (folder / name).write_bytes(b"".join([*lines, *kept, rows[len(kept)][:left]]))
    assert_same(whole, resumed(folder))


def garbage(_):
    return b"no,table\nof,any\nkind\n"


def binary(_):
    return b"\x89PNG\r\n\xff\x00"


def emptied(_):
    return b""


def cut(text):
    return text[:-20]


@pytest.mark.parametrize("name", ["clients.csv", "metrics.csv"])
@pytest.mark.parametrize("spoil", [garbage, binary, emptied, cut])
def test_a_spoilt_table_is_told(plain, copy, capsys, name, spoil):
    folder = copy(plain[1])
    path = folder / name
    path.write_bytes(spoil(path.read_bytes()))
    said = refusal(capsys, folder)
    assert name in said
    assert ("cut" if spoil is cut else "is not the table that the run wrote") in said


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("folds", "0"),
        ("folds", [1]),
        ("splits", [{"index": 0}]),
        ("failures", ["P1"]),
        ("failures", 3),
        ("wall_time_s", None),
        ("restarts", "2"),
    ],
)
def test_an_odd_record_is_told(plain, copy, capsys, name, value):
    folder = copy(plain[1])
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, name: value}))
    assert f"run.json has an odd {name!r}" in refusal(capsys, folder)


@pytest.mark.parametrize(("every", "patience", "rounds"), [(1, 2, 3), (2, 1, 4)])
def test_patience_counts_validations_as_fit_does(corpus, every, patience, rounds):
    trainer = Trainer(20, patience, accelerator="cpu", devices=1, progress=False)
    federation = {"rounds": 20, "evaluate_every": every}
    asked = experiment(corpus, federation, trainer=trainer, optimizer=STUCK)
    run = federate(asked, draw=nothing)
    assert run.record["federation"]["0"]["rounds"] == rounds
    assert run.record["federation"]["0"]["best_round"] == every
    if every == 1:
        assert len(table(fit(asked, draw=nothing).folder / "metrics.csv")) == rounds


def test_a_run_that_had_waited_long_enough_trains_no_further(corpus, tmp_path):
    trainer = Trainer(20, 1, accelerator="cpu", devices=1, progress=False)
    asked = experiment(corpus, {"rounds": 20}, trainer=trainer, optimizer=STUCK)
    run = resumed(stopped(asked, tmp_path))
    assert run.record["federation"]["0"]["rounds"] == 2


def test_the_last_round_of_a_budget_is_validated(corpus):
    privacy = PrivacyConfig("central", noise_multiplier=1.0, max_epsilon=9.0)
    federation = {"rounds": 10, "evaluate_every": 10, "privacy": privacy}
    run = federate(experiment(corpus, federation), draw=nothing)
    rows = table(run.folder / "metrics.csv")
    assert 1 < len(rows) < 10
    assert run.record["federation"]["0"]["best_round"] == len(rows)
    assert np.isfinite(float(rows[-1]["val/ccc/mean"]))


def test_a_budget_below_one_round_is_refused(corpus):
    privacy = PrivacyConfig("central", noise_multiplier=1.0, max_epsilon=0.1)
    asked = dataclasses.replace(experiment(corpus, {"privacy": privacy}), name="refused")
    with pytest.raises(UserError, match=r"max_epsilon is 0\.1, one round spends \d"):
        federate(asked, draw=nothing)
    assert not (corpus / "runs" / "refused").exists()
