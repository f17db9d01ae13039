"""What the columns of a table mean: the schema of the `table` importer, read from YAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from affect.errors import UserError, suggestion

STEM = "file"
"""A column that every table has unless it brings its own: the stem of the file's name."""

AGGREGATES = ("mean", "max", "min", "median", "std")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Which columns place a row, and which annotate it; the column `file` is the file's stem.

    Attributes:
        subject: column of the person; read as text.
        recording: column of the recording; without it each subject has one, of the same name.
        time: column of the time in seconds; or else `rate_hz`.
        rate_hz: rows a second, where rows are in order or sorted by `sort_by`.
        sort_by: columns to sort a recording's rows by: as numbers where all cells are numbers.
        annotations: by dimension a column, or by rater a column.
    """

    subject: str
    recording: str | None = None
    time: str | None = None
    rate_hz: float | None = None
    sort_by: tuple[str, ...] = ()
    annotations: Mapping[str, str | Mapping[str, str]] = field(default_factory=dict)

    @property
    def keys(self) -> list[str]:
        """The columns whose cells together name a recording."""
        return [self.subject, *([self.recording] if self.recording else [])]

    @property
    def labelled(self) -> list[str]:
        """The columns of all annotations."""
        nested = self.annotations.values()
        return [c for item in nested for c in ([item] if isinstance(item, str) else item.values())]

    @property
    def raters(self) -> list[str]:
        """The names of all raters, each once."""
        rated = (item for item in self.annotations.values() if not isinstance(item, str))
        return list(dict.fromkeys(rater for item in rated for rater in item))


@dataclass(frozen=True, kw_only=True)
class Labels(Rows):
    """A second table with labels of another rate, resampled onto the features' times.

    Attributes:
        file: CSV or Parquet, relative to the schema's folder.
    """

    file: str


@dataclass(frozen=True)
class Pivot:
    """Rows that share `index` within a recording become one frame.

    Features stand side by side with a suffix: the cell of `columns`, as in `AU1@2`, or else the
    name of an aggregate, as in `AU1@max`. Annotations must be equal in a frame; success and
    confidence are the frame's least.

    Attributes:
        index: column that names the frame.
        columns: column that names the part of the frame; or else `aggregate`.
        aggregate: `mean`, `max`, `min`, `median` or `std` over the frame's rows.
    """

    index: str
    columns: str | None = None
    aggregate: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Schema(Rows):
    """What the columns of a table mean.

    Attributes:
        corpus: the corpus's name in the cache.
        features: columns, or patterns such as `AU*`, which match no column that is named elsewhere.
        rename: by column, the feature's name in the recording, where it differs.
        success: column that is above 0 where a face was tracked.
        confidence: column of the tracker's confidence, 0 to 1.
        pivot: how several rows become one frame.
        labels: a table of labels beside this one.
    """

    corpus: str
    features: tuple[str, ...]
    rename: Mapping[str, str] = field(default_factory=dict)
    success: str | None = None
    confidence: str | None = None
    pivot: Pivot | None = None
    labels: Labels | None = None


def read_schema(path: Path) -> Schema:
    """The schema in a YAML file.

    Raises:
        UserError: the file cannot be read, or a key is unknown, missing or of the wrong type.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    schema = _section(Schema, content, str(path))
    both = set(schema.features) & set(schema.labelled)
    if both:
        raise UserError(f"{path}: {min(both)!r} is both a feature and an annotation: keep one")
    if schema.labels:
        twice = schema.annotations.keys() & schema.labels.annotations.keys()
        if twice:
            raise UserError(f"{path}: {min(twice)!r} is annotated here and in labels: keep one")
        if (schema.recording is None) != (schema.labels.recording is None):
            raise UserError(f"{path}: name the column recording in the table and in labels")
    return schema


def _section(kind: type[T], content: Any, where: str) -> T:
    """A dataclass from a mapping, each value checked by `_VALUES`."""
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: keys and values were looked for, not {content!r}")
    known = {item.name: item for item in fields(kind)}  # pyright: ignore[reportArgumentType]
    for key in content:
        if key not in known:
            raise UserError(f"{where}: unknown key {key!r}: {suggestion(str(key), known)}")
    for name, item in known.items():
        if item.default is MISSING and item.default_factory is MISSING and name not in content:
            raise UserError(f"{where}: the key {name!r} is missing")
    values = {
        key: _VALUES.get(key, _text)(value, f"{where}: {key}") for key, value in content.items()
    }
    if issubclass(kind, Rows) and ("time" in values) == ("rate_hz" in values):
        raise UserError(f"{where}: give either time (a column) or rate_hz (rows a second)")
    if kind is Pivot and ("columns" in values) == ("aggregate" in values):
        raise UserError(f"{where}: give either columns (a column) or aggregate (mean, max ...)")
    return kind(**values)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise UserError(f"{where}: a name was looked for, not {value!r}: put it in quotes")
    return value


def _texts(value: Any, where: str) -> tuple[str, ...]:
    return tuple(_text(item, where) for item in (value if isinstance(value, list) else [value]))


def _aggregates(value: Any, where: str) -> tuple[str, ...]:
    names = _texts(value, where)
    for name in names:
        if name not in AGGREGATES:
            raise UserError(f"{where}: unknown aggregate {name!r}: {suggestion(name, AGGREGATES)}")
    return names


def _rate(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise UserError(f"{where}: a number above 0 was looked for, not {value!r}")
    return float(value)


def _names(value: Any, where: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: names and columns were looked for, not {value!r}")
    return {_text(key, where): _text(item, f"{where}.{key}") for key, item in value.items()}


def _annotations(value: Any, where: str) -> dict[str, str | dict[str, str]]:
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: dimensions and columns were looked for, not {value!r}")
    return {
        _text(key, where): (_names if isinstance(item, Mapping) else _text)(item, f"{where}.{key}")
        for key, item in value.items()
    }


_VALUES: Mapping[str, Callable[[Any, str], Any]] = {
    "features": _texts,
    "sort_by": _texts,
    "rate_hz": _rate,
    "rename": _names,
    "annotations": _annotations,
    "aggregate": _aggregates,
    "pivot": partial(_section, Pivot),
    "labels": partial(_section, Labels),
}
