"""Reading recordings from a cache, and listing a cache; files are in the system's page cache."""

from __future__ import annotations

import shutil
import statistics
from pathlib import Path

import torch
from measuring import Outcome, seconds_of, write_corpus
from torch import Tensor

from affect import store
from affect.config import DataConfig
from affect.data.preparation import Preparation, SeriesCache, prepare
from affect.store import Entry

GOAL_S = 1.0
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


def _as_stored(entries: list[Entry]) -> list[Tensor]:
    return [torch.from_numpy(store.read(entry.path).intensity) for entry in entries]


def _as_series(entries: list[Entry], preparation: Preparation) -> list[tuple[Tensor, Tensor]]:
    series = SeriesCache(preparation, DataConfig().memory_mb * _MIB)
    items = [series[entry] for entry in entries]
    return [(torch.from_numpy(item.features), torch.from_numpy(item.labels)) for item in items]


def _write_copies(cache: Path, recordings: int) -> None:
    """One tiny recording under many names: a listing opens every file, and reads headers alone."""
    write_corpus(cache / "original", 1, 0.4)
    (original,) = store.entries(cache / "original")
    for index in range(recordings):
        subject, name = divmod(index, 100)
        path = store.path_of(cache, "copies", f"P{subject}", str(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(original.path, path)
    shutil.rmtree(cache / "original")
