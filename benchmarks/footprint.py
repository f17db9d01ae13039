"""Memory of the demo's training, and how time and memory of an experiment grow with its corpus."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from measuring import KIB_PER_MIB, Outcome, apart, peak_memory_mib, timed, write_corpus

DEMO = Path(__file__).parents[1] / "experiments" / "demo.yaml"
QUICK_FLAGS = [
    "--trainer.max_epochs=1",
    "--tracking.mode=disabled",
    "--evaluation.importance_repeats=0",
]
GOAL_MIB = 2048
GOAL_RATIO = 1.5
GOAL_GROWTH_MIB = 256
MEMORY_LIMIT_MIB = 16
SIZES = {10: 9, 100: 5, 1000: 3}
"""Recordings, and how often each size is measured: the smallest vary most."""
FEWEST = 3
"""Recordings of the smallest corpus that can be split."""
RECORDING_S = 29.96
RECORDING_FRAMES = 750
"""At 25 frames a second; three windows of 250 frames, none padded."""


def measure_memory(folder: Path, quick: bool) -> Outcome:
    """Peak memory of `affect fit -c experiments/demo.yaml` on a corpus of the demo's size."""
    recordings, seconds = (6, 40.0) if quick else (12, 150.0)
    write_corpus(folder / "cache", recordings, seconds)
    flags = QUICK_FLAGS if quick else []
    repeats = 1 if quick else 3
    runs = [_demo(folder, f"repeat{index}", flags) for index in range(repeats)]
    samples = {name: [run[name] for run in runs] for name in runs[0]}
    median = {name: statistics.median(values) for name, values in samples.items()}
    return Outcome(
        goal=f"the demo's training in less than {GOAL_MIB} MiB",
        met=max(samples["ru_maxrss_mib"]) < GOAL_MIB,
        summary=f"{median['ru_maxrss_mib']:.0f} MiB (run.json says "
        f"{median['peak_memory_mib']:.0f}), {median['wall_time_s']:.0f} s",
        repeats=repeats,
        settings={"recordings": recordings, "seconds": seconds, "flags": flags},
        median=median,
        samples=samples,
    )


def measure_scaling(folder: Path, quick: bool) -> Outcome:
    """Time and peak memory of preparation, an epoch and evaluation, by the size of the corpus.

    Each size has a process of its own. What a fit costs whatever the corpus is measured beside it,
    on the smallest corpus that can be split, and subtracted.
    """
    sizes = {4: 1, 8: 1} if quick else SIZES
    for recordings in (FEWEST, *sizes):
        write_corpus(folder / str(recordings), recordings, RECORDING_S)
    runs = {size: apart("footprint:time_fits", folder, size, sizes[size]) for size in sizes}
    rates = {
        size: statistics.median(run["seconds_per_million_frames"]) for size, run in runs.items()
    }
    peaks = {size: run["peak_memory_mib"] for size, run in runs.items()}
    smallest, largest = min(sizes), max(sizes)
    ratio, growth_mib = rates[largest] / rates[smallest], peaks[largest] - peaks[smallest]
    return Outcome(
        goal=f"a frame of {largest} recordings costs at most {GOAL_RATIO} of one of {smallest}, "
        f"and the peak of memory grows by less than {GOAL_GROWTH_MIB} MiB",
        met=ratio <= GOAL_RATIO and growth_mib < GOAL_GROWTH_MIB,
        summary=f"{_series(rates)} s a million frames, ratio {ratio:.2f}; {_series(peaks)} MiB",
        repeats=min(sizes.values()),
        settings={
            "recordings": list(sizes),
            "frames_per_recording": RECORDING_FRAMES,
            "data.memory_mb": MEMORY_LIMIT_MIB,
        },
        median={
            "seconds_per_million_frames": rates,
            "ratio": ratio,
            "peak_memory_mib": peaks,
            "growth_mib": growth_mib,
            "growth_bytes_per_frame": growth_mib
            * 2**20
            / ((largest - smallest) * RECORDING_FRAMES),
        },
        samples={str(size): run for size, run in runs.items()},
    )


def time_fits(folder: Path, recordings: int, repeats: int) -> dict[str, Any]:
    """What a million frames more cost a fit, in seconds, and this process's peak memory."""
    pairs = [
        (timed(lambda: _fit(folder, FEWEST)), timed(lambda: _fit(folder, recordings)))
        for _ in range(repeats + 1)
    ][1:]  # the first warms up
    million_frames = (recordings - FEWEST) * RECORDING_FRAMES / 1e6
    return {
        "fixed_s": [fixed_s for fixed_s, _ in pairs],
        "whole_s": [whole_s for _, whole_s in pairs],
        "seconds_per_million_frames": [(whole - fixed) / million_frames for fixed, whole in pairs],
        "peak_memory_mib": peak_memory_mib(),
    }


def _fit(folder: Path, recordings: int) -> None:
    from affect.config import DataConfig, Experiment, ModelConfig, TrackingConfig, TrainerConfig
    from affect.training.fit import fit

    experiment = Experiment(
        runs=str(folder / "runs"),
        data=DataConfig(
            cache=str(folder / str(recordings)),
            window_frames=250,
            batch_size=4,
            eval_batch_size=2,
            memory_mb=MEMORY_LIMIT_MIB,
        ),
        model=ModelConfig(hidden_size=32, layers=1),
        trainer=TrainerConfig(max_epochs=1, accelerator="cpu", devices=1, progress=False),
        tracking=TrackingConfig(mode="disabled"),
    )
    fit(experiment, draw=lambda _: [])


def _demo(folder: Path, name: str, flags: list[str]) -> dict[str, float]:
    """Peak memory as the kernel and as `run.json` tell it, and the run's wall time."""
    command = [sys.executable, "-m", "affect", "fit", "-c", str(DEMO), f"--name={name}"]
    paths = [f"--data.cache={folder / 'cache'}", f"--runs={folder / 'runs'}"]
    quiet = ["--trainer.progress=false"]
    process = subprocess.Popen([*command, *paths, *quiet, *flags], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, process.args)
    (record,) = (folder / "runs" / name).glob("*/run.json")
    run = json.loads(record.read_text())
    return {
        "ru_maxrss_mib": usage.ru_maxrss / KIB_PER_MIB,
        "peak_memory_mib": run["peak_memory_mib"],
        "wall_time_s": run["wall_time_s"],
    }


def _series(values: dict[int, float]) -> str:
    return ", ".join(f"{value:.0f}" for value in values.values())
