"""What runs must share to be compared: test recordings, labels, splits and what is predicted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from operator import attrgetter
from typing import Any

import numpy as np

from affect import store
from affect.data.splits import Fold
from affect.errors import UserError
from affect.prediction import Prediction
from affect.training.run import Run

_NAMED_AT_MOST = 3
Difference = tuple[bool, str]
"""Whether two tests differ in something, and how."""


def of_sites(run: Run) -> bool:
    """Whether a run is a deployment's, whose predictions stay at its sites."""
    return "sites" in run.record


def tested(run: Run) -> list[Prediction]:
    """A finished run's test predictions, sorted by recording; none of a deployment's.

    Raises:
        UserError: the run is not finished, or has no test predictions.
    """
    if run.record["status"] != "done":
        state = run.record["status"]
        raise UserError(f"{run.folder} is not finished ({state}): --resume it or leave it out")
    if of_sites(run):
        return []
    predictions = store.read_predictions(run.folder / "predictions.h5")
    chosen = [item for item in predictions if item.split == "test"]
    if not chosen:
        raise UserError(f"{run.folder} has no test predictions to compare")
    return sorted(chosen, key=attrgetter("corpus", "subject", "name"))


def refuse_unlike(
    run: Run, items: Sequence[Prediction], first: Run, expected: Sequence[Prediction]
) -> None:
    """Refuse a run that was trained or tested under another protocol than the first.

    Args:
        run: which one.
        items: its test predictions.
        first: the run that it is compared with.
        expected: the test predictions of that.

    Raises:
        UserError: naming both runs and how they differ.
    """
    refuse(run, first, _differences(run, items, first, expected))


def refuse(run: Run, first: Run, differences: Iterable[Difference]) -> None:
    """Refuse a run that differs from the first.

    Raises:
        UserError: naming both runs and the first difference.
    """
    for differs, how in differences:
        if differs:
            raise UserError(f"{run.folder} cannot be compared with {first.folder}: {how}")


def settings(run: Run) -> dict[str, Any]:
    """The keys of an experiment that say what is predicted and scored, with their values."""
    data = run.experiment.data
    names = ["dimensions", "target", "gold_standard"]
    if data.target == "window_mean":
        names += ["window_frames", "hop_frames"]
    return {
        **{f"data.{name}": getattr(data, name) for name in names},
        "data.split.calibration_fraction": data.split.calibration_fraction,
    }


def _differences(
    run: Run, items: Sequence[Prediction], first: Run, expected: Sequence[Prediction]
) -> Iterator[Difference]:
    """In what the tests may differ, in order, from coarse to fine."""
    dimensions, wanted = items[0].dimensions, expected[0].dimensions
    yield dimensions != wanted, f"it predicts {', '.join(dimensions)}, not {', '.join(wanted)}"
    given, asked = settings(run), settings(first)
    for key in asked:
        value, other = given.get(key), asked[key]
        yield value != other, f"its {key} is {value}, not {other}"
    yield _sets_differ(
        "test subjects", *({f"{i.corpus}/{i.subject}" for i in x} for x in (items, expected))
    )
    yield _sets_differ("test recordings", *({i.key for i in x} for x in (items, expected)))
    yield from _splits_differ(run.folds, first.folds)
    for item, other in zip(items, expected, strict=True):
        yield (
            not np.array_equal(item.reference, other.reference, equal_nan=True),
            f"the references of {item.key} differ ({len(item.reference)} points and "
            f"{len(other.reference)}): use the same target, windows and gold standard",
        )


def _splits_differ(folds: Sequence[Fold], wanted: Sequence[Fold]) -> Iterator[Difference]:
    """Whether the networks were trained, chosen and tested on the same people."""
    counts = len(folds), len(wanted)
    yield counts[0] != counts[1], f"it has {counts[0]} folds, not {counts[1]}"
    for fold, other in zip(folds, wanted, strict=True):
        for part in ("train", "val", "test"):
            of = f"{part} subjects of fold {fold.index}"
            yield _sets_differ(of, set(getattr(fold, part)), set(getattr(other, part)))


def _sets_differ(what: str, given: set[str], wanted: set[str]) -> Difference:
    parts = [
        f"{label} {', '.join(sorted(names)[:_NAMED_AT_MOST])}"
        + (f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else "")
        for label, names in (("it alone has", given - wanted), ("it lacks", wanted - given))
        if names
    ]
    return bool(parts), f"its {what} differ: {'; '.join(parts)}"
