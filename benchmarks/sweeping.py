"""What a sweep costs beside its trials: from the end of one to the start of the next."""

from __future__ import annotations

import statistics
import subprocess
import sys
from pathlib import Path

from measuring import Outcome, write_corpus

GOAL_S = 0.2
TRIALS = 12
AFFECT = """\
#!/bin/sh
date +%s.%N >>{folder}/begun
{affect} "$@"
code=$?
date +%s.%N >>{folder}/ended
exit $code
"""
EXPERIMENT = """\
name: sweeping
runs: runs
data: {cache: cache, corpus: synthetic, window_frames: 250}
model: {hidden_size: 8, layers: 1}
trainer: {max_epochs: 1, accelerator: cpu}
tracking: {mode: disabled}
"""
SWEEP = """\
name: sweeping
program: {folder}/affect
command: ["${{program}}", fit, -c, experiment.yaml, --evaluation.test=false, "${{args}}"]
method: bayes
metric: {{name: val/ccc/mean, goal: maximize}}
parameters:
  optimizer.lr: {{min: 0.001, max: 0.02}}
"""


def measure(folder: Path, quick: bool) -> Outcome:
    """Seconds between trials, which follow one another; the search is Bayesian."""
    write_corpus(folder / "cache", 6, 20.0)
    affect = Path(sys.executable).with_name("affect")
    (folder / "affect").write_text(AFFECT.format(folder=folder, affect=affect))
    (folder / "affect").chmod(0o755)
    (folder / "experiment.yaml").write_text(EXPERIMENT)
    (folder / "sweep.yaml").write_text(SWEEP.format(folder=folder))
    trials = 3 if quick else TRIALS
    subprocess.run(
        [affect, "sweep", "sweep.yaml", f"--count={trials}", "--folder=found"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    begun, ended = (_times(folder / name) for name in ("begun", "ended"))
    # what follows the last trial is the winner's test
    between = [after - before for before, after in zip(ended, begun[1:trials], strict=False)]
    median_s = statistics.median(between)
    return Outcome(
        goal=f"less than {GOAL_S:g} s a trial",
        met=median_s < GOAL_S,
        summary=f"{median_s:.3f} s from the end of a trial to the start of the next",
        repeats=len(between),
        settings={"trials": trials, "method": "bayes"},
        median={"between_s": median_s},
        samples={"between_s": between},
    )


def _times(path: Path) -> list[float]:
    return [float(line) for line in path.read_text().split()]
