"""What a run reports, to `metrics.csv` and to W&B: the only file that imports wandb.

`metrics.csv` is written in every mode; W&B works online with a key, offline without one, and not at
all when it is disabled. Steps are explicit, so that a run that goes on after a restart continues
its own curves.
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping, Sequence
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from affect.config import Experiment, TrackingConfig
from affect.errors import UserError
from affect.files import write_whole
from affect.rows import cut_row, read_rows

_MODES = ("online", "offline", "disabled")
_KEY_LENGTH = 40
_SERVER = "https://api.wandb.ai"


class Tracker:
    """Writes what a run reports; used by the main process alone.

    Args:
        folder: the run's folder.
        run_id: W&B's id of the run; the same id goes on with the same run.
        kind: `fit` or `federate`.
        experiment: its configuration is shown in W&B.
        config: the configuration as JSON values.

    Raises:
        UserError: W&B cannot be reached in the mode that was asked for, or `metrics.csv` is not
            what a run wrote.
    """

    def __init__(
        self, folder: Path, run_id: str, kind: str, experiment: Experiment, config: dict[str, Any]
    ) -> None:
        self._folder = folder
        self._path = folder / "metrics.csv"
        rows, self._cut = read_rows(self._path, ["step"])
        self._rows: list[dict[str, Any]] = [*rows]
        self._run = _start(folder, run_id, kind, experiment, config)

    def log(
        self,
        step: int,
        values: Mapping[str, float],
        distributions: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Append one row; rows of this step or later, left by a killed run, give way to it.

        Args:
            step: of the run.
            values: of the row.
            distributions: shown as histograms in W&B alone.

        Raises:
            UserError: the file cannot be written, or an earlier row of it was cut.
        """
        cut = self._gives_way(step)
        row = {"step": step, **values}
        kept = [old for old in self._rows if int(old["step"]) < step]
        columns = list(kept[0]) if kept else []
        appends = not cut and len(kept) == len(self._rows) and row.keys() <= set(columns)
        self._rows = [*kept, row]
        if appends:
            _append(self._path, row, columns)
        else:
            self._rows = _rewrite(self._path, self._rows)
        if self._run is not None:
            import wandb

            histograms = {
                name: wandb.Histogram(list(numbers))
                for name, numbers in (distributions or {}).items()
            }
            self._run.log({**row, **histograms}, step=step)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Set the run's final values.

        Raises:
            UserError: the last row of `metrics.csv` was cut.
        """
        self._gives_way(math.inf)
        if self._run is not None:
            self._run.summary.update(dict(values))

    def _gives_way(self, step: float) -> bool:
        """Whether a row that was cut is of this step or later; there is none from now on.

        Raises:
            UserError: it is of an earlier step.
        """
        if self._cut is None:
            return False
        after = int(self._rows[-1]["step"]) + 1 if self._rows else 0
        if int(self._cut.get("step", after)) < step:
            raise cut_row(self._path)
        self._cut = None
        return True

    def show(self, figures: Sequence[Path]) -> None:
        """Log figures under `figures/<name>`."""
        if self._run is not None:
            import wandb

            self._run.log({f"figures/{path.stem}": wandb.Image(str(path)) for path in figures})

    def keep_model(self, files: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Log files of the run's folder as one artifact of type `model`, at their places in it."""
        if self._run is not None:
            import wandb

            artifact = wandb.Artifact(f"model-{self._run.id}", "model", metadata=dict(metadata))
            for path in files:
                artifact.add_file(str(path), name=str(path.relative_to(self._folder)))
            self._run.log_artifact(artifact)

    def finish(self, exit_code: int = 0) -> None:
        """Flush and close; a code other than 0 marks the run as failed."""
        if self._run is not None:
            self._run.finish(exit_code=exit_code)


def mode_of(config: TrackingConfig) -> str:
    """`online`, `offline` or `disabled`: what `auto` means on this machine.

    The environment variable `WANDB_MODE` decides over `auto`, as users of W&B expect.
    """
    if config.mode != "auto":
        return config.mode
    asked = os.environ.get("WANDB_MODE")
    if not asked:
        return "online" if _has_key() else "offline"
    if asked not in _MODES:
        raise UserError(f"WANDB_MODE is {asked!r}: choose one of {', '.join(_MODES)}")
    return asked


def _has_key() -> bool:
    """Whether `wandb login` has left a key, or the environment holds one; asks no server."""
    if len(os.environ.get("WANDB_API_KEY", "")) >= _KEY_LENGTH:
        return True
    import wandb

    servers = (os.environ.get("WANDB_BASE_URL"), wandb.Settings().base_url, _SERVER)
    hosts = {urlsplit(server).netloc for server in servers if server}
    try:
        known = netrc(os.environ.get("NETRC") or str(Path("~/.netrc").expanduser())).hosts
    except (OSError, NetrcParseError):
        return False
    return bool(hosts & known.keys())


def _start(
    folder: Path, run_id: str, kind: str, experiment: Experiment, config: dict[str, Any]
) -> Any:
    if not os.environ.get("WANDB_MODE", "unset"):
        del os.environ["WANDB_MODE"]  # wandb takes an empty one for an unknown mode
    mode = mode_of(experiment.tracking)
    if mode == "disabled":
        return None
    import wandb

    tracking = experiment.tracking
    try:
        return wandb.init(
            id=run_id,
            name=f"{experiment.name}-{folder.name}",
            project=tracking.project,
            entity=tracking.entity or None,
            group=tracking.group or experiment.name,
            job_type=kind,
            tags=tracking.tags,
            config=config,
            dir=str(folder),
            mode=mode,  # pyright: ignore[reportArgumentType] - one of the three by mode_of
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
    except (wandb.Error, ValueError) as error:
        detail = " ".join(str(error).split())
        raise UserError(
            f"W&B cannot start {mode}: {detail}; `wandb login`, or pass --tracking.mode=offline"
        ) from error


def _append(path: Path, row: Mapping[str, Any], columns: Sequence[str]) -> None:
    try:
        with path.open("a", newline="") as file:
            csv.DictWriter(file, columns, restval="").writerow(row)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def _rewrite(path: Path, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Write all rows under the union of their keys, and return them so."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue().encode())
    return [{name: row.get(name, "") for name in names} for row in rows]
