import csv
import dataclasses
import errno
import json
import signal
import subprocess
import sys
import time
from shutil import copytree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from affect import config, files, store
from affect.config import (
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    OptimizerConfig,
    SchedulerConfig,
    SourceConfig,
    SplitConfig,
)
from affect.config import TrainerConfig as Trainer
from affect.data.corpus import entries_of
from affect.devices import device_of
from affect.errors import UserError
from affect.models import MODELS
from affect.report import figures
from affect.training import run as runs
from affect.training.fit import fit
from affect.training.inference import predict_cache, score_run
from affect.training.module import AffectModule
from tests import builders

QUICK = {"accelerator": "cpu", "devices": 1, "progress": False}
FOLDS = SplitConfig(kind="kfold", folds=3, val_fraction=0.3)


def nothing(_):
    return []


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    builders.cache(folder / "cache", subjects=6)
    return folder


@pytest.fixture(scope="module")
def finished(corpus):
    """A run that has learned the toy corpus's rule, behind an annotation delay of a second."""
    builders.cache(corpus / "delayed", subjects=8, lag=5, frames=120)
    experiment = builders.experiment(
        corpus,
        data=DataConfig(
            cache=str(corpus / "delayed"),
            standardise=["none"],
            delay_s=1.0,
            window_frames=30,
            hop_frames=15,
            batch_size=4,
            split=SplitConfig(val_fraction=0.34, test_fraction=0.34),
        ),
        trainer=Trainer(max_epochs=25, **QUICK),
        optimizer=OptimizerConfig(lr=0.02),
        evaluation=EvaluationConfig(["median", "bias", "scale"], importance_repeats=2),
    )
    return fit(experiment, draw=nothing)


def lin(x, y):
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return 2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def test_a_run_folder_holds_what_the_design_says(finished):
    held = {path.name for path in finished.folder.iterdir()}
    assert held >= {
        "config.yaml",
        "run.json",
        "metrics.csv",
        "predictions.h5",
        "model.safetensors",
        "preparation.json",
        "importance.csv",
        "checkpoints",
    }
    record = json.loads((finished.folder / "run.json").read_text())
    assert record["status"] == "done"
    assert (record["kind"], record["seed"]) == ("fit", 0)
    assert record["wall_time_s"] > 0
    assert record["peak_memory_mib"] > 0
    assert record["versions"]["torch"] == torch.__version__
    assert record["delay_s"] == {"0": {"valence": 1.0, "arousal": 1.0}}
    assert finished.folder.parent.name == "toy"


def test_it_learns_and_its_scores_are_those_of_its_predictions(finished):
    metrics = finished.record["metrics"]
    assert metrics["val/ccc/mean"] > 0.8
    predictions = store.read_predictions(finished.folder / "predictions.h5")
    for split in ("val", "test"):
        chosen = [item for item in predictions if item.split == split]
        assert len(chosen) in {2, 3}
        x = np.concatenate([item.prediction for item in chosen]).astype(float)
        y = np.concatenate([item.reference for item in chosen]).astype(float)
        for column, dimension in enumerate(("valence", "arousal")):
            ccc = lin(x[:, column], y[:, column])
            alone = [lin(i.prediction[:, column], i.reference[:, column]) for i in chosen]
            rmse = np.sqrt(((x - y)[:, column] ** 2).mean())
            pearson = np.corrcoef(x[:, column], y[:, column])[0, 1]
            assert metrics[f"{split}/ccc/{dimension}"] == pytest.approx(ccc, abs=1e-9)
            assert metrics[f"{split}/rmse/{dimension}"] == pytest.approx(rmse, abs=1e-7)
            assert metrics[f"{split}/loss/{dimension}"] == pytest.approx(1 - ccc, abs=1e-5)
            assert metrics[f"{split}/pearson/{dimension}"] == pytest.approx(pearson, abs=1e-9)
            per_recording = metrics[f"{split}/ccc_per_recording/{dimension}"]
            assert per_recording == pytest.approx(np.mean(alone), abs=1e-5)


def test_the_reference_is_the_unshifted_gold_standard(finished, corpus):
    for item in store.read_predictions(finished.folder / "predictions.h5"):
        recording = store.read(store.path_of(corpus / "delayed", item.corpus, item.subject, "1"))
        np.testing.assert_array_equal(item.reference[:, 0], recording.annotations["valence"])
        np.testing.assert_array_equal(item.time_s, recording.time_s)


def test_metrics_csv_has_one_row_an_epoch_under_the_shared_keys(finished):
    with (finished.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == list(range(25))
    shared = {
        f"{s}/{m}/{d}"
        for s in ("train", "val")
        for m in ("ccc", "rmse", "loss")
        for d in ("valence", "arousal")
    }
    assert shared <= rows[0].keys()
    assert float(rows[-1]["train/loss/mean"]) < float(rows[0]["train/loss/mean"])
    # The CCC loss of one batch an epoch would be 1 - CCC; here it only has to fall alike.
    assert float(rows[-1]["train/ccc/mean"]) > float(rows[0]["train/ccc/mean"])


def test_the_kept_weights_are_those_of_the_best_validation_epoch(finished):
    with (finished.folder / "metrics.csv").open() as file:
        scores = [float(row["val/ccc/mean"]) for row in csv.DictReader(file)]
    checkpoint = torch.load(finished.folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert checkpoint["epoch"] == int(np.argmax(scores))
    for name, value in load_file(finished.folder / "model.safetensors").items():
        torch.testing.assert_close(checkpoint["state_dict"][f"model.{name}"], value)


@pytest.mark.parametrize("keep", ["best", "last"])
def test_every_epoch_is_saved_and_the_wanted_weights_are_kept(corpus, tmp_path, keep):
    trainer = Trainer(max_epochs=6, keep=keep, **QUICK)
    experiment = builders.experiment(corpus, trainer=trainer, optimizer=OptimizerConfig(lr=0.3))
    experiment.runs = str(tmp_path)
    run = fit(experiment, draw=nothing)
    epochs = {}
    for name in ("best", "last"):
        kept = torch.load(run.folder / "checkpoints" / f"{name}.ckpt", weights_only=True)
        epochs[name] = kept["epoch"]
        weights = {k.removeprefix("model."): v for k, v in kept["state_dict"].items()}
        stored = load_file(run.folder / "model.safetensors")
        same = all(torch.equal(weights[name], stored[name]) for name in stored)
        assert same == (name == keep)
    assert epochs["last"] == 5
    assert epochs["best"] < 5
    assert {path.name for path in (run.folder / "checkpoints").iterdir()} == {
        "best.ckpt",
        "last.ckpt",
    }


def test_an_action_unit_that_drives_a_dimension_matters_for_it(finished):
    with (finished.folder / "importance.csv").open() as file:
        rows = {row["action_unit"]: row for row in csv.DictReader(file)}
    arousal = {name: float(row["arousal"]) for name, row in rows.items()}
    assert max(arousal, key=arousal.get) == "AU01_r"
    assert arousal["AU01_r"] > 0.2


def test_a_cache_that_has_grown_changes_no_split(corpus, tmp_path):
    builders.cache(tmp_path / "cache", subjects=6)
    data = builders.experiment(tmp_path).data
    data.split = FOLDS
    run = fit(builders.experiment(tmp_path, data=data), draw=nothing)
    builders.cache(tmp_path / "cache", subjects=9)
    again = score_run(runs.open_run(run.folder), "test", cache=None, device="cpu")
    stored = {k: v for k, v in run.record["metrics"].items() if k.startswith("test")}
    assert again == pytest.approx(stored, abs=1e-5)
    store.path_of(tmp_path / "cache", "toy", "P1", "1").unlink()
    with pytest.raises(UserError, match="no recording of subject 'P1'"):
        score_run(run, "test", cache=None, device="cpu")


def test_a_source_alone_decides_what_is_trained_on(tmp_path):
    def entries_with(cache, **options):
        source = SourceConfig("synthetic", options=options)
        data = DataConfig(cache=str(tmp_path / cache), source=source)
        return [entry.key for entry in entries_of(data, progress=False)]

    entries_with("used", subjects=4, seconds=4, seed=0)
    builders.cache(tmp_path / "used", subjects=2)
    fresh = entries_with("fresh", subjects=2, seconds=4, seed=1)
    assert entries_with("used", subjects=2, seconds=4, seed=1) == fresh
    assert len(fresh) == 2


def test_a_broken_file_of_another_corpus_stops_nothing(tmp_path):
    builders.cache(tmp_path, subjects=2)
    broken = store.write(builders.recording("P1", corpus="other"), tmp_path)
    broken.write_bytes(b"broken")
    assert len(entries_of(DataConfig(cache=str(tmp_path), corpus="toy"))) == 2
    with pytest.raises(UserError, match="take the file out of it"):
        entries_of(DataConfig(cache=str(tmp_path)))


def test_a_full_disk_costs_no_earlier_checkpoint(corpus, tmp_path, monkeypatch):
    """The disk fills in the middle of a later checkpoint."""
    experiment = builders.experiment(corpus, trainer=Trainer(max_epochs=4, **QUICK))
    experiment.runs = str(tmp_path)
    whole, written = files.os.fsync, []

    def full(descriptor):
        written.append(descriptor)
        if len(written) == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        whole(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        fit(experiment, draw=nothing)
    monkeypatch.undo()
    (folder,) = (tmp_path / "toy").iterdir()
    kept = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert kept["epoch"] < 3
    assert not list((folder / "checkpoints").glob(".*"))
    resumed = fit(experiment, draw=nothing, resume=runs.open_run(folder))
    assert resumed.record["status"] == "done"


def test_a_run_whose_figures_cannot_be_drawn_is_not_done(corpus, tmp_path):
    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    experiment = builders.experiment(corpus)
    experiment.runs = str(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        fit(experiment, draw=full)
    (folder,) = (tmp_path / "toy").iterdir()
    run = runs.open_run(folder)
    assert run.record["status"] == "failed"
    assert fit(experiment, draw=nothing, resume=run).record["status"] == "done"


@pytest.mark.parametrize(
    ("name", "content"),
    [("run.json", b"{}"), ("preparation.json", b"{}"), ("model.safetensors", save({}))],
)
def test_a_spoiled_file_of_a_run_is_told(finished, corpus, tmp_path, name, content):
    spoiled = tmp_path / "run"
    copytree(finished.folder, spoiled)
    (spoiled / name).write_bytes(content)
    with pytest.raises(UserError, match=name):
        predict_cache(
            runs.open_run(spoiled), corpus / "delayed", tmp_path / "o.csv", fold=None, device="cpu"
        )


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_scores_of_a_run_can_be_computed_again(finished, corpus, split):
    again = score_run(finished, split, cache=corpus / "delayed", device="cpu")
    stored = {k: v for k, v in finished.record["metrics"].items() if k.startswith(split)}
    assert again == pytest.approx(stored, abs=1e-5)


def test_predict_writes_what_the_run_predicted(finished, corpus, tmp_path):
    out = tmp_path / "deep" / "predictions.csv"
    written = predict_cache(finished, corpus / "delayed", out, fold=None, device="cpu")
    assert written == ({"recordings": 8, "frames": 960}, [])
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["corpus", "subject", "recording", "time_s", "valence", "arousal"]
    item = store.read_predictions(finished.folder / "predictions.h5")[-1]
    mine = [row for row in rows if row["subject"] == item.subject]
    np.testing.assert_allclose([float(row["time_s"]) for row in mine], item.time_s, atol=1e-6)
    np.testing.assert_allclose(
        [[float(row["valence"]), float(row["arousal"])] for row in mine], item.prediction, atol=1e-4
    )


def test_the_same_seed_gives_the_same_bits_and_another_does_not(corpus):
    experiment = builders.experiment(corpus, model=ModelConfig("bilstm", 8, 2, dropout=0.3))
    one, other = fit(experiment, draw=nothing), fit(experiment, draw=nothing)
    experiment.seed = 1
    third = fit(experiment, draw=nothing)
    weights = [load_file(run.folder / "model.safetensors") for run in (one, other, third)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert not all(torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    assert one.folder != other.folder


def _interrupted_at(monkeypatch, fold_starts, epoch):
    """Ctrl-C in the middle of an epoch of the second fold."""
    original = AffectModule.on_train_batch_start

    def hook(self, batch, index):
        if (self.current_epoch, index) == (0, 0):
            fold_starts.append(1)
        if len(fold_starts) == 2 and (self.current_epoch, index) == (epoch, 1):
            raise KeyboardInterrupt
        original(self, batch, index)

    monkeypatch.setattr(AffectModule, "on_train_batch_start", hook)


@pytest.mark.parametrize(
    ("workers", "schedule"), [(0, "cosine"), (1, "cosine"), (0, "plateau"), (0, "step")]
)
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(
    corpus, tmp_path, monkeypatch, workers, schedule
):
    data = builders.experiment(corpus).data
    data.split, data.workers = FOLDS, workers
    experiment = builders.experiment(
        corpus,
        data=data,
        model=ModelConfig("gru", 8, 2, dropout=0.3),
        trainer=Trainer(max_epochs=4, keep="last", **QUICK),
        scheduler=SchedulerConfig(schedule, step_epochs=1, gamma=0.5),
    )
    experiment.runs = str(tmp_path)
    whole = fit(experiment, draw=nothing)

    before = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        _interrupted_at(patched, [], epoch=2)
        with pytest.raises(KeyboardInterrupt, match="affect fit --resume"):
            fit(experiment, draw=nothing)
    signal.signal(signal.SIGINT, before)
    folders = sorted((tmp_path / "toy").iterdir())
    (stopped,) = [f for f in folders if runs.open_run(f).record["status"] == "interrupted"]
    first_fold = (stopped / "folds" / "0" / "model.safetensors").stat().st_mtime_ns
    assert not (stopped / "predictions.h5").exists()

    resumed = runs.open_run(stopped)
    resumed = fit(resumed.experiment, draw=nothing, resume=resumed)
    assert (stopped / "folds" / "0" / "model.safetensors").stat().st_mtime_ns == first_fold
    assert resumed.record["metrics"] == whole.record["metrics"]
    for fold in range(3):
        one = load_file(whole.fold_folder(fold) / "model.safetensors")
        other = load_file(resumed.fold_folder(fold) / "model.safetensors")
        assert all(torch.equal(one[name], other[name]) for name in one)
    rows = [(run.folder / "metrics.csv").read_text() for run in (whole, resumed)]
    assert rows[0] == rows[1]


def test_sigterm_ends_processes_that_train_together(corpus, tmp_path):
    experiment = builders.experiment(corpus)
    trainer = dataclasses.replace(experiment.trainer, max_epochs=10_000, devices=2, strategy="ddp")
    experiment = dataclasses.replace(experiment, runs=str(tmp_path), trainer=trainer)
    (tmp_path / "e.yaml").write_text(config.to_yaml(experiment))
    command = [sys.executable, "-m", "affect", "fit", "-c", str(tmp_path / "e.yaml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            wait_for(lambda: list(tmp_path.glob("toy/*/checkpoints/last.ckpt")))
            process.terminate()
            _, told = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 75
    assert b"affect fit --resume" in told
    (folder,) = (tmp_path / "toy").iterdir()
    assert runs.open_run(folder).record["status"] == "preempted"
    assert (folder / "checkpoints" / "last.ckpt").exists()


def wait_for(condition, limit_s=120):
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_folds_test_every_subject_once_and_pool(corpus):
    data = builders.experiment(corpus).data
    data.split = FOLDS
    run = fit(builders.experiment(corpus, data=data), draw=nothing)
    tested = [
        item
        for item in store.read_predictions(run.folder / "predictions.h5")
        if item.split == "test"
    ]
    assert sorted(item.subject for item in tested) == [f"P{index}" for index in range(6)]
    pooled = lin(
        np.concatenate([item.prediction[:, 0] for item in tested]).astype(float),
        np.concatenate([item.reference[:, 0] for item in tested]).astype(float),
    )
    assert run.record["metrics"]["test/ccc/valence"] == pytest.approx(pooled, abs=1e-9)
    with pytest.raises(UserError, match="has 3 folds: choose one with --fold"):
        predict_cache(run, corpus / "cache", corpus / "out.csv", fold=None, device="cpu")
    with pytest.raises(UserError, match="has no fold 7"):
        predict_cache(run, corpus / "cache", corpus / "out.csv", fold=7, device="cpu")
    predict_cache(run, corpus / "cache", corpus / "out.csv", fold=2, device="cpu")


def test_the_papers_protocol_predicts_each_window_once(corpus):
    data = builders.experiment(corpus).data
    data.target, data.window_frames, data.hop_frames = "window_mean", 25, None
    run = fit(builders.experiment(corpus, data=data), draw=nothing)
    for item in store.read_predictions(run.folder / "predictions.h5"):
        recording = store.read(store.path_of(corpus / "cache", "toy", item.subject, "1"))
        valence = recording.annotations["valence"]
        windows = [valence[:25], valence[25:50], valence[50:]]
        np.testing.assert_allclose(item.reference[:, 0], [w.mean() for w in windows], atol=1e-6)
        np.testing.assert_allclose(item.time_s, [2.4, 7.4, 10.9])
        assert item.prediction.shape == (3, 2)


def test_one_dimension_is_enough(corpus):
    data = builders.experiment(corpus).data
    data.dimensions = ["valence"]
    run = fit(builders.experiment(corpus, data=data), draw=figures.draw)
    metrics = run.record["metrics"]
    assert metrics["test/ccc/mean"] == metrics["test/ccc/valence"]
    out = corpus / "one.csv"
    predict_cache(run, corpus / "cache", out, fold=None, device="cpu")
    assert out.read_text().startswith("corpus,subject,recording,time_s,valence\n")


def test_a_run_that_is_refused_before_it_trains_leaves_no_folder(corpus, tmp_path):
    odd = builders.experiment(corpus, model=ModelConfig("lsmt"))
    odd.runs = str(tmp_path)
    with pytest.raises(UserError, match="did you mean 'lstm'"):
        fit(odd, draw=nothing)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["constant", "cosine", "one_cycle", "step", "plateau"])
def test_every_schedule_trains(corpus, name):
    schedule = SchedulerConfig(name, step_epochs=1)
    run = fit(builders.experiment(corpus, scheduler=schedule), draw=nothing)
    with (run.folder / "metrics.csv").open() as file:
        rates = [float(row["lr"]) for row in csv.DictReader(file)]
    if name == "constant":
        assert rates == [OptimizerConfig().lr] * 2
    if name in {"cosine", "one_cycle", "step"}:
        assert rates[-1] < rates[0]


@pytest.mark.parametrize("name", MODELS)
def test_mixed_precision_trains(corpus, name):
    trainer = Trainer(max_epochs=1, precision="bf16-mixed", **QUICK)
    model = ModelConfig(name, hidden_size=8, layers=1)
    run = fit(builders.experiment(corpus, trainer=trainer, model=model), draw=nothing)
    assert np.isfinite(run.record["metrics"]["test/ccc/mean"])


def test_early_stopping_ends_before_the_last_epoch(corpus):
    trainer = Trainer(max_epochs=40, patience=1, **QUICK)
    run = fit(
        builders.experiment(corpus, trainer=trainer, optimizer=OptimizerConfig(lr=0.3)),
        draw=nothing,
    )
    rows = (run.folder / "metrics.csv").read_text().splitlines()
    assert len(rows) - 1 < 40


def test_a_diverged_training_says_so(corpus):
    wild = builders.experiment(
        corpus,
        optimizer=OptimizerConfig("sgd", lr=1e30),
        trainer=Trainer(max_epochs=5, gradient_clip_val=None, **QUICK),
    )
    wild.loss.name = "mse"
    with pytest.raises(UserError, match=r"training diverged \(lower optimizer.lr\)"):
        fit(wild, draw=nothing)


def test_an_unknown_option_of_the_optimiser_is_told(corpus):
    odd = builders.experiment(corpus, optimizer=OptimizerConfig("adam", options={"momentun": 1}))
    with pytest.raises(UserError, match=r"optimizer.options: .*momentun"):
        fit(odd, draw=nothing)


@pytest.mark.parametrize("name", ["quantum", "meta", "hpu", "cuda:99"])
def test_a_device_that_is_not_there_is_told(name):
    assert device_of("cpu").type == "cpu"
    with pytest.raises(UserError, match=f"no device '{name}' here"):
        device_of(name)


def test_a_folder_without_a_run_is_told(tmp_path):
    with pytest.raises(UserError, match="no run at"):
        runs.open_run(tmp_path)
