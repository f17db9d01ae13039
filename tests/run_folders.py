"""Hand-written folders of finished runs, for tests of reports."""

import dataclasses
import itertools

import numpy as np

from affect import store
from affect.config import DataConfig, Experiment
from affect.data.splits import Fold
from affect.prediction import Prediction
from affect.training import run as runs

FRAMES = (40, 25, 60, 33, 51)


def predictions(noise=0.3, frames=FRAMES, *, seed=1, split="test", folds=1, step_s=0.2, two=()):
    """A subject for each number of frames; those in `two` have a second recording."""
    rng = np.random.default_rng(0)  # of the references, the same in every run
    errors = np.random.default_rng(seed)
    items = []
    for index, count in enumerate(frames):
        for name in ("1", "2")[: 2 if index in two else 1]:
            steps = rng.normal(size=(count, 2))
            reference = (np.cumsum(steps, axis=0) / np.sqrt(count)).astype(np.float32)
            error = noise * (1 + index) * errors.normal(size=reference.shape)
            items.append(
                Prediction(
                    corpus="toy",
                    subject=f"P{index}",
                    name=name,
                    split=split,
                    fold=index % folds,
                    time_s=np.arange(count) * step_s,
                    dimensions=("valence", "arousal"),
                    prediction=(0.8 * reference + error).astype(np.float32),
                    reference=reference,
                )
            )
    return items


def changed(items, index, **changes):
    """The predictions with other fields in one of them."""
    return [dataclasses.replace(x, **changes) if i == index else x for i, x in enumerate(items)]


def write_run(folder, items, *, folds=1, epochs=6, units=(), spent=None, **settings):
    """A finished run's folder, as training leaves it.

    Args:
        folder: of the runs.
        items: its predictions.
        folds: how many.
        epochs: of each fold; or rounds, where the run is federated.
        units: action units whose importance was measured.
        spent: epsilon of each fold, where clients were private.
        settings: `kind`, `status` and `split` (train, val, test) of the run; sections of the
            experiment.
    """
    kind, status = settings.pop("kind", "fit"), settings.pop("status", "done")
    split = settings.pop("split", (("a",), ("b",), ("c",)))
    dimensions = list(items[0].dimensions)
    data = dataclasses.replace(settings.pop("data", DataConfig()), dimensions=dimensions)
    experiment = Experiment(runs=str(folder), data=data, **settings)
    run = runs.create(experiment, kind, [Fold(i, *split) for i in range(folds)])
    runs.begin(run, ())
    run.update({"status": status, "wall_time_s": 12.5, "peak_memory_mib": 800.0})
    if kind == "federate":
        private = [{"epsilon": e, "delta": 0.01 * (i + 1)} for i, e in enumerate(spent or [])]
        parts = [{"rounds": epochs, **part} for part in private or [{}] * folds]
        costs = {"bytes_sent": 5_000_000, "bytes_received": 7_000_000}
        run.update({"federation": {str(i): part for i, part in enumerate(parts)}, **costs})
    store.write_predictions(run.folder / "predictions.h5", items)
    rng = np.random.default_rng(3)
    _write_history(run, items[0].dimensions, folds, epochs, rng)
    for fold in range(folds if units else 0):
        drops = [
            f"{unit},{0.01 * i + rng.normal() / 50},{rng.normal()}" for i, unit in enumerate(units)
        ]
        path = run.fold_folder(fold) / "importance.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(["action_unit,valence,arousal", *drops]) + "\n")
    return run


def _write_history(run, dimensions, folds, epochs, rng):
    federated = run.record["kind"] == "federate"
    columns = [f"{p}/{s}/mean" for p, s in itertools.product(("train", "val"), ("loss", "ccc"))]
    columns += [f"val/ccc/{name}" for name in dimensions]
    lines = [",".join(["step", "fold", "round" if federated else "epoch", *columns])]
    for step, (fold, epoch) in enumerate(itertools.product(range(folds), range(epochs))):
        ccc = 1 - np.exp(-(epoch + 1) / 4) + 0.03 * rng.normal(size=2)
        values = (1 - ccc[0], ccc[0], 1.1 - ccc[1], ccc[1] - 0.1)
        each = [ccc[1] - 0.1 + 0.01 * index for index in range(len(dimensions))]
        lines.append(",".join(map(str, (step, fold, epoch + federated, *values, *each))))
    (run.folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def lin(x, y):
    """Lin's formula in NumPy float64."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    return 2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def with_gaps(items):
    """The same predictions with labels missing: scattered, a whole trace, and a whole recording."""
    rng = np.random.default_rng(5)
    references = [item.reference.copy() for item in items]
    for reference in references:
        reference[rng.random(reference.shape) < 0.2] = np.nan
    references[0][:, 1] = np.nan
    references[1][:] = np.nan
    return [dataclasses.replace(x, reference=r) for x, r in zip(items, references, strict=True)]
