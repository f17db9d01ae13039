"""Finished runs side by side: their test scores, with uncertainty over subjects.

Frames of one person depend on one another, so the bootstrap draws whole subjects: with replacement,
as many as there are. All runs see the same draws, which pairs their differences. The intervals hold
for the networks as they were trained; what another seed would change is not in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text
from torch import Tensor

from affect import metrics, store
from affect.errors import UserError
from affect.files import finite
from affect.prediction import Prediction
from affect.training.run import Run
from affect.training.scores import moments_of, scores

_BOUNDS = (0.025, 0.975)
_NAMED_AT_MOST = 3


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; the bounds of a single subject are NaN."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Standing:
    """One run in a comparison.

    Attributes:
        experiment, id, kind, model, seed: which run it is.
        wall_time_s, peak_memory_mib: what it cost.
        metrics: test scores under the keys of a run's metrics, such as `test/ccc/valence`.
        ccc: per dimension, and their `mean`, the test CCC with its interval.
        difference: likewise, how far that CCC is above the first run's; empty for the first.
    """

    experiment: str
    id: str
    kind: str
    model: str
    seed: int
    wall_time_s: float
    peak_memory_mib: float
    metrics: Mapping[str, float]
    ccc: Mapping[str, Interval]
    difference: Mapping[str, Interval]


@dataclass(frozen=True)
class Comparison:
    """Runs that were tested on the same recordings.

    Attributes:
        dimensions: what all runs predict.
        subjects, recordings: number of test subjects and of their recordings.
        resamples, seed: of the bootstrap over subjects.
        runs: in the order given; the first is what the others are compared with.
    """

    dimensions: tuple[str, ...]
    subjects: int
    recordings: int
    resamples: int
    seed: int
    runs: tuple[Standing, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The dimensions, and their `mean` where there are several: what is shown of each run."""
        return (*self.dimensions, "mean") if len(self.dimensions) > 1 else self.dimensions

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON values; a number that is not finite is null."""
        return finite(asdict(self))

    def to_table(self) -> Table:
        """One row a run: test CCC with its interval, and the mean's difference to the first run."""
        table = Table(
            caption=f"test CCC, 95 % bootstrap interval over {self.subjects} subjects;\n"
            "difference of the mean to the first run, paired by subject",
            caption_justify="left",
            box=SIMPLE_HEAD,
            show_edge=False,
            padding=0,
        )
        table.add_column("run", overflow="fold")
        for name in (*self.columns, "difference"):
            table.add_column(name, justify="right", no_wrap=True)
        for run in self.runs:
            settings = f"{run.model}, {run.kind}, seed {run.seed}, {run.wall_time_s:.0f} s"
            table.add_row(
                Text(f"{run.experiment}\n{run.id}\n{settings}"),
                *(_cell(run.ccc[name], "z.3f") for name in self.columns),
                _cell(run.difference["mean"], "+z.3f") if run.difference else "",
                end_section=True,
            )
        return table


def compare(runs: Sequence[Run], *, resamples: int = 2000, seed: int = 0) -> Comparison:
    """The runs' test scores, the intervals of their CCC, and paired differences to the first run.

    Percentile bootstrap: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter
    13.

    Args:
        runs: finished runs, at least one.
        resamples: draws of the bootstrap, at least 1.
        seed: of the draws.

    Raises:
        UserError: no run is given, one is not finished, or one was tested on other subjects,
            recordings, references or dimensions than the first.
    """
    if not runs:
        raise UserError("no runs to compare: give at least one run's folder")
    if resamples < 1:
        raise UserError(f"{resamples} resamples give no interval: take at least 1")
    tested = [_tested(run) for run in runs]
    for run, items in zip(runs[1:], tested[1:], strict=True):
        _refuse_unlike(run, items, runs[0], tested[0])
    moments = [subject_moments(items) for items in tested]
    counts = multiplicities(len(moments[0]), resamples, seed)
    reported = [scores(items, "test") for items in tested]
    dimensions = tested[0][0].dimensions
    names = (*dimensions, "mean")
    points = [_row(values, names) for values in reported]
    replicates = [_replicates(part, counts) for part in moments]
    differences = [
        _intervals(names, point - points[0], drawn - replicates[0])
        for point, drawn in zip(points[1:], replicates[1:], strict=True)
    ]
    return Comparison(
        dimensions=dimensions,
        subjects=len(moments[0]),
        recordings=len(tested[0]),
        resamples=resamples,
        seed=seed,
        runs=tuple(
            _standing(run, values, _intervals(names, point, drawn), difference)
            for run, values, point, drawn, difference in zip(
                runs, reported, points, replicates, [{}, *differences], strict=True
            )
        ),
    )


def subject_moments(predictions: Sequence[Prediction]) -> Float64[Tensor, "S D 6"]:
    """Each subject's moments over all of that subject's recordings.

    Args:
        predictions: sorted by corpus and subject, which is also the order of the result.
    """
    subjects = groupby(predictions, key=attrgetter("corpus", "subject"))
    parts = [torch.stack([moments_of(item) for item in items]) for _, items in subjects]
    return torch.stack([metrics.merge(part) for part in parts])


def multiplicities(subjects: int, resamples: int, seed: int) -> Float64[Tensor, "R S"]:
    """How often each subject is drawn in each resample; every row sums to the subjects."""
    chances = np.full(subjects, 1 / subjects)
    counts = np.random.default_rng(seed).multinomial(subjects, chances, size=resamples)
    return torch.from_numpy(counts).double()


def resampled(
    moments: Float64[Tensor, "S D 6"], counts: Float64[Tensor, "R S"]
) -> Float64[Tensor, "R D 6"]:
    """The moments of each resample, in which subject s occurs counts[r, s] times."""
    grows = torch.tensor([True, False, False, True, True, True])  # n, m2_x, m2_y, c_xy; no mean
    factors = counts.T[:, :, None, None]  # S R 1 1
    repeated = torch.where(grows, factors * moments[:, None], moments[:, None])  # S R D 6
    return metrics.merge(repeated)


def _row(values: Mapping[str, float], names: Sequence[str]) -> Float64[Tensor, " E"]:
    cccs = [values[f"test/ccc/{name}"] for name in names]
    return torch.tensor(cccs, dtype=torch.float64)


def _replicates(
    moments: Float64[Tensor, "S D 6"], counts: Float64[Tensor, "R S"]
) -> Float64[Tensor, "R E"]:
    """Each resample's CCC per dimension, then their mean; NaN where one subject shows no spread."""
    values = metrics.ccc(resampled(moments, counts))
    values = torch.cat([values, values.mean(dim=1, keepdim=True)], dim=1)
    return values if len(moments) > 1 else torch.full_like(values, math.nan)


def _intervals(
    names: Sequence[str], point: Float64[Tensor, " E"], replicates: Float64[Tensor, "R E"]
) -> dict[str, Interval]:
    levels = torch.tensor(_BOUNDS, dtype=torch.float64)
    bounds = torch.nanquantile(replicates, levels, dim=0).T  # E 2
    return {
        name: Interval(float(value), *bound.tolist())
        for name, value, bound in zip(names, point, bounds, strict=True)
    }


def _standing(
    run: Run,
    values: Mapping[str, float],
    ccc: Mapping[str, Interval],
    difference: Mapping[str, Interval],
) -> Standing:
    record = run.record
    return Standing(
        experiment=record["experiment"],
        id=record["id"],
        kind=record["kind"],
        model=run.experiment.model.name,
        seed=record["seed"],
        wall_time_s=record["wall_time_s"],
        peak_memory_mib=record["peak_memory_mib"],
        metrics=values,
        ccc=ccc,
        difference=difference,
    )


def _tested(run: Run) -> list[Prediction]:
    """A finished run's test predictions, sorted by recording."""
    if run.record["status"] != "done":
        state = run.record["status"]
        raise UserError(f"{run.folder} is not finished ({state}): --resume it or leave it out")
    predictions = store.read_predictions(run.folder / "predictions.h5")
    tested = [item for item in predictions if item.split == "test"]
    if not tested:
        raise UserError(f"{run.folder} has no test predictions to compare")
    return sorted(tested, key=attrgetter("corpus", "subject", "name"))


def _refuse_unlike(
    run: Run, items: Sequence[Prediction], first: Run, expected: Sequence[Prediction]
) -> None:
    for differs, how in _differences(items, expected):
        if differs:
            raise UserError(f"{run.folder} cannot be compared with {first.folder}: {how}")


def _differences(
    items: Sequence[Prediction], expected: Sequence[Prediction]
) -> Iterator[tuple[bool, str]]:
    """Pairs of whether the tests differ in something, and how; in order, from coarse to fine."""
    dimensions, wanted = items[0].dimensions, expected[0].dimensions
    yield dimensions != wanted, f"it predicts {', '.join(dimensions)}, not {', '.join(wanted)}"
    yield _sets_differ(
        "subjects", *({f"{i.corpus}/{i.subject}" for i in x} for x in (items, expected))
    )
    yield _sets_differ("recordings", *({i.key for i in x} for x in (items, expected)))
    for item, other in zip(items, expected, strict=True):
        yield (
            not np.array_equal(item.reference, other.reference, equal_nan=True),
            f"the references of {item.key} differ ({len(item.reference)} points and "
            f"{len(other.reference)}): use the same target, windows and gold standard",
        )


def _sets_differ(what: str, given: set[str], wanted: set[str]) -> tuple[bool, str]:
    parts = [
        f"{label} {', '.join(sorted(names)[:_NAMED_AT_MOST])}"
        + (f" and {len(names) - _NAMED_AT_MOST} more" if len(names) > _NAMED_AT_MOST else "")
        for label, names in (("it alone has", given - wanted), ("it lacks", wanted - given))
        if names
    ]
    return bool(parts), f"its test {what} differ: {'; '.join(parts)}"


def _cell(interval: Interval, spec: str) -> str:
    """The value above its interval, narrow enough for a terminal of 80 columns."""
    bounds = "" if math.isnan(interval.low) else f"\n{interval.low:{spec}}…{interval.high:{spec}}"
    return f"{interval.value:{spec}}{bounds}"
