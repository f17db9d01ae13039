"""What a restart costs: from the start of `affect fit --resume` to its first new epoch."""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

from measuring import Outcome, write_corpus

GOAL_S = 10.0
REPEATS = 5
GAVE_WAY = 75
EXPERIMENT = """\
name: resuming
runs: runs
data: {cache: cache, corpus: synthetic, window_frames: 250}
model: {hidden_size: 32, layers: 1}
trainer: {max_epochs: 100000, accelerator: cpu}
tracking: {mode: offline}
"""


def measure(folder: Path, quick: bool) -> Outcome:
    """Seconds from `affect fit --resume` to a further row of `metrics.csv`, an epoch included."""
    write_corpus(folder / "cache", 6, 20.0)
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    _until_a_row(folder, "-c", "experiment.yaml")
    (run,) = (folder / "runs" / "resuming").iterdir()
    repeats = 1 if quick else REPEATS
    samples = [_until_a_row(folder, "--resume", str(run)) for _ in range(repeats)]
    median_s = statistics.median(samples)
    return Outcome(
        goal=f"less than {GOAL_S:g} s before the first new step",
        met=median_s < GOAL_S,
        summary=f"{median_s:.2f} s to the end of the first new epoch",
        repeats=repeats,
        settings={"experiment": EXPERIMENT},
        median={"restart_s": median_s},
        samples={"restart_s": samples},
    )


def _until_a_row(folder: Path, *words: str) -> float:
    """Seconds until the fit has written a row more than there was; it is then asked to end."""
    affect, before = Path(sys.executable).with_name("affect"), _rows(folder)
    start_s = time.perf_counter()
    process = subprocess.Popen(
        [affect, "fit", *words], cwd=folder, env=os.environ, stderr=subprocess.DEVNULL
    )
    while _rows(folder) <= before:
        if process.poll() is not None:
            raise RuntimeError(f"affect fit ended with status {process.returncode}")
        time.sleep(0.01)
    taken_s = time.perf_counter() - start_s
    process.send_signal(signal.SIGTERM)
    if process.wait() != GAVE_WAY:
        raise RuntimeError(f"affect fit ended with status {process.returncode}")
    return taken_s


def _rows(folder: Path) -> int:
    return sum(len(path.read_text().splitlines()) for path in folder.rglob("metrics.csv"))
