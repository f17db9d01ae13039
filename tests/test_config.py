import dataclasses
from pathlib import Path

import pytest

from affect import config
from affect.config import Experiment
from affect.errors import UserError

FULL = """
name: full
data:
  cache: ${EXPERIMENT_DIR}/cache
  standardise: [train, subject]
  delay_s: {valence: 2.4, arousal: 3}
  split: {kind: kfold, folds: 3}
model: {name: tcn, options: {kernel_size: 5}}
trainer: {devices: 2}
"""


def written(folder, text):
    path = folder / "experiment.yaml"
    path.write_text(text)
    return str(path)


def test_the_file_the_flags_and_the_defaults_become_one_experiment(tmp_path):
    experiment = config.parse(
        ["-c", written(tmp_path, FULL), "--model.hidden_size=128", "--optimizer.lr", "1e-05"]
    )
    assert experiment.data.delay_s == {"valence": 2.4, "arousal": 3.0}
    assert experiment.data.cache == f"{tmp_path}/cache"
    assert experiment.model.name == "tcn"
    assert experiment.model.options == {"kernel_size": 5}
    assert experiment.model.hidden_size == 128
    assert experiment.optimizer.lr == 1e-5
    assert experiment.loss == Experiment().loss


def test_a_later_flag_wins_over_the_file(tmp_path):
    path = written(tmp_path, "seed: 3\n")
    assert config.parse(["-c", path]).seed == 3
    assert config.parse(["-c", path, "--seed=4"]).seed == 4


def test_a_resolved_experiment_reads_back_as_itself(tmp_path):
    experiment = config.parse(["-c", written(tmp_path, FULL)])
    path = tmp_path / "resolved.yaml"
    path.write_text(config.to_yaml(experiment))
    assert config.load(path) == experiment


def test_environment_variables_fill_in_and_flags_replace_them(tmp_path, monkeypatch):
    path = written(tmp_path, "data: {source: {format: table, path: '${SOME_CSV}'}}\n")
    monkeypatch.setenv("SOME_CSV", "a.csv")
    assert config.parse(["-c", path]).data.source.path == "a.csv"
    monkeypatch.delenv("SOME_CSV")
    assert config.parse(["-c", path, "--data.source.path=b.csv"]).data.source.path == "b.csv"
    with pytest.raises(UserError, match=r"export SOME_CSV=\.\.\. or give the path as a flag"):
        config.parse(["-c", path])


def test_the_keys_are_the_fields_of_every_section():
    keys = set(config.keys())
    assert {"seed", "model.hidden_size", "data.split.val_fraction"} <= keys
    assert len(keys) == len(list(config.keys()))


def test_every_key_is_explained_where_it_is_defined():
    defaults = Experiment()
    sections = [defaults, defaults.data.source, defaults.data.split]
    sections += [getattr(defaults, field.name) for field in dataclasses.fields(defaults)]
    for section in filter(dataclasses.is_dataclass, sections):
        for field in dataclasses.fields(section):
            assert f"    {field.name}: " in type(section).__doc__, field.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model.layrs=4"], "unknown key 'model.layrs': did you mean 'model.layers'"),
        (["--modl.layers=4"], "unknown key 'modl.layers': did you mean 'model.layers'"),
        (["--sed=1"], "unknown key 'sed': did you mean 'seed'"),
        (["--model.layers=x"], 'key "model.layers": Expected a'),
        (["--model.layers=8.0"], 'key "model.layers": Expected a'),
        (["--data.split.kind=leave"], 'key "data.split.kind": Expected one of \'ratio'),
        (["--model.layers=0"], "model.layers must be at least 1"),
        (["--model.dropout=1"], "model.dropout must be"),
        (["--optimizer.lr=-1"], "optimizer.lr must be above 0"),
        (["--optimizer.lr=.nan"], "optimizer.lr must be above 0"),
        (["--data.delay_s=-0.1"], "data.delay_s must be 0 or more"),
        (['--data.delay_s={"valence": 1}'], "data.delay_s must be given for each dimension"),
        (["--data.target=window_mean"], "data.window_frames must be given"),
        (["--data.dimensions=[]"], "data.dimensions must be at least one"),
        (["--data.split.val_fraction=1.5"], "data.split.val_fraction must be between"),
        (["--name=.."], "name must be a folder's name"),
        (["--seed=-1"], "seed must be from 0 to 4294967295"),
        (["--data.dimensions=[a,a]"], "data.dimensions must be different"),
        (["--data.window_frames=10", "--data.hop_frames=11"], "data.hop_frames must be"),
        (["--data.workers=-1"], "data.workers must be"),
        (["--data.memory_mb=0"], "data.memory_mb must be"),
        (["--optimizer.weight_decay=-1"], "optimizer.weight_decay must be"),
        (["--scheduler.step_epochs=0"], "scheduler.step_epochs must be"),
        (["--trainer.patience=0"], "trainer.patience must be"),
        (["--seed=4294967296"], "seed must be from 0"),
        (["--data.delay_s=.inf"], "data.delay_s must be 0 or more"),
        (["--data.split.kind=file"], "data.split.file must be given for kind file"),
        (["--trainer.patience=-1"], "trainer.patience must be"),
        (["--scheduler.gamma=-1"], "scheduler.gamma must be above 0 and at most 1"),
        (["--zzz=1"], "unknown key 'zzz': `affect fit --keys` lists them all"),
        (["-c"], "argument -c/--config: expected one argument"),
        (["--trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches must be"),
        (["--trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val must be"),
        (["--trainer.precision=bf16-true"], 'key "trainer.precision": Expected one of'),
        (['--model.options={"layers": 1}'], "model.options must be without layers"),
        (["--name=a/b"], "name must be a folder's name"),
        (["--data.cache=${}"], "not a valid use"),
        (["-c", "nowhere.yaml"], "nowhere.yaml"),
        (
            ["--federation.timeout_s=.inf"],
            "federation.timeout_s must be above 0 and at most 604800",
        ),
        (["--federation.timeout_s=1e300"], "federation.timeout_s must be above 0 and at most"),
        (["--optimizer.lr=.inf"], "optimizer.lr must be above 0 and finite"),
        (["--optimizer.weight_decay=.nan"], "optimizer.weight_decay must be 0 or more and finite"),
        (["--federation.strategy.server_lr=.inf"], "server_lr must be above 0 and at most 1000"),
        (["--federation.strategy.server_lr=1e300"], "server_lr must be above 0 and at most 1000"),
        (["--federation.strategy.mu=.nan"], "federation.strategy.mu must be 0 or more and finite"),
        (["--federation.strategy.tau=.inf"], "federation.strategy.tau must be above 0 and finite"),
        (["--federation.privacy.noise_multiplier=.inf"], "noise_multiplier must be from 0.001 to"),
        (["--federation.privacy.noise_multiplier=1e300"], "noise_multiplier must be from 0.001 to"),
        (["--federation.privacy.clipping_norm=1e300"], "clipping_norm must be from 1e-06 to 1e+06"),
        (["--federation.privacy.clipping_lr=1e5"], "clipping_lr must be from 1e-06 to 10"),
        (["--federation.engine=deployment"], "as deployment/README.md shows"),
    ],
)
def test_a_mistake_is_one_line_that_names_the_key(arguments, message):
    with pytest.raises(UserError) as caught:
        config.parse(arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model:\n  hiden_size: 3\n", "unknown key 'model.hiden_size': did you mean"),
        ("data:\n  split: {fold_count: 3}\n", "unknown key 'data.split.fold_count'"),
        ("optimiser: {lr: 1}\n", "unknown key 'optimiser.lr': did you mean 'optimizer.lr'"),
        ("name: [x\n", "cannot read"),
    ],
)
def test_a_mistake_in_a_file_is_told_alike(tmp_path, text, message):
    with pytest.raises(UserError) as caught:
        config.parse(["-c", written(tmp_path, text)])
    assert message in str(caught.value)


EXPERIMENTS = sorted(Path("experiments").rglob("*.yaml"))


def test_experiments_are_found():
    assert Path("experiments/demo.yaml") in EXPERIMENTS
