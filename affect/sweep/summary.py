"""What a sweep has come to: the ranking, the winner's experiment file and its test, figures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from affect import config
from affect.errors import UserError
from affect.files import finite, write_whole
from affect.sweep import figures
from affect.sweep.agent import none_finished
from affect.sweep.file import SweepFile
from affect.sweep.folder import Sweep, Trial
from affect.sweep.space import Parameter, searched
from affect.training import run as runs
from affect.training.inference import score_run

_SHOWN = 30
_RANKED = ("done", "stopped", "failed", "interrupted", "running")


@dataclass(frozen=True)
class Summary:
    """A sweep's outcome.

    Attributes:
        sweep: which one.
        ranking: all trials, the best first; those that did not finish come last.
        experiment: the winner's experiment file.
        test: the winner's test metrics.
        figures: that were drawn.
    """

    sweep: Sweep
    ranking: list[Trial]
    experiment: Path
    test: dict[str, float]
    figures: list[Path]

    @property
    def best(self) -> Trial:
        """The winner."""
        return self.ranking[0]

    def to_json(self) -> dict[str, Any]:
        """All of it as JSON values."""
        return {
            "sweep": str(self.sweep.folder),
            "metric": self.sweep.file.metric.name,
            "best": {
                "trial": self.best.number,
                "value": self.best.value,
                "parameters": self.best.configuration,
                "run": self.best.run,
                "experiment": str(self.experiment),
            },
            "test": self.test,
            "trials": [
                {
                    "trial": trial.number,
                    "status": trial.status,
                    "value": trial.value,
                    "parameters": trial.configuration,
                    "run": trial.run,
                    "seconds": trial.seconds,
                }
                for trial in self.ranking
            ],
            "figures": [str(path) for path in self.figures],
        }


def summarise(sweep: Sweep, *, device: str = "auto") -> Summary:
    """Rank all trials, test the winner, and write its experiment file and the figures.

    The test is read for the winner alone, and kept in `test.json`.

    Args:
        sweep: at least one trial of which is done.
        device: that computes the test's predictions.

    Raises:
        UserError: no trial is done, or the folder cannot be written.
    """
    ranking = ranked(sweep.file, sweep.trials())
    done = [trial for trial in ranking if trial.status == "done"]
    if not done:
        failed = [trial for trial in ranking if trial.status == "failed"]
        missing = f"no trial of {sweep.folder} is done: go on with affect sweep --resume"
        raise UserError(none_finished(sweep, failed) if failed else missing)
    experiment = _write_experiment(sweep, done[0])
    drawn = figures.draw(sweep.file, done, sweep.folder)
    return Summary(sweep, ranking, experiment, _tested(sweep, done[0], device), drawn)


def ranked(file: SweepFile, trials: Sequence[Trial]) -> list[Trial]:
    """The trials from the best to the worst; of equal ones the earlier first."""

    def order(trial: Trial) -> tuple[int, float, int]:
        cost = 0.0 if trial.value is None else file.metric.cost(trial.value)
        return _RANKED.index(trial.status), cost, trial.number

    return sorted(trials, key=order)


def to_table(summary: Summary) -> Table:
    """The ranking with the parameters that vary, and what the winner's test came to."""
    file = summary.sweep.file
    parameters = searched(file.space)
    left_out = max(len(summary.ranking) - _SHOWN, 0)
    table = Table(box=SIMPLE_HEAD, show_edge=False, title_justify="left", caption_justify="left")
    table.title = f"{summary.sweep.folder}: {len(summary.ranking)} trials"
    tested = summary.test.get(file.metric.name.replace("val/", "test/", 1))
    table.caption = "\n".join(
        [
            *([f"{left_out} more in --json"] if left_out else []),
            *([] if tested is None else [f"the winner's test: {tested:.4f}"]),
            f"the winner's experiment: {summary.experiment}",
            *(f"figure: {path}" for path in summary.figures),
        ]
    )
    for name in ("", "trial", "status", file.metric.name, *(p.key for p in parameters)):
        table.add_column(name, justify="right", overflow="fold")
    for place, trial in enumerate(summary.ranking[:_SHOWN], start=1):
        value = "" if trial.value is None else f"{trial.value:.4f}"
        cells = [_cell(parameter, trial) for parameter in parameters]
        table.add_row(str(place), str(trial.number), trial.status, value, *cells)
    return table


def _cell(parameter: Parameter, trial: Trial) -> str:
    value = parameter.value(trial.point[parameter.key])
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _write_experiment(sweep: Sweep, best: Trial) -> Path:
    """The winner's resolved experiment, which reads the test again."""
    run = runs.open_run(Path(best.run))
    experiment = run.experiment
    experiment = replace(experiment, evaluation=replace(experiment.evaluation, test=True))
    kind = run.record["kind"]
    path = sweep.folder / "best.yaml"
    header = (
        f"# The best of sweep {sweep.id}: trial {best.number}, "
        f"{sweep.file.metric.name} {best.value}.\n#   affect {kind} -c {path}\n"
    )
    write_whole(path, (header + config.to_yaml(experiment)).encode())
    return path


def _tested(sweep: Sweep, best: Trial, device: str) -> dict[str, float]:
    path = sweep.folder / "test.json"
    if path.exists():
        known = json.loads(path.read_text())
        if known["trial"] == best.number:
            return known["metrics"]
    metrics = score_run(runs.open_run(Path(best.run)), "test", cache=None, device=device)
    record = finite({"trial": best.number, "metrics": metrics})
    write_whole(path, json.dumps(record, indent=2).encode())
    return metrics
