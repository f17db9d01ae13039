"""A sweep's folder: the one thing that its agents share.

`sweep.json` (the file, the seed) is written once. Each trial has a folder of its own,
`trials/<number>/`, whose claims say who runs it: agents on any number of machines need neither
locks nor a file that all of them write, see `affect.claims`. `configurations/<digest>` is created
by the first trial of a configuration, so that none is run twice. `trial.json` is written by the
trial's owner alone.
"""

from __future__ import annotations

import json
import secrets
import string
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from affect import claims
from affect.errors import UserError
from affect.files import require_writable, write_whole
from affect.sweep import file as files
from affect.sweep.file import SweepFile
from affect.sweep.search import Tried
from affect.sweep.space import Point

ENDED = ("done", "stopped", "failed")
_ID_LETTERS = string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class Trial:
    """One configuration and what became of it.

    Attributes:
        number: from 0.
        point: its place in the search space.
        configuration: the parameters' values, as W&B's agent would get them.
        run_id: of its run, in W&B too.
        run: the run's folder.
        status: `running`, `done`, `stopped` (early), `failed` or `interrupted`.
        value: of the metric; of a stopped trial its last one.
        logged: how often the metric was logged.
        seconds: that it took.
        reason: why it failed.
    """

    number: int
    point: Point
    configuration: dict[str, Any]
    run_id: str
    run: str
    status: str = "running"
    value: float | None = None
    logged: int = 0
    seconds: float = 0.0
    reason: str = ""

    @property
    def tried(self) -> Tried:
        """What the search knows of it."""
        return Tried(self.point, self.status, self.value, self.logged)


@dataclass
class Sweep:
    """A sweep and its folder.

    Attributes:
        folder: where its files are.
        file: what its sweep file says.
        id: in W&B too.
        seed: of random draws.
        count: most trials in all, as it was begun; None for no limit.
    """

    folder: Path
    file: SweepFile
    id: str
    seed: int
    count: int | None
    _ended: dict[int, Trial] = field(default_factory=dict)

    def trials(self) -> list[Trial]:
        """All trials that have a configuration, by number; what has ended is read once."""
        found = dict(self._ended)
        for number in self.numbers():
            if number not in found and (trial := self.trial(number)) is not None:
                found[number] = trial
        self._ended = {n: trial for n, trial in found.items() if trial.status in ENDED}
        return [found[number] for number in sorted(found)]

    def trial(self, number: int) -> Trial | None:
        """A trial as it is now; None if it has no configuration yet."""
        path = self.trial_folder(number) / "trial.json"
        try:
            return Trial(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} is no record of a trial: {error}") from error

    def numbers(self) -> list[int]:
        """Numbers of all trials that were ever claimed."""
        names = (path.name for path in self.folder.glob("trials/*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def trial_folder(self, number: int) -> Path:
        """Where a trial's files are."""
        return self.folder / "trials" / f"{number:04d}"

    def write(self, trial: Trial, **changes: Any) -> Trial:
        """Write a trial's record with changes, by its owner, and return it."""
        changed = replace(trial, **changes)
        text = json.dumps(asdict(changed), indent=2) + "\n"
        write_whole(self.trial_folder(trial.number) / "trial.json", text.encode())
        return changed

    def take(self, number: int) -> bool:
        """Claim a trial that nobody runs; whether it is this process's now."""
        return claims.take(self.trial_folder(number)) is not None

    def release(self, number: int) -> None:
        """Let another process claim a trial of this one's."""
        claims.release(self.trial_folder(number))

    def own_host(self, number: int) -> bool:
        """Whether all claims of a trial were made on this machine."""
        return claims.own_host(self.trial_folder(number))

    def touch(self, number: int) -> None:
        """Show that a trial's owner is alive."""
        claims.touch(self.trial_folder(number))

    def reserve(self, digest: str, number: int) -> bool:
        """Whether a configuration is this trial's; no other trial gets it then."""
        path = self.folder / "configurations" / digest
        path.parent.mkdir(exist_ok=True)
        return claims.created(path, str(number)) or path.read_text() == str(number)


def create(folder: Path | None, text: str, name: str, *, seed: int, count: int | None) -> Sweep:
    """The sweep in a folder, which is made where it is not there: agents may come at once.

    Args:
        folder: where; None for a new one below `sweeps/`.
        text: of the sweep file.
        name: of the sweep file.
        seed: of random draws.
        count: most trials in all; None for no limit.

    Raises:
        UserError: the file cannot be used, or the folder is another sweep's.
    """
    file = files.parse(text, name)
    sweep_id = "".join(secrets.choice(_ID_LETTERS) for _ in range(8))
    if folder is None:
        named = (file.name or Path(name).stem).replace("/", "-").strip(".") or "sweep"
        folder = Path("sweeps") / named / sweep_id
    require_writable(folder)
    record = {"id": sweep_id, "name": name, "seed": seed, "count": count, "file": text}
    claims.created(folder / "sweep.json", json.dumps(record, indent=2) + "\n")
    sweep = open_sweep(folder)
    if sweep.file != file:
        raise UserError(f"{folder} is the folder of another sweep file: choose another folder")
    return sweep


def open_sweep(folder: Path) -> Sweep:
    """The sweep in a folder.

    Raises:
        UserError: there is none.
    """
    path = folder / "sweep.json"
    try:
        record = json.loads(path.read_text())
        file = files.parse(record["file"], record["name"])
        return Sweep(folder, file, record["id"], record["seed"], record["count"])
    except OSError:
        raise UserError(f"no sweep at {folder}: a sweep's folder holds sweep.json") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no record of a sweep: {error}") from error
