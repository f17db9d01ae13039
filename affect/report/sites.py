"""A deployment's run beside others: its pooled points, and as much of the protocol as it knows.

Its server holds no prediction and knows no person. What is left are the scores of the moments that
its sites have sent, the settings of its experiment, and how many people took part.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from affect.errors import UserError
from affect.report.protocol import Difference, refuse, settings
from affect.training.run import Run

REMARK = (
    "was trained at sites that keep their predictions: it has points without intervals and without "
    "paired differences, and of its people the number alone was compared, neither who they are nor "
    "their labels"
)
"""What is told of such a run, after its name."""


def told_points(run: Run, keys: Iterable[str]) -> dict[str, float]:
    """The run's test scores under some keys; NaN where its sites' moments do not tell one.

    Raises:
        UserError: it has none at all.
    """
    told: Mapping[str, Any] = run.record.get("metrics", {})
    found = {key: float(told[key]) for key in keys if isinstance(told.get(key), float)}
    if not found:
        raise UserError(f"{run.folder / 'run.json'} has no test scores to compare")
    return {key: found.get(key, math.nan) for key in keys}


def refuse_unlike_sites(run: Run, first: Run) -> None:
    """Refuse a deployment's run of another protocol than the first run's, as far as can be told.

    Raises:
        UserError: naming both runs and how they differ.
    """
    refuse(run, first, _differences(run, first))


def _differences(run: Run, first: Run) -> Iterator[Difference]:
    given, asked = settings(run), settings(first)
    for key in asked:
        yield given.get(key) != asked[key], f"its {key} is {given.get(key)}, not {asked[key]}"
    folds = first.folds
    yield len(folds) > 1, f"it has one fold, not {len(folds)}"
    for part in ("train", "val", "test"):
        people = sum(site.get(part, 0) for site in run.record["sites"].values())
        wanted = len(getattr(folds[0], part))
        yield people != wanted, f"it has {people} {part} subjects, not {wanted}"
