"""Early termination as W&B defines it: Hyperband's brackets over a metric's history.

A run that has logged the metric as often as a bracket says is compared with all runs that have: it
goes on if it is among the best 1/eta of them. From W&B's own engine (PyPI `sweeps` 0.3.0,
`hyperband_stopping.py`) after Li et al., "Hyperband", JMLR 18, 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

_MOST = 10**9


@dataclass(frozen=True)
class Hyperband:
    """The rule.

    Attributes:
        brackets: numbers of logged values at which a run may be stopped, rising.
        eta: the best 1/eta go on.
        strict: compare a run's value at the bracket, instead of its best one so far.
    """

    brackets: tuple[int, ...]
    eta: float
    strict: bool

    def reached(self, logged: int) -> int:
        """How many brackets a run with so many logged values has reached."""
        return sum(bracket <= logged for bracket in self.brackets)

    def stops(self, costs: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
        """Whether a run is to be stopped.

        Args:
            costs: what the run has logged, lower being better.
            others: the same of all runs, itself included.
        """
        reached = self.reached(len(costs))
        if not reached:
            return False
        bracket = self.brackets[reached - 1]
        there = sorted(history[bracket - 1] for history in others if len(history) >= bracket)
        judged = costs[bracket - 1] if self.strict else min(costs)
        return judged > there[int(len(there) / self.eta)]


def from_first(min_iter: int, eta: float) -> tuple[int, ...]:
    """The brackets min_iter, min_iter * eta, min_iter * eta ** 2, ..."""
    brackets, bracket = [], float(min_iter)
    while bracket < _MOST:
        brackets.append(int(bracket))
        bracket *= eta
    return tuple(dict.fromkeys(brackets))


def from_last(max_iter: int, s: float, eta: float) -> tuple[int, ...]:
    """The s brackets max_iter / eta, max_iter / eta ** 2, ... down to 1, rising."""
    brackets, bracket = [], float(max_iter)
    for _ in range(int(s)):
        bracket /= eta
        if bracket < 1:
            break
        brackets.append(int(bracket))
    return tuple(sorted(set(brackets)))
