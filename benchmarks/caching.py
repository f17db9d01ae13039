"""Reading, listing and staging a cache whose files are in the system's page cache."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
from pathlib import Path

import torch
from measuring import Outcome, seconds_of, timed, write_corpus
from torch import Tensor

from affect import store
from affect.config import DataConfig
from affect.data.preparation import Preparation, SeriesCache, prepare
from affect.data.staging import VARIABLE, staged
from affect.store import Entry

GOAL_S, GOAL_SPEED = 1.0, 0.5
REPEATS = 5
_MIB = 2**20


def measure_reading(folder: Path, quick: bool) -> Outcome:
    """Seconds from RECOLA's number of recordings to tensors: as stored, and as a network sees them.

    The second takes the gold standard from the raters, delays the labels and standardises.
    """
    write_corpus(folder, 2 if quick else 27, 20.0 if quick else 300.0)
    entries = store.entries(folder)
    preparation = prepare({"train": entries}, DataConfig())
    repeats = 1 if quick else REPEATS
    samples = {
        "store_s": seconds_of(lambda: _as_stored(entries), repeats),
        "series_s": seconds_of(lambda: _as_series(entries, preparation), repeats),
    }
    median = {name: statistics.median(values) for name, values in samples.items()}
    return Outcome(
        goal=f"{len(entries)} recordings to tensors in less than {GOAL_S:g} s, either way",
        met=max(median.values()) < GOAL_S,
        summary=f"{median['store_s']:.3f} s as stored, {median['series_s']:.3f} s prepared",
        repeats=repeats,
        settings={
            "recordings": len(entries),
            "frames_per_recording": entries[0].frames,
            "features": preparation.features,
            "threads": torch.get_num_threads(),
        },
        median=median,
        samples=samples,
    )


def measure_listing(folder: Path, quick: bool) -> Outcome:
    """Seconds of `store.entries` on a large cache, a hundred recordings a subject."""
    recordings = 200 if quick else 10_000
    _write_copies(folder, recordings)
    repeats = 1 if quick else REPEATS
    samples = seconds_of(lambda: store.entries(folder), repeats)
    median_s = statistics.median(samples)
    return Outcome(
        goal=f"{recordings:,} recordings in less than {GOAL_S:g} s",
        met=median_s < GOAL_S and len(store.entries(folder)) == recordings,
        summary=f"{median_s:.3f} s",
        repeats=repeats,
        settings={"recordings": recordings},
        median={"entries_s": median_s},
        samples={"entries_s": samples},
    )


def measure_staging(folder: Path, quick: bool) -> Outcome:
    """Seconds of the first job on a node that copies a cache to its disk, against `cp -r`."""
    long, short = folder / "long", folder / "short"
    _write_copies(long, 5 if quick else 500, 300.0)
    _write_copies(short, 200 if quick else 2000)
    repeats = 1 if quick else REPEATS
    samples: dict[str, list[float]] = {}
    for cache in (long, short):
        entries = store.entries(cache)
        for number in range(repeats + 1):
            taken = {
                "staged": timed(lambda: _stage(entries, folder / "staged")),  # noqa: B023
                "cp": timed(lambda: _cp(cache, folder / "copied")),  # noqa: B023
            }
            shutil.rmtree(folder / "staged")
            shutil.rmtree(folder / "copied")
            for name, seconds in taken.items():
                samples.setdefault(f"{cache.name}_{name}_s", []).extend([seconds] if number else [])
    median = {name: statistics.median(values) for name, values in samples.items()}
    speed = {
        name: median[f"{name}_cp_s"] / median[f"{name}_staged_s"] for name in ("long", "short")
    }
    mb = sum(path.stat().st_size for path in long.rglob("*.h5")) / 1e6
    return Outcome(
        goal=f"at least {GOAL_SPEED:g} of the speed of `cp -r`, which checks nothing",
        met=min(speed.values()) >= GOAL_SPEED,
        summary=f"{speed['long']:.2f} of the speed of `cp -r` with long recordings "
        f"({mb / median['long_staged_s']:.0f} MB/s), {speed['short']:.2f} with 2000 tiny ones "
        f"({median['short_staged_s']:.2f} s)",
        repeats=repeats,
        settings={"long": len(store.entries(long)), "short": len(store.entries(short))},
        median={**median, **{f"{name}_speed": value for name, value in speed.items()}},
        samples=samples,
    )


def _stage(entries: list[Entry], folder: Path) -> None:
    os.environ[VARIABLE] = str(folder)
    if not all(entry.path.is_relative_to(folder) for entry in staged(entries)):
        raise RuntimeError("nothing was staged")


def _cp(cache: Path, folder: Path) -> None:
    subprocess.run(["cp", "-r", cache, folder], check=True)


def _as_stored(entries: list[Entry]) -> list[Tensor]:
    return [torch.from_numpy(store.read(entry.path).intensity) for entry in entries]


def _as_series(entries: list[Entry], preparation: Preparation) -> list[tuple[Tensor, Tensor]]:
    series = SeriesCache(preparation, DataConfig().memory_mb * _MIB)
    items = [series[entry] for entry in entries]
    return [(torch.from_numpy(item.features), torch.from_numpy(item.labels)) for item in items]


def _write_copies(cache: Path, recordings: int, seconds: float = 0.4) -> None:
    """One recording under many names: a listing opens every file, and reads headers alone."""
    write_corpus(cache / "original", 1, seconds)
    (original,) = store.entries(cache / "original")
    for index in range(recordings):
        subject, name = divmod(index, 100)
        path = store.path_of(cache, "copies", f"P{subject}", str(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original.path, path)
    shutil.rmtree(cache / "original")
