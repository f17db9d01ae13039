"""The search space of a sweep: its parameters, and configurations as points in it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise, product
from typing import Any

from affect.sweep.distributions import Settings, place, value_at

Point = dict[str, float]
"""A place in the space by the parameters' keys: an index, an integer or a quantile each."""

_TAIL = 0.01
"""How much at either end of a distribution without ends is not looked at beforehand."""
_GRIDS = {"categorical", "int_uniform", "q_uniform"}


@dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        path: its name; below it, the names of nested `parameters`.
        kind: W&B's name of its distribution.
        settings: of the distribution.
    """

    path: tuple[str, ...]
    kind: str
    settings: Settings

    @property
    def key(self) -> str:
        """The experiment's key that it sets."""
        return ".".join(self.path)

    @property
    def varies(self) -> bool:
        """Whether it is searched."""
        return self.kind != "constant"

    @property
    def places(self) -> Sequence[float] | None:
        """A place of each of its values, each value once; None where they have no end."""
        if self.kind == "int_uniform":
            return range(self.settings["min"], self.settings["max"] + 1)
        if self.kind != "categorical":
            return None
        values = [_canonical(value) for value in self.settings["values"]]
        return [values.index(value) for value in dict.fromkeys(values)]

    @property
    def probes(self) -> Sequence[float]:
        """Places of listed values, else of the ends of its range, or of its bulk.

        Of listed numbers these are the least and the greatest: to try a value takes long.
        """
        if self.kind == "int_uniform":
            return self.settings["min"], self.settings["max"]
        if self.kind == "categorical":
            return _telling(self.settings["values"], self.places or ())
        if self.kind == "categorical_w_probabilities":
            bounds = pairwise(accumulate(self.settings["probabilities"], initial=0.0))
            return [(low + high) / 2 for low, high in bounds if low < high]
        tail = _TAIL if "normal" in self.kind else 0.0
        return tail, 1 - tail

    def on_grid(self) -> Parameter:
        """The same as a grid search takes it.

        W&B's grid over `q_uniform` goes from `min` in steps of q and leaves `max` out.
        """
        if self.kind == "q_uniform":
            low, high, q = (self.settings[name] for name in ("min", "max", "q"))
            values = [low + step * q for step in range(math.ceil((high - low) / q))]
            return Parameter(self.path, "categorical", {"values": values})
        return self

    @property
    def grids(self) -> bool:
        """Whether a grid search can take it."""
        return not self.varies or self.kind in _GRIDS

    def coordinate(self, quantile: float) -> float:
        """Its place in a point."""
        if self.kind == "categorical":
            return place(quantile, len(self.settings["values"]))
        whole = self.kind == "int_uniform"
        return value_at(self.kind, self.settings, quantile) if whole else quantile

    def value(self, coordinate: float) -> Any:
        """Its value at a place."""
        if self.kind == "categorical":
            return self.settings["values"][int(coordinate)]
        if self.kind == "int_uniform":
            return int(coordinate)
        return value_at(self.kind, self.settings, coordinate)


Space = Sequence[Parameter]


def arguments(space: Space, point: Mapping[str, float]) -> dict[str, Any]:
    """A configuration as W&B hands it to an agent: nested parameters are nested mappings."""
    configuration: dict[str, Any] = {}
    for parameter in space:
        *sections, name = parameter.path
        section = configuration
        for outer in sections:
            section = section.setdefault(outer, {})
        section[name] = parameter.value(point.get(parameter.key, 0.0))
    return configuration


def searched(space: Space) -> list[Parameter]:
    """The parameters that vary."""
    return [parameter for parameter in space if parameter.varies]


def size(space: Space) -> float:
    """How many configurations there are, or infinity."""
    places = [parameter.places for parameter in searched(space)]
    return math.prod(math.inf if of is None else len(of) for of in places)


def grid(space: Space) -> Iterator[Point]:
    """Every configuration once, in the order of W&B's grid; none of a space without an end."""
    keys = [parameter.key for parameter in searched(space)]
    for chosen in product(*(parameter.places or [] for parameter in searched(space))):
        yield dict(zip(keys, chosen, strict=True))


def drawn(space: Space, quantiles: Sequence[float]) -> Point:
    """The point at a quantile of each parameter that varies."""
    return {p.key: p.coordinate(u) for p, u in zip(searched(space), quantiles, strict=True)}


def digest(configuration: Mapping[str, Any]) -> str:
    """What two configurations share only if they are the same."""
    return hashlib.sha256(_canonical(configuration).encode()).hexdigest()[:24]


def _telling(values: Sequence[Any], places: Sequence[float]) -> list[int]:
    """The places whose values are to be tried: of whole and of broken numbers the ends alone."""
    of = {kind: [int(p) for p in places if type(values[int(p)]) is kind] for kind in (int, float)}
    ends = {pick(at, key=values.__getitem__) for at in of.values() if at for pick in (min, max)}
    return sorted(ends.union(int(p) for p in places if type(values[int(p)]) not in of))


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)
