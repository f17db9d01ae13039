"""Which subjects train, validate and test: disjoint by subject, the same on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import yaml

from affect.config import SplitConfig
from affect.errors import UserError
from affect.store import Entry


@dataclass(frozen=True)
class Fold:
    """One division of the subjects.

    Attributes:
        index: 0, 1, ... within the split.
        train, val, test: subjects, sorted, no subject in two of them.
    """

    index: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse a subject that stands in two parts."""
        for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
            shared = set(getattr(self, first)) & set(getattr(self, second))
            if shared:
                raise UserError(
                    f"subject {min(shared)!r} is in both {first} and {second}: "
                    "mend data.split so that every subject is in one part"
                )

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Fold:
        """The fold that `dataclasses.asdict` and JSON have turned into lists."""
        parts = {part: tuple(values[part]) for part in ("train", "val", "test")}
        return cls(values["index"], **parts)


def split(frames: Mapping[str, int], config: SplitConfig) -> list[Fold]:
    """The folds of a corpus.

    Ranks come from a hash of seed and subject, not from a random generator, so they are the same
    on every machine and a new subject does not reorder the others.

    Args:
        frames: each subject's number of frames; folds are balanced by it.
        config: kind, sizes and seed.

    Returns:
        All folds, or the one that `config.fold` names; every part of each is not empty.

    Raises:
        UserError: too few subjects, an unknown subject or fold, a subject in two parts.
    """
    if config.kind == "listed":
        _refuse_unmatched(frames, config)
    folds = _folds(frames, config)
    refuse_empty(folds)
    return folds if config.fold is None else [_chosen(folds, config.fold)]


def divided(frames: Mapping[str, int], config: SplitConfig) -> Fold:
    """The subjects of one of several places, by the rules that hold for all of them.

    A part may be empty here, and a pattern may match nobody.

    Args:
        frames: the number of frames of each subject at this place.
        config: rules that give one fold, see `refuse_folds`.

    Raises:
        UserError: too few subjects for the rules, an unknown subject or fold.
    """
    return _chosen(_folds(frames, config), config.fold or 0)


def refuse_folds(config: SplitConfig) -> None:
    """Refuse rules that give several folds.

    Raises:
        UserError: they do.
    """
    if config.fold is None and config.kind not in ("ratio", "listed"):
        raise UserError(
            f"data.split.kind {config.kind} gives several folds, of which a deployment trains "
            "one: name it with data.split.fold"
        )


def refuse_missing(folds: Iterable[Fold], entries: Iterable[Entry]) -> None:
    """Refuse folds that name a subject of whom no recording is there.

    Raises:
        UserError: naming the subject.
    """
    there = {entry.subject for entry in entries}
    for fold in folds:
        missing = {*fold.train, *fold.val, *fold.test} - there
        if missing:
            raise UserError(
                f"no recording of subject {min(missing)!r}, who is in fold {fold.index}: "
                "import the corpus again or name its cache"
            )


def ranked(subjects: Iterable[str], seed: int, purpose: str) -> list[str]:
    """The subjects in an order that depends on seed, purpose and each subject's name alone."""
    return sorted(
        subjects,
        key=lambda subject: hashlib.sha256(f"{seed}/{purpose}/{subject}".encode()).digest(),
    )


def _folds(frames: Mapping[str, int], config: SplitConfig) -> list[Fold]:
    if config.kind == "ratio":
        return [_ratio(frames, config)]
    if config.kind == "listed":
        return [_listed(frames, config)]
    tests = enumerate(_test_parts(frames, config))
    return [_around(index, test, frames, config) for index, test in tests]


def _chosen(folds: Sequence[Fold], fold: int) -> Fold:
    if not 0 <= fold < len(folds):
        raise UserError(f"data.split.fold {fold} is not one of 0 to {len(folds) - 1}")
    return folds[fold]


def _ratio(frames: Mapping[str, int], config: SplitConfig) -> Fold:
    order = ranked(frames, config.seed, "test")
    count = max(min(_share(len(order), config.test_fraction), len(order) - 2), 0)
    return _around(0, order[:count], frames, config)


def _refuse_unmatched(frames: Mapping[str, int], config: SplitConfig) -> None:
    for part in ("train", "val", "test"):
        for pattern in getattr(config, part):
            if not any(fnmatchcase(subject, pattern) for subject in frames):
                raise UserError(f"data.split.{part}: no subject is called {pattern!r}")


def _listed(frames: Mapping[str, int], config: SplitConfig) -> Fold:
    parts = [
        tuple(sorted(s for s in frames if any(fnmatchcase(s, p) for p in patterns)))
        for patterns in (config.train, config.val, config.test)
    ]
    return Fold(0, *parts)


def _test_parts(frames: Mapping[str, int], config: SplitConfig) -> list[list[str]]:
    if config.kind == "leave_one_subject_out":
        return [[subject] for subject in sorted(frames)]
    if config.kind == "file":
        return _parts_in(Path(config.file), frames)
    if config.folds > len(frames):
        raise UserError(
            f"data.split.folds is {config.folds}, the corpus has {len(frames)} subjects"
        )
    parts: list[list[str]] = [[] for _ in range(config.folds)]
    sizes = [0] * config.folds
    for subject in sorted(ranked(frames, config.seed, "fold"), key=lambda s: -frames[s]):
        smallest = sizes.index(min(sizes))
        parts[smallest].append(subject)
        sizes[smallest] += frames[subject]
    return parts


def _parts_in(path: Path, frames: Mapping[str, int]) -> list[list[str]]:
    try:
        folds = yaml.safe_load(path.read_text())["folds"]
        parts = [[str(subject) for subject in part] for part in folds]
    except OSError as error:
        raise UserError(f"cannot read data.split.file {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} must hold `folds`, a list of lists of subjects") from error
    listed = [subject for part in parts for subject in part]
    unknown = set(listed) - set(frames)
    if unknown:
        raise UserError(f"{path} names subject {min(unknown)!r}, which the corpus does not have")
    if len(listed) > len(set(listed)):
        raise UserError(f"{path} has a subject in two folds")
    return parts


def _around(
    index: int, test: Sequence[str], frames: Mapping[str, int], config: SplitConfig
) -> Fold:
    """The fold with this test part: validation subjects are drawn from the rest."""
    rest = ranked(set(frames) - set(test), config.seed, f"val/{index}")
    count = _share(len(rest), config.val_fraction)
    return Fold(
        index, tuple(sorted(rest[count:])), tuple(sorted(rest[:count])), tuple(sorted(test))
    )


def _share(count: int, fraction: float) -> int:
    """A rounded share that leaves at least one on either side, where there are two."""
    return max(min(max(round(count * fraction), 1), count - 1), 0)


def refuse_empty(folds: Iterable[Fold]) -> None:
    """Refuse folds without anybody in a part.

    Raises:
        UserError: naming the part.
    """
    for fold in folds:
        for part in ("train", "val", "test"):
            if not getattr(fold, part):
                raise UserError(
                    f"fold {fold.index} has no {part} subject: import more subjects "
                    "or mend data.split"
                )
