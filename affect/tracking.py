"""What a run reports, to `metrics.csv` and to W&B: the only file that imports wandb.

`metrics.csv` is written in every mode; W&B works online with a key, offline without one, and not at
all when it is disabled. Steps are explicit, so that a run that goes on after a restart continues
its own curves.

W&B keeps a run's last rows in memory. A part of an offline run that was killed is therefore thrown
away when the run goes on, and its rows are told again from `metrics.csv`. In a job W&B writes to
the node's own disk (`AFFECT_LOCAL`); what it has closed is moved to `wandb/` of the run's folder.
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from math import inf
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from affect.config import Experiment, TrackingConfig
from affect.errors import UnwritableError, UserError
from affect.files import require_writable, write_whole
from affect.rows import cut_row, read_rows

LOCAL_VARIABLE = "AFFECT_LOCAL"
"""Names a folder of a job's own on its node's disk."""
SYNCED = ".wandb.synced"
"""What `wandb sync` lays beside the log of a part that it has uploaded."""
_CLOSED = "closed.json"
_OF_SWEEP = ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH")
"""Hidden from W&B offline: a server refuses a run of a sweep that it does not know."""
_PATIENCE_S = 5.0
_VIEWER = "query Viewer { viewer { id } }"
_LEAST_FREE = 64 * 2**20
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
        self._told = _drop_unclosed(folder / "wandb")
        self._place = _place(folder, run_id)
        self._run: Any = _start(self._place, folder, run_id, kind, experiment, config)
        self._offline = self._run is not None and self._run.settings.mode == "offline"

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
            with self._heard():
                self._tell_again(step)
                self._run.log({**row, **histograms}, step=step)

    def summarise(self, values: Mapping[str, Any]) -> None:
        """Set the run's final values.

        Raises:
            UserError: the last row of `metrics.csv` was cut.
        """
        self._gives_way(inf)
        if self._run is not None:
            with self._heard():
                self._tell_again(inf)
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

            images = {f"figures/{path.stem}": wandb.Image(str(path)) for path in figures}
            with self._heard():
                self._run.log(images)

    def keep_model(self, files: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        """Log files of the run's folder as one artifact of type `model`, at their places in it."""
        if self._run is not None:
            import wandb

            artifact = wandb.Artifact(f"model-{self._run.id}", "model", metadata=dict(metadata))
            for path in files:
                # taken where it lies: W&B would keep a copy in the user's home for ever
                place, name = str(path.resolve()), str(path.relative_to(self._folder))
                artifact.add_file(place, name=name, policy="immutable")
            with self._heard():
                self._run.log_artifact(artifact)

    def finish(self, exit_code: int = 0) -> None:
        """Flush and close; a code other than 0 marks the run as failed.

        Raises:
            UserError: what W&B has written cannot be kept.
        """
        if self._run is None:
            return
        with self._heard():
            self._tell_again(inf)
            self._run.finish(exit_code=exit_code)
        if self._run is None:
            return  # its part is not whole: the next start tells the rows again
        if self._offline:
            import wandb

            wandb.teardown()  # the log is whole only once W&B's own process has ended
        try:
            _keep(self._place / "wandb", self._folder / "wandb")
        except (OSError, shutil.Error) as error:
            raise UnwritableError(
                f"cannot keep W&B's files in {self._folder}: {error}; free space there"
            ) from error
        if self._offline and self._rows:
            _close(self._folder / "wandb", int(self._rows[-1]["step"]))

    def _tell_again(self, step: float) -> None:
        """Log the rows before a step that no closed part of an offline run holds."""
        if self._offline:
            for row in self._rows:
                if self._told < int(row["step"]) < step:
                    values = {name: float(value) for name, value in row.items() if value != ""}
                    self._run.log(values, step=int(row["step"]))
        self._told = max(self._told, step)

    @contextmanager
    def _heard(self) -> Iterator[None]:
        """Tell W&B in the block; the run goes on without W&B where W&B's own process has ended.

        SLURM's SIGTERM before a preemption goes to that process as well, which ends at once.
        """
        try:
            yield
        except ConnectionError:
            import wandb

            self._run = None
            with suppress(Exception):  # it says once more that nobody is there, then no more
                wandb.teardown(exit_code=1)
            sys.stderr.write("affect: W&B's process has ended: what follows is in metrics.csv\n")


def mode_of(config: TrackingConfig) -> str:
    """`online`, `offline` or `disabled`: what `auto` means on this machine.

    The environment variable `WANDB_MODE` decides over `auto`, as users of W&B expect.
    """
    if config.mode != "auto":
        return config.mode
    asked = os.environ.get("WANDB_MODE")
    if not asked:
        return "online" if key() else "offline"
    if asked not in _MODES:
        raise UserError(f"WANDB_MODE is {asked!r}: choose one of {', '.join(_MODES)}")
    return asked


def _reached(mode: str, config: TrackingConfig) -> str:
    """The mode, `offline` where nobody asked for `online` and no server answers.

    Raises:
        UserError: as `require_server`.
    """
    if mode == "online":
        try:
            require_server()
        except NoServerError as error:
            if config.mode == "online" or os.environ.get("WANDB_MODE") == "online":
                raise
            sys.stderr.write(f"affect: {error}: this run is offline (`affect upload` later)\n")
            return "offline"
    return mode


def key() -> str:
    """The key that `wandb login` has left, or the environment holds; empty without one."""
    given = os.environ.get("WANDB_API_KEY", "")
    if len(given) >= _KEY_LENGTH:
        return given
    hosts = {urlsplit(url).netloc: None for url in (server(), _SERVER)}
    try:
        known = netrc(os.environ.get("NETRC") or str(Path("~/.netrc").expanduser())).hosts
    except (OSError, NetrcParseError):
        return ""
    return next((known[host][2] for host in hosts if host in known), "")


def server() -> str:
    """The address of W&B's server; asks nobody."""
    import wandb

    return os.environ.get("WANDB_BASE_URL") or wandb.Settings().base_url


def require_server() -> None:
    """Ask W&B's server who we are, which W&B itself goes on trying for minutes.

    Raises:
        NoServerError: nobody answers.
        UserError: there is no key, or it is not taken.
    """
    import httpx

    known, url = key(), server().rstrip("/")
    if not known:
        raise UserError(f"no key for W&B's server {url}: `wandb login`, or export WANDB_API_KEY")
    try:
        answer = httpx.post(
            f"{url}/graphql", auth=("api", known), json={"query": _VIEWER}, timeout=_PATIENCE_S
        )
        refused = answer.status_code in {401, 403}
        told = {} if refused else answer.raise_for_status().json()
    except (httpx.HTTPError, ValueError) as error:
        raise NoServerError(
            f"W&B's server {url} does not answer ({error}): run this where there is internet, such "
            "as on a login node, or stay offline"
        ) from None
    if not (told.get("data") or {}).get("viewer"):
        raise UserError(
            f"{url} does not take the key (expired, or another server's): `wandb login "
            "--relogin`, or export a new WANDB_API_KEY"
        )


class NoServerError(UserError):
    """W&B's server cannot be reached from here."""


def _place(folder: Path, run_id: str) -> Path:
    """Where W&B writes while the run goes on.

    Raises:
        UserError: a job's own folder is full, or cannot be written.
    """
    local = os.environ.get(LOCAL_VARIABLE)
    if not local:
        return folder
    place = Path(local) / f"run-{run_id}"
    require_writable(place)
    free = shutil.disk_usage(place).free
    if free < _LEAST_FREE:
        raise UnwritableError(
            f"the node's disk is full: {free / 2**20:.0f} MiB free in {local}; free space there, "
            "or name another folder as scratch in the profile"
        )
    return place


def _start(
    place: Path,
    folder: Path,
    run_id: str,
    kind: str,
    experiment: Experiment,
    config: dict[str, Any],
) -> Any:
    if not os.environ.get("WANDB_MODE", "unset"):
        del os.environ["WANDB_MODE"]  # wandb takes an empty one for an unknown mode
    mode = _reached(mode_of(experiment.tracking), experiment.tracking)
    if mode == "disabled":
        return None
    import wandb

    tracking = experiment.tracking
    sweep = os.environ.get(_OF_SWEEP[0], "") if mode == "offline" else ""
    hidden = {name: os.environ.pop(name) for name in _OF_SWEEP if sweep and name in os.environ}
    try:
        return wandb.init(
            id=run_id,
            name=f"{experiment.name}-{folder.name}",
            project=tracking.project,
            entity=tracking.entity or None,
            group=tracking.group or sweep or experiment.name,
            job_type=kind,
            tags=tracking.tags,
            config=config,
            dir=str(place.absolute()),
            mode=mode,  # pyright: ignore[reportArgumentType] - one of the three by mode_of
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
    except (wandb.Error, ValueError) as error:
        detail = " ".join(str(error).split())
        raise UserError(
            f"W&B cannot start {mode}: {detail}; `wandb login`, or pass --tracking.mode=offline"
        ) from error
    finally:
        os.environ.update(hidden)


def _keep(made: Path, kept: Path) -> None:
    """Move W&B's folders to the run's; links, to logs that stay on the node, are left out."""
    if made == kept:
        return
    for part in made.glob("*run-*"):
        if part.is_dir() and not part.is_symlink():
            shutil.copytree(part, kept / part.name, ignore=_links, dirs_exist_ok=True)
    shutil.rmtree(made.parent, ignore_errors=True)


def _links(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (Path(folder) / name).is_symlink()]


def _close(folder: Path, step: int) -> None:
    """Note that W&B has all rows up to a step, in the parts that are there."""
    parts = sorted(part.name for part in folder.glob("offline-run-*"))
    write_whole(folder / _CLOSED, json.dumps({"step": step, "parts": parts}).encode())


def _drop_unclosed(folder: Path) -> int:
    """Remove parts of an offline run that were killed; the last step of those that were not."""
    try:
        closed = json.loads((folder / _CLOSED).read_text())
    except (OSError, ValueError):
        closed = {"step": -1, "parts": []}
    for part in folder.glob("offline-run-*"):
        if part.name not in closed["parts"] and not any(part.glob(f"*{SYNCED}")):
            shutil.rmtree(part, ignore_errors=True)
    return closed["step"]


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
