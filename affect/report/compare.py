"""Finished runs side by side: scores with uncertainty, paired differences, and what each cost.

All runs see the same draws of the bootstrap, which pairs their differences.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from affect.errors import UserError
from affect.files import finite
from affect.report.bootstrap import (
    Interval,
    Replicates,
    interval,
    multiplicities,
    ratio,
    replicates,
)
from affect.report.configuration import unlike
from affect.report.protocol import of_sites, refuse_unlike, tested
from affect.report.sites import REMARK, refuse_unlike_sites, told_points
from affect.report.training_history import history, trained
from affect.training.inference import adapts
from affect.training.run import Run
from affect.training.scores import scores

SCORES: Mapping[str, str] = {
    "ccc": "CCC",
    "ccc_per_recording": "CCC by recording",
    "rmse": "RMSE",
    "pearson": "Pearson's r",
}
"""What is compared, by its name in metric keys, and how it is called."""

_MOST_RESAMPLES = 100_000
"""Those of a hundred subjects take a gigabyte."""


@dataclass(frozen=True)
class Standing:
    """One run in a comparison.

    Attributes:
        experiment, id, kind, model, seed: which run it is.
        trained: rounds of each fold; of a run of `affect fit`, epochs.
        bytes_sent, bytes_received: by the clients, in all rounds of all folds.
        wall_time_s, peak_memory_mib: what it cost the machine.
        epsilon, delta: of the fold that spent most; None without differential privacy.
        personalised: how its networks adapted to people before they were scored; empty for none.
        remark: what of a comparison does not hold for it, to be read after its name; or empty.
        scores: of the test, under the keys of a run's metrics, such as `test/ccc/valence`.
        differences: likewise, how far each is above the first run's; empty for the first, and for
            those of a deployment, whose scores have no intervals either.
    """

    experiment: str
    id: str
    kind: str
    model: str
    seed: int
    trained: tuple[int, ...]
    bytes_sent: int
    bytes_received: int
    wall_time_s: float
    peak_memory_mib: float
    epsilon: float | None
    delta: float | None
    personalised: str
    remark: str
    scores: Mapping[str, Interval]
    differences: Mapping[str, Interval]


@dataclass(frozen=True)
class Ratio:
    """How federated runs stand against centralised ones.

    Attributes:
        federated, centralised: places of the runs, each of one configuration, of any seeds.
        ccc: per dimension and for their `mean`, the mean CCC of the federated runs as a share of
            that of the centralised ones.
        besides: keys in which the two differ as well, beyond how they were trained.
    """

    federated: tuple[int, ...]
    centralised: tuple[int, ...]
    ccc: Mapping[str, Interval]
    besides: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Runs that were tested on the same recordings; of a deployment's that is not known.

    Attributes:
        dimensions: what all runs predict.
        subjects, recordings: number of test subjects and of their recordings.
        resamples, seed: of the bootstrap over subjects.
        runs: in the order given; the first is what the others are compared with.
        ratios: one for each federated configuration, where there is a centralised run.
    """

    dimensions: tuple[str, ...]
    subjects: int
    recordings: int
    resamples: int
    seed: int
    runs: tuple[Standing, ...]
    ratios: tuple[Ratio, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The dimensions, and their `mean` where there are several: what is shown of each run."""
        return (*self.dimensions, "mean") if len(self.dimensions) > 1 else self.dimensions

    @property
    def labels(self) -> tuple[str, ...]:
        """Each run's shortest name that tells it apart: experiment, or with its seed, or its id."""
        forms = [
            (run.experiment, f"{run.experiment}, seed {run.seed}", f"{run.experiment}/{run.id}")
            for run in self.runs
        ]
        counts = Counter(form for names in forms for form in names)
        return tuple(next((n for n in names if counts[n] == 1), names[-1]) for names in forms)

    def to_json(self) -> dict[str, Any]:
        """Every field as JSON values; a number that is not finite is null."""
        return finite(asdict(self))


def compare(runs: Sequence[Run], *, resamples: int = 2000, seed: int = 0) -> Comparison:
    """The runs' test scores with intervals, paired differences to the first run, and costs.

    Args:
        runs: finished runs, at least one.
        resamples: draws of the bootstrap, from 1 to 100000.
        seed: of the draws.

    Raises:
        UserError: no run is given, one is not finished, one was trained or tested under another
            protocol than the first, or the first is a deployment's.
    """
    if not runs:
        raise UserError("no runs to compare: give at least one run's folder")
    if not 1 <= resamples <= _MOST_RESAMPLES:
        raise UserError(f"{resamples} resamples: take from 1 to {_MOST_RESAMPLES}")
    tests = [tested(run) for run in runs]
    if of_sites(runs[0]):
        raise UserError(
            f"{runs[0].folder} is a deployment's, whose predictions stay at its sites: name first "
            "a run of `affect fit` or `affect federate`, with which it can be compared"
        )
    for run, items in zip(runs[1:], tests[1:], strict=True):
        if of_sites(run):
            refuse_unlike_sites(run, runs[0])
        else:
            refuse_unlike(run, items, runs[0], tests[0])
    subjects = len({(item.corpus, item.subject) for item in tests[0]})
    counts = multiplicities(subjects, resamples, seed)
    first = scores(tests[0], "test")
    points = [
        scores(items, "test") if items else told_points(run, first)
        for run, items in zip(runs, tests, strict=True)
    ]
    unknown = dict.fromkeys(first, torch.full((resamples,), math.nan, dtype=torch.float64))
    drawn = [replicates(items, counts) if items else unknown for items in tests]
    dimensions = tests[0][0].dimensions
    return Comparison(
        dimensions=dimensions,
        subjects=subjects,
        recordings=len(tests[0]),
        resamples=resamples,
        seed=seed,
        runs=tuple(
            _standing(
                run,
                _intervals(points[place], drawn[place]),
                _above(points, drawn, place) if tests[place] else {},
            )
            for place, run in enumerate(runs)
        ),
        ratios=tuple(
            Ratio(
                federated,
                centralised,
                _shares(points, drawn, federated, centralised),
                unlike(runs[federated[0]], runs[centralised[0]]),
            )
            for federated, centralised in _kinds(runs)
        ),
    )


def _intervals(point: Mapping[str, float], drawn: Replicates) -> dict[str, Interval]:
    return {key: interval(value, drawn[key]) for key, value in point.items()}


def _above(
    points: Sequence[Mapping[str, float]], drawn: Sequence[Replicates], place: int
) -> dict[str, Interval]:
    """How far a run's scores are above the first run's; nothing for the first."""
    if place == 0:
        return {}
    gaps = {key: value - points[0][key] for key, value in points[place].items()}
    return _intervals(gaps, {key: drawn[place][key] - drawn[0][key] for key in gaps})


def _shares(
    points: Sequence[Mapping[str, float]],
    drawn: Sequence[Replicates],
    federated: Sequence[int],
    centralised: Sequence[int],
) -> dict[str, Interval]:
    """The CCC of some runs as a share of that of others, per dimension and for their mean."""
    shares: dict[str, Interval] = {}
    for key in points[0]:
        _, score, name = key.split("/")
        if score != "ccc":
            continue
        groups = federated, centralised
        above, below = (fmean(points[i][key] for i in group) for group in groups)
        top, bottom = (torch.stack([drawn[i][key] for i in group]).mean(0) for group in groups)
        shares[name] = ratio((above, below), (top, bottom))
    return shares


def _kinds(runs: Sequence[Run]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Each federated configuration's runs, beside those of the first centralised configuration."""
    centralised = _groups(runs, "fit")
    return [(group, centralised[0]) for group in _groups(runs, "federate") if centralised]


def _groups(runs: Sequence[Run], kind: str) -> list[tuple[int, ...]]:
    """Places of the runs of a kind; those that differ in nothing but their seeds are together.

    A deployment's, which has no intervals, is with its like alone.
    """
    groups: list[list[int]] = []
    for place in _places(runs, kind):
        alike = (
            group
            for group in groups
            if of_sites(runs[group[0]]) == of_sites(runs[place])
            and not unlike(runs[group[0]], runs[place])
        )
        group = next(alike, None)
        if group is None:
            groups.append([place])
        else:
            group.append(place)
    return [tuple(group) for group in groups]


def _places(runs: Sequence[Run], kind: str) -> Iterable[int]:
    return (place for place, run in enumerate(runs) if run.record["kind"] == kind)


def _standing(
    run: Run, values: Mapping[str, Interval], differences: Mapping[str, Interval]
) -> Standing:
    record = run.record
    parts = record.get("federation", {}).values()
    spent = [part for part in parts if _numbers(part, "epsilon", "delta")]
    most = max(spent, key=lambda part: part["epsilon"], default={"epsilon": None, "delta": None})
    return Standing(
        experiment=record["experiment"],
        id=record["id"],
        kind=record["kind"],
        model=run.experiment.model.name,
        seed=record["seed"],
        trained=trained(history(run)),
        bytes_sent=record["bytes_sent"],
        bytes_received=record["bytes_received"],
        wall_time_s=record["wall_time_s"],
        peak_memory_mib=record["peak_memory_mib"],
        epsilon=most["epsilon"],
        delta=most["delta"],
        personalised=_personalised(run),
        remark=REMARK if of_sites(run) else "",
        scores=values,
        differences=differences,
    )


def _numbers(part: Mapping[str, Any], *names: str) -> bool:
    return all(isinstance(part.get(name), float | int) for name in names)


def _personalised(run: Run) -> str:
    """How a run's networks adapted to people before they were scored; empty for none."""
    if not adapts(run):
        return ""
    asked = run.experiment.federation.personalisation
    share = run.experiment.data.split.calibration_fraction
    tuned = "head" if asked.tune == "head" else "network"
    own = ", a head of each client's own" if asked.local == "head" else ""
    return f"{asked.steps} steps of the {tuned} on the first {share:.0%} of a person's labels{own}"
