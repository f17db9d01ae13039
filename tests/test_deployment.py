"""Sites that divide their own people, a server that knows none of them, and the way between."""

import csv
import dataclasses
import io
import json
import logging
import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import suppress
from multiprocessing.connection import Client
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.supercore import log
from safetensors.numpy import load_file

from affect import store
from affect.config import EvaluationConfig, PrivacyConfig, SplitConfig, StrategyConfig, to_yaml
from affect.errors import UserError
from affect.federated import apps
from affect.federated.client import enrolled_app
from affect.federated.engines import service
from affect.federated.engines.cohorts import in_cohorts
from affect.federated.engines.deployment import lead, opened
from affect.federated.engines.gate import keep_gate
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.enrolment import EnrolledPlace
from affect.federated.federate import federate
from affect.federated.messages import Enrol, Enrolled, Evaluate, Train
from affect.federated.server import shared
from affect.report.compare import compare
from affect.training.run import open_run
from affect.training.trained import load_trained
from tests import sites


def opened_again(run):
    return open_run(run.folder)


def nothing(_):
    return []


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("deployment")
    sites.caches(folder)
    return folder


def place(corpus, site, split=None, **changes):
    entries = store.entries(corpus / site)
    return EnrolledPlace(
        **{
            "name": site,
            "entries": entries,
            "state": corpus / "states" / site,
            "device": torch.device("cpu"),
            "split": split,
            **changes,
        }
    )


def grid(corpus, order=("west", "east", "north"), **changes):
    """Nodes 1, 2, 3 in an order that is not that of the names."""
    apps = [enrolled_app(place(corpus, site, **changes)) for site in order]
    return InProcessGrid(in_cohorts(lambda m, c: apps[c.node_id - 1](m, c)), len(apps))


def assert_equal(one, other):
    first, second = (load_file(run.folder / "model.safetensors") for run in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


@pytest.mark.parametrize(
    "federation",
    [{}, {"strategy": StrategyConfig("scaffold")}, {"clients_per_round": 2}],
    ids=["fedavg", "scaffold", "sampled"],
)
def test_sites_train_what_one_machine_trains_to_the_bit(corpus, federation):
    asked = sites.experiment(corpus, **federation)
    deployed, here = lead(grid(corpus), asked, 3), federate(asked, draw=nothing)
    assert_equal(deployed, here)
    for name, value in deployed.record["metrics"].items():
        if "/loss/" not in name:  # batches there, recordings here
            assert value == pytest.approx(here.record["metrics"][name], abs=1e-6), name
    assert {"val/ccc/mean", "test/ccc/mean"} <= deployed.record["metrics"].keys()
    beside = compare([opened_again(here), opened_again(deployed)], resamples=10).runs
    for name in ("ccc/mean", "rmse/valence", "pearson/arousal"):
        here_is, there_is = (run.scores[f"test/{name}"].value for run in beside)
        assert there_is == pytest.approx(here_is, abs=1e-6), name


def test_the_server_learns_of_no_person(corpus):
    run = lead(grid(corpus), sites.experiment(corpus), 3)
    people = {name for names in sites.PEOPLE.values() for name in names.split()}
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    written = {path.name for path in files if path.parent.name != "owners"}
    assert written == {
        "config.yaml",
        "run.json",
        "inputs.json",
        "metrics.csv",
        "clients.csv",
        "model.safetensors",
        "preparation.json",
        "state.safetensors",
    }
    for path in run.folder.rglob("*.*"):
        if path.suffix in {".yaml", ".json", ".csv"}:
            assert not [name for name in people if name in path.read_text()], path
    assert run.record["sites"]["east"] == {"train": 2, "val": 2, "test": 0}
    assert run.record["splits"][0]["test"] == ("north/test", "west/test")
    with (run.folder / "clients.csv").open() as file:
        assert {row["client"] for row in csv.DictReader(file)} == {
            *("east/train", "north/train", "west/train", "east/val")
        }
    assert load_trained(run).preparation.feature_names
    assert (
        json.loads((run.folder / "preparation.json").read_text())["preparation"]["subjects"] == {}
    )


def test_a_run_goes_on_with_the_same_sites_and_with_no_others(corpus):
    asked = sites.experiment(corpus, rounds=4)
    whole = lead(grid(corpus), asked, 3)
    stopped = grid(corpus)
    real, rounds = stopped.send_and_receive, []

    def send_and_receive(messages, *, timeout=None):
        messages = list(messages)
        rounds.append(messages[0].metadata.message_type)
        if rounds.count("train") == 3:
            raise KeyboardInterrupt
        return real(messages, timeout=timeout)

    stopped.send_and_receive = send_and_receive
    with pytest.raises(KeyboardInterrupt, match=r"go on with `flwr run \. --run-config 'resume="):
        lead(stopped, dataclasses.replace(asked, name="stopped"), 3)
    (folder,) = (corpus / "runs" / "stopped").iterdir()
    with pytest.raises(UserError, match="began with the clients east/train"):
        lead(grid(corpus, order=("east", "north")), asked, 2, resume=opened(folder))
    run = opened(folder)
    assert_equal(lead(grid(corpus), run.experiment, 3, resume=run), whole)


def test_noise_cannot_be_foreseen_from_the_seed(corpus):
    for privacy in (PrivacyConfig("central"), PrivacyConfig("local")):
        asked = sites.experiment(corpus, rounds=1, privacy=privacy)
        one, other = (lead(grid(corpus), asked, 3) for _ in range(2))
        first, second = (load_file(run.folder / "model.safetensors") for run in (one, other))
        assert any((first[name] != second[name]).any() for name in first)


def test_a_mistake_is_logged_by_flower_in_one_line(monkeypatch):
    written = io.StringIO()
    (printing,) = logging.getLogger("flwr").handlers
    monkeypatch.setattr(printing, "stream", written)
    settings = {"resume": "", "experiment": "/nowhere.yaml", "sites": 2}
    context = Context(1, 1, {}, RecordDict(), settings)
    for app in (apps.server, lambda *_: {}["x"]):
        try:
            app(InProcessGrid(nothing, 1), context)
        except Exception as error:
            log(logging.ERROR, "%s raised an exception", "ServerApp", exc_info=error)
    mistake, defect = written.getvalue().split("\n", 1)
    assert mistake.endswith("affect: error: experiment file /nowhere.yaml does not exist")
    assert "KeyError" in defect
    assert "Traceback" in defect


BAD = {
    "postprocess": (
        {"evaluation": EvaluationConfig(postprocess=["median"])},
        "evaluation.postprocess takes predictions, which leave no site",
    ),
    "folds": ({"split": SplitConfig("kfold")}, "kfold gives several folds"),
    "nobody": ({"split": SplitConfig("listed", train=["?1"], val=["?3"])}, "has no test subject"),
    "file": (
        {"split": SplitConfig("file", fold=0, file="folds.yaml")},
        "node 1 cannot take part: the experiment divides people by a file",
    ),
}


@pytest.mark.parametrize(("change", "said"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_had_is_refused_and_leaves_nothing(corpus, change, said):
    asked = dataclasses.replace(sites.experiment(corpus), name="refused")
    if "split" in change:
        change = {"data": dataclasses.replace(asked.data, **change)}
    with pytest.raises(UserError, match=said):
        lead(grid(corpus), dataclasses.replace(asked, **change), 3)
    assert not (corpus / "runs" / "refused").exists()


def test_sites_that_are_late_or_share_a_name_are_told(corpus):
    asked = sites.experiment(corpus, timeout_s=0.5)
    with pytest.raises(UserError, match=r"3 of 4 sites are connected after 0\.5 s"):
        lead(grid(corpus), asked, 4)
    with pytest.raises(UserError, match=r"3 of 4 sites are connected after 0\.1 s"):
        lead(grid(corpus), sites.experiment(corpus), 4, wait_s=0.1)
    with pytest.raises(UserError, match="two sites call themselves 'east'"):
        lead(grid(corpus, name="east"), asked, 3)
    with pytest.raises(UserError, match=r"'\.\./east' is no name of a site"):
        place(corpus, "east", name="../east")


def test_a_place_divides_its_people_by_a_file_of_its_own(corpus, tmp_path):
    (tmp_path / "folds.yaml").write_text("folds: [[E1], [E2, E3]]")
    text = to_yaml(
        shared(with_split(sites.experiment(corpus), SplitConfig("file", fold=1, file="/s/f.yaml")))
    )
    assert "/s/" not in text
    told = place(corpus, "east", tmp_path / "folds.yaml").enrol(Enrol(text))
    assert told == Enrolled("east", train=1, val=1, test=2)


def with_split(asked, split):
    return dataclasses.replace(asked, data=dataclasses.replace(asked.data, split=split))


def request(corpus, kind, **changes):
    values = {
        "experiment": to_yaml(shared(sites.experiment(corpus))),
        "run": "run",
        "client": 0,
        "part": "train",
        "preparation": "{}",
        "round": 1,
        "parameters": np.zeros(3, np.float32),
    }
    return kind(**{**values, **changes})


def test_a_place_trains_on_its_training_part_alone(corpus):
    here = place(corpus, "west")
    with pytest.raises(UserError, match="asked to train on the test part"):
        here.site_of(request(corpus, Train, part="test"))
    here.site_of(request(corpus, Evaluate, part="test"))
    with pytest.raises(UserError, match="client 0 was another part before"):
        here.site_of(request(corpus, Train))
    with pytest.raises(UserError, match="is no name of a run"):
        here.site_of(request(corpus, Train, run="../../elsewhere"))


def _answers(socket):
    """Whether a service listens; its file is there before."""
    with suppress(OSError):
        Client(str(socket), "AF_UNIX").close()
        return True
    return False


@pytest.fixture
def asked_at(tmp_path):
    """A service of an app, in a thread, and a way to ask it."""
    InProcessGrid(in_cohorts(nothing), 1)  # without a grid, Flower's messages have no sender

    def start(app):
        socket = tmp_path / "socket"
        threading.Thread(target=service.serve, args=(app, socket), daemon=True).start()
        while not _answers(socket):
            time.sleep(0.01)
        return socket

    return start


def test_a_service_answers_as_the_app_does_and_tells_no_more(corpus, asked_at):
    at = asked_at(enrolled_app(place(corpus, "east")))
    asked = Enrol(to_yaml(shared(sites.experiment(corpus))))
    reply = service.ask(at, Message(asked.encode(), 7, Enrol.action, group_id="3"))
    assert Enrolled.decode(reply.content) == Enrolled("east", 2, 2, 0)
    assert reply.metadata.group_id == "3"
    assert at.stat().st_mode & 0o007 == 0
    broken = Message(RecordDict(), 7, "train")
    reply = service.ask(at, broken)
    assert reply.error.reason == "MessageError, which the site's own log explains"
    with pytest.raises(UserError, match="another service answers at"):
        service.serve(lambda m, _: m, at)


def test_an_error_that_names_a_person_stays_at_the_site(asked_at, caplog):
    def app(message, context):
        raise UserError("recording toy/Anna/1 is broken")

    reply = service.ask(asked_at(app), Message(RecordDict(), 7, "train"))
    assert reply.error.reason == "UserError, which the site's own log explains"
    assert "toy/Anna/1" in caplog.text


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl")
def test_a_gate_without_a_port_or_a_certificate_says_so(tmp_path):
    folder = tmp_path / "certificates"
    script = Path(__file__).parents[1] / "deployment" / "certificates.sh"
    environment = {**os.environ, "FLWR_HOME": str(tmp_path)}
    subprocess.run([script, folder, "fed.example.org"], check=True, env=environment, text=True)
    files = [folder / name for name in ("server.crt", "server.key", "ca.crt")]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen at 127.0.0.1:{port}: .*in use"):
            keep_gate("127.0.0.1", port, "127.0.0.1:1", *files)
    files[2].unlink()
    with pytest.raises(UserError, match=r"cannot use .*server\.crt"):
        keep_gate("127.0.0.1", 1, "127.0.0.1:1", *files)
    again = subprocess.run(
        [script, folder, "fed.example.org"], env=environment, capture_output=True, check=False
    )
    assert again.returncode == 2
