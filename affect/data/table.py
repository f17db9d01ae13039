"""Any table of features to recordings: CSV or Parquet, and a YAML schema that names its columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from jaxtyping import Float64
from pyarrow import ArrowException, parquet

import affect
from affect.data import columns, timeline
from affect.data.importing import Pending, sha256_of
from affect.data.table_schema import STEM, Pivot, Rows, Schema, read_schema
from affect.data.timeline import Annotation, Place, Track
from affect.errors import UserError, suggestion
from affect.recording import Provenance, Recording

_SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, eq=False)
class Table:
    """A table whose columns are known and whose rows are not read yet.

    Attributes:
        path: its file.
        schema: what its columns mean.
        features: the columns that are features.
        raters: names of the rows of annotations by several raters.
    """

    path: Path
    schema: Schema
    features: tuple[str, ...]
    raters: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Content:
    """A table's rows.

    Attributes:
        rows: each recording's, in the schema's order.
        parts: what the pivot's column holds, in order; empty without a pivot.
    """

    rows: Mapping[Place, pd.DataFrame]
    parts: list[str]


def pending(source: Path, *, schema: str | Path | None = None) -> Iterator[Pending]:
    """The recordings of a table, or of each table in a folder.

    A table's identifiers are read here. Its other columns are parsed once, when the first of its
    recordings is loaded, and kept until a recording of another table is. Of several tables, a
    broken one fails with its recordings, or as a whole where its identifiers cannot be read.

    Args:
        source: a CSV or Parquet file, or a folder of them.
        schema: the YAML file that says what the columns mean; it must be given.

    Raises:
        UserError: the schema or the only table breaks the rules of `Schema`, two files hold the
            same recording, or the table of labels knows none of the recordings.
    """
    if schema is None:
        raise UserError("a table needs a schema of its columns: give the option schema=FILE.yaml")
    layout = read_schema(Path(schema))
    parameters = asdict(layout)
    label_paths = []
    if layout.labels:
        label_paths.append(Path(schema).parent / parameters["labels"].pop("file"))
    raters = tuple(dict.fromkeys(layout.raters + (layout.labels.raters if layout.labels else [])))
    labels = _label_groups(layout, label_paths, raters)
    read = lru_cache(maxsize=1)(_content)
    origin: dict[Place, Path] = {}
    paths, broken = _tables(source), False
    for path in paths:
        try:
            table = Table(path, layout, _features(path, layout), raters)
            places = _places(path, layout)
            digest = sha256_of(path, *label_paths)
        except UserError as error:
            if len(paths) == 1:
                raise
            broken = True
            yield from _failing(path, layout, error)
            continue
        provenance = Provenance("import-table", affect.__version__, digest, parameters=parameters)
        for place in places:
            if place in origin:
                raise UserError(
                    f"{origin[place]} and {path} both hold recording {place.name!r} of "
                    f"{place.subject!r}: name a column with the schema's key recording"
                )
            origin[place] = path
            load = partial(_load, read, table, place, labels.get(place, {}), provenance)
            yield Pending(*place, provenance, load)
    if layout.labels and not broken and not labels.keys() & origin.keys():
        raise UserError(
            f"{label_paths[0]} labels none of the recordings: its first is "
            f"{'/'.join(min(labels))}, the features' first is {'/'.join(min(origin))}"
        )


def _failing(path: Path, schema: Schema, error: UserError) -> Iterator[Pending]:
    """A broken table's recordings, or the file itself where they cannot be known."""

    def load() -> Recording:
        raise error

    try:
        places = _places(path, schema)
    except UserError:
        places = [Place(schema.corpus, path.stem, path.name)]
    for place in places:
        yield Pending(*place, Provenance("import-table", affect.__version__, ""), load)


def _features(path: Path, schema: Schema) -> tuple[str, ...]:
    """The columns that are features; refuses a table that lacks a column of the schema."""
    available = _available(path)
    taken = _needed(schema) | set(schema.labels.labelled if schema.labels else [])
    free = [name for name in available if name not in taken]
    features: list[str] = []
    for pattern in schema.features:
        exact = [pattern] if pattern in available else []
        matching = exact or [name for name in free if fnmatchcase(name, pattern)]
        _require([] if matching else [pattern], free, path)
        features += matching
    _require(schema.rename, features, path)
    _require(_needed(schema) - {STEM}, available, path)
    return tuple(dict.fromkeys(features))


def _places(path: Path, schema: Schema) -> list[Place]:
    frame = _read(path, schema.keys, schema.keys).drop_duplicates()
    return [place for place, _ in _groups(frame, schema.keys, schema.corpus)]


def _content(table: Table) -> Content:
    schema, pivot = table.schema, table.schema.pivot
    frame = _read(table.path, _needed(schema) | {*table.features}, _identifiers(schema))
    parts = list(pivot.aggregate) if pivot else []
    if pivot and pivot.columns:
        parts = frame.loc[:, pivot.columns].drop_duplicates().sort_values(key=_as_numbers).tolist()
    rows = _groups(frame, schema.keys, schema.corpus)
    return Content({place: _sorted(own, schema) for place, own in rows}, parts)


def _tables(source: Path) -> list[Path]:
    if source.is_file() and source.suffix.lower() in _SUFFIXES:
        return [source]
    tables = columns.files_in(source, *_SUFFIXES, pattern="**/*")
    if not tables:
        raise UserError(f"{source} holds no table: looked for {' or '.join(_SUFFIXES)}")
    return tables


def _available(path: Path) -> list[str]:
    """The names of a file's columns."""
    if path.suffix.lower() == ".csv":
        return columns.header(path).names
    with _parquet_errors(path):
        return parquet.read_schema(path).names


@contextmanager
def _parquet_errors(path: Path) -> Iterator[None]:
    """Tells what pyarrow raises where a file is missing, damaged or none of Parquet's."""
    try:
        yield
    except (OSError, ValueError, ArrowException) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def _require(names: Iterable[str], available: Sequence[str], path: Path) -> None:
    for name in names:
        if name not in available:
            hint = suggestion(name, available)
            raise UserError(f"{path} has no column {name!r}: {hint}")


def _identifiers(layout: Rows) -> list[str]:
    """The columns that are read as text."""
    pivot = layout.pivot if isinstance(layout, Schema) else None
    placed = [pivot.index, pivot.columns] if pivot else []
    return [*layout.keys, *(name for name in placed if name)]


def _needed(layout: Rows) -> set[str]:
    """The columns that a schema names, features apart."""
    face = (layout.success, layout.confidence) if isinstance(layout, Schema) else ()
    single = {name for name in (layout.time, *face) if name}
    return {*_identifiers(layout), *layout.sort_by, *layout.labelled} | single


def _read(path: Path, wanted: Collection[str], identifiers: Collection[str]) -> pd.DataFrame:
    """Some columns of a table, identifiers as text."""
    available = _available(path)
    stem = {STEM} & (set(wanted) - set(available))
    # One column must be read even where none is wanted: it says how many rows there are.
    chosen = set(wanted) - stem or {available[0]}
    _require(sorted(chosen), available, path)
    if path.suffix.lower() == ".csv":
        frame = columns.read_csv(path, chosen.__contains__, identifiers.__contains__)
    else:
        # Without pandas' metadata, an index is a column like others.
        with _parquet_errors(path):
            content = parquet.read_table(path, columns=sorted(chosen))
            frame = content.to_pandas(ignore_metadata=True)
    if frame.empty:
        raise UserError(f"{path} has no rows")
    frame = frame.assign(**dict.fromkeys(stem, path.stem))
    for name in identifiers:
        missing = int(frame.loc[:, name].isna().sum())
        if missing:
            raise UserError(f"{path}: column {name!r} is empty in {missing} rows: fill it")
    return frame.assign(**{name: _as_text(frame.loc[:, name]) for name in identifiers})


def _as_text(cells: pd.Series) -> pd.Series:
    """Identifiers as text; whole numbers without a decimal point, however they are stored."""
    if cells.dtype.kind == "f" and bool((cells % 1 == 0).all()):
        cells = cells.astype(np.int64)
    return cells.astype(str)


def _groups(
    frame: pd.DataFrame, keys: Sequence[str], corpus: str
) -> Iterator[tuple[Place, pd.DataFrame]]:
    """Each recording's rows, in the table's order."""
    for key, rows in frame.groupby(list(keys)):
        names = cast("tuple[str, ...]", key)
        yield Place(corpus, names[0], names[-1]), rows


def _sorted(rows: pd.DataFrame, layout: Rows) -> pd.DataFrame:
    if not layout.sort_by:
        return rows
    return rows.sort_values(list(layout.sort_by), key=_as_numbers, kind="stable")


def _as_numbers(cells: pd.Series) -> pd.Series:
    """Cells as numbers where all are numbers, so that `10` follows `9`."""
    converted = columns.to_numbers(cells)
    return cells if converted.isna().any() else converted


def _label_groups(
    schema: Schema, paths: Sequence[Path], raters: tuple[str, ...]
) -> dict[Place, dict[str, Annotation]]:
    """The annotations of a table of labels, by recording."""
    labels = schema.labels
    if labels is None:
        return {}
    path = paths[0]
    frame = _read(path, _needed(labels), labels.keys)
    return {
        place: _annotated(_sorted(rows, labels), labels, path, raters)
        for place, rows in _groups(frame, labels.keys, schema.corpus)
    }


def _load(
    read: Callable[[Table], Content],
    table: Table,
    place: Place,
    labels: Mapping[str, Annotation],
    provenance: Provenance,
) -> Recording:
    schema, path, features = table.schema, table.path, list(table.features)
    content = read(table)
    rows = content.rows[place]
    names = [schema.rename.get(name, name) for name in features]
    if schema.pivot:
        rows = _pivoted(rows, table, schema.pivot, content.parts)
        features = _suffixed(features, content.parts)
        names = _suffixed(names, content.parts)
    success = _column(rows, schema.success, path)
    track = Track(
        source=path,
        time_s=_times(rows, schema, path),
        intensity=columns.numbers(rows, features, path),
        intensity_names=tuple(names),
        success=None if success is None else success > 0,
        confidence=_column(rows, schema.confidence, path),
    )
    return timeline.assemble(
        place,
        track,
        {**_annotated(rows, schema, path, table.raters), **labels},
        provenance,
        raters=table.raters,
        rate_hz=schema.rate_hz,
    )


def _pivoted(rows: pd.DataFrame, table: Table, pivot: Pivot, parts: Sequence[str]) -> pd.DataFrame:
    """One row a frame: features beside one another, the rest from the frame's first row."""
    schema, path, features = table.schema, table.path, list(table.features)
    frames = rows.groupby(pivot.index, sort=False)
    for name in schema.labelled:
        differs = frames[name].nunique(dropna=False) > 1
        if np.any(differs):
            raise UserError(f"{path}: {name!r} differs within frame {differs.idxmax()!r}")
    first = rows.drop_duplicates(pivot.index).set_index(pivot.index).drop(columns=features)
    for name in (schema.success, schema.confidence):
        if name:
            first[name] = frames[name].min()
    if pivot.columns:
        _refuse_twice(rows, pivot, path)
        wide = rows.pivot(index=pivot.index, columns=pivot.columns, values=features)
    else:
        columns.numbers(rows, features, path)  # refuses a cell that is no number, naming it
        wide = frames.agg({name: list(pivot.aggregate) for name in features})
    wide = wide.reindex(columns=pd.MultiIndex.from_product([features, parts]))
    return first.join(wide.set_axis(_suffixed(features, parts), axis=1))


def _refuse_twice(rows: pd.DataFrame, pivot: Pivot, path: Path) -> None:
    twice = rows[rows.duplicated([pivot.index, pivot.columns])]
    if len(twice):
        frame, part = twice.iloc[0][[pivot.index, pivot.columns]]
        raise UserError(f"{path}: frame {frame!r} has part {part!r} twice: remove one row")


def _suffixed(names: Sequence[str], parts: Sequence[str]) -> list[str]:
    return [f"{name}@{part}" for name in names for part in parts]


def _times(rows: pd.DataFrame, layout: Rows, path: Path) -> Float64[np.ndarray, " T"]:
    if layout.time:
        return columns.times(rows, layout.time, path)
    assert layout.rate_hz, "a schema names the time or the rate"
    return np.arange(len(rows)) / layout.rate_hz


def _column(rows: pd.DataFrame, name: str | None, path: Path) -> Float64[np.ndarray, " T"] | None:
    return columns.numbers(rows, [name], path)[:, 0] if name else None


def _annotated(
    rows: pd.DataFrame, layout: Rows, path: Path, raters: tuple[str, ...]
) -> dict[str, Annotation]:
    """Each dimension's labels: [L], or raters [R, L] with NaN for one who did not rate it."""
    time_s = _times(rows, layout, path)
    annotations = {}
    for dimension, named in layout.annotations.items():
        if isinstance(named, str):
            values = columns.numbers(rows, [named], path)[:, 0]
        else:
            values = np.full((len(raters), len(rows)), np.nan)
            present = [raters.index(rater) for rater in named]
            values[present] = columns.numbers(rows, list(named.values()), path).T
        annotations[dimension] = Annotation(path, time_s, values)
    return annotations
