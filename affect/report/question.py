"""The paper's question in one sentence: how a federated run stands against a centralised one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from affect.report.bootstrap import Interval
from affect.report.compare import Comparison, Ratio
from affect.report.wording import listed, number, share


def answers(comparison: Comparison) -> list[str]:
    """A sentence for each federated configuration; none where one kind of run is missing."""
    return [_answer(comparison, item) for item in comparison.ratios]


def remarks(comparison: Comparison) -> list[str]:
    """A sentence for each run of which not all holds that a comparison says."""
    labelled = zip(comparison.labels, comparison.runs, strict=True)
    return [f"{label} {run.remark}." for label, run in labelled if run.remark]


def _answer(comparison: Comparison, item: Ratio) -> str:
    federated, centralised = (
        _named(comparison, group) for group in (item.federated, item.centralised)
    )
    *dimensions, name = comparison.columns
    above, below = (
        number(fmean(comparison.runs[i].scores[f"test/ccc/{name}"].value for i in group))
        for group in (item.federated, item.centralised)
    )
    of = listed(dimensions) if dimensions else name
    where = f"in the mean of {of}" if dimensions else f"in {of}"
    whole = item.ccc[name]
    if math.isnan(whole.value):
        return (
            f"Federated training ({federated}) has a test CCC of {above} {where}, centralised "
            f"training ({centralised}) one of {below}, which allows no share."
        )
    known = [d for d in dimensions if not math.isnan(item.ccc[d].value)]
    details = [_bounds(whole), *(f"{d} {share(item.ccc[d].value)}" for d in known)]
    return (
        f"Federated training ({federated}) reaches {share(whole.value)} of the test CCC of "
        f"centralised training ({centralised}), {above} against {below} {where} "
        f"({'; '.join(details)}){_besides(item)}."
    )


def _bounds(item: Interval) -> str:
    """The interval of a share, and what it says of 100 %."""
    if math.isnan(item.low):
        return "without an interval"
    says = "lies below" if item.high < 1 else "lies above" if item.low > 1 else "includes"
    return f"95 % interval {share(item.low)} to {share(item.high)}, which {says} 100 %"


def _besides(item: Ratio) -> str:
    return f"; they also differ in {listed(item.besides)}" if item.besides else ""


def _named(comparison: Comparison, group: Sequence[int]) -> str:
    first = comparison.runs[group[0]]
    several = f"{first.experiment}, mean of {len(group)} runs"
    name = comparison.labels[group[0]] if len(group) == 1 else several
    return f"{name}; personalised: {first.personalised}" if first.personalised else name
