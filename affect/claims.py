"""Who works in a folder: one process at a time, on whichever machine sees the folder.

Files `claim-<n>`, numbered from 0, tell who; the last one counts. Only one process can create a
file of a name, on a network's file system as well (a hard link of a file that is whole already), so
that there are no locks, which such systems keep badly, and nothing that two processes write.
`released-<n>` says that a claim's owner has let go of it. An owner that was killed lets go of
nothing. It is dead, and the next one may come, where

- it ran on this machine, and no process has its number and its time of birth;
- it ran in an earlier start of the same SLURM job: SLURM starts a job again only after it has ended
  the earlier start, or has given up the node that ran it;
- nobody has touched its claim for `STALE_S`: a living owner does so every `TOUCH_S`.

The last rule alone can be wrong: of a machine that has slept or has lost the file system. Its owner
sees the later claim when it looks, and ends at once without another word to the folder. Ages are
told by the file system's clock, as the machines' own may differ.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

from affect.errors import UserError

_NEEDED = {"host", "pid", "birth", "start"}
"""What a claim must tell."""
STALE_S = 120.0
"""A claim that its owner has not touched for so long is that of a dead process."""
TOUCH_S = 10.0
_TAKEN_OVER = 2
"""Exit status of a process that is taken for dead and is not."""


@contextmanager
def held(folder: Path, what: str) -> Iterator[None]:
    """This process alone works in the block; whoever comes meanwhile is refused.

    A process that finds itself taken for dead ends with status 2, in whatever it is doing.

    Args:
        folder: of the claims; made where it is missing.
        what: the work, for messages.

    Raises:
        UserError: another process works, or the folder cannot be written.
    """
    claim = take(folder)
    if claim is None:
        raise UserError(
            f"{what} is in the hands of {_named(folder)}: wait until it ends, or end it (one that "
            f"shows no sign of life for {STALE_S:g} s is taken for dead)"
        )
    over = Event()
    watch = Thread(target=_show_life, args=(claim, what, over), daemon=True)
    watch.start()
    try:
        yield
    finally:
        over.set()
        watch.join()
        with suppress(UserError):  # a full disk, or the folder is gone
            created(_release_of(claim), "")


def take(folder: Path) -> Path | None:
    """The claim of this process to a folder in which nobody works; None where somebody does.

    Raises:
        UserError: the folder cannot be written.
    """
    now_s = _now_s(folder)
    claims = _claims(folder)
    if claims and _alive(claims[-1], now_s):
        return None
    claim = folder / f"claim-{len(claims):04d}"
    return claim if created(claim, json.dumps(_myself())) else None


def release(folder: Path) -> None:
    """Let another process claim a folder of this one's.

    Raises:
        UserError: the folder cannot be written.
    """
    created(_release_of(_claims(folder)[-1]), "")


def touch(folder: Path) -> None:
    """Show that a folder's owner is alive."""
    with suppress(OSError):
        os.utime(_claims(folder)[-1])


def own_host(folder: Path) -> bool:
    """Whether all claims of a folder were made on this machine."""
    owners = (_owner(claim) for claim in _claims(folder))
    return all(owner.get("host") == socket.gethostname() for owner in owners)


def created(path: Path, content: str) -> bool:
    """Whether this process has created a file, whole, that was not there: one of all can.

    Raises:
        UserError: the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        temporary.write_text(content)
        os.link(temporary, path)
    except FileExistsError:
        # of a request whose answer was lost, a network's file system says this of our own link
        return temporary.stat().st_nlink > 1
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another folder"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _show_life(claim: Path, what: str, over: Event) -> None:
    """Touch a claim until the work is over; end the process where another has taken it over."""
    while not over.wait(TOUCH_S):
        with suppress(OSError):
            os.utime(claim)
        if any(later.name > claim.name for later in _claims(claim.parent)):
            sys.stderr.write(
                f"affect: error: {what} was taken over by {_named(claim.parent)}, as this process "
                f"had shown no sign of life for {STALE_S:g} s or its job was started again: ended\n"
            )
            sys.stderr.flush()
            os._exit(_TAKEN_OVER)


def _alive(claim: Path, now_s: float) -> bool:
    """Whether the process that made a claim seems to live, and has not let go of it."""
    if _release_of(claim).exists():
        return False
    try:
        age_s = now_s - claim.stat().st_mtime
    except OSError:
        return True  # on a network's file system it may not be there yet
    owner, me = _owner(claim), _myself()
    if owner.get("machine") and owner["machine"] == me["machine"]:
        return _birth(owner["pid"]) == owner["birth"]
    if owner.get("job") and owner["job"] == me["job"] and owner["start"] < me["start"]:
        return False
    return age_s < STALE_S


def _owner(claim: Path) -> dict[str, Any]:
    """What a claim tells; nothing where it cannot be read, or not yet."""
    try:
        told = json.loads(claim.read_text())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) and told.keys() >= _NEEDED else {}


def _myself() -> dict[str, Any]:
    """What a claim tells of this process."""
    job = os.environ.get("SLURM_JOB_ID")
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "birth": _birth(os.getpid()),
        "machine": _machine(),
        "job": f"{os.environ.get('SLURM_CLUSTER_NAME', '')}/{job}" if job else None,
        "start": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
    }


def _machine() -> str | None:
    """Where a process's number means the same process: a start of a kernel, and a container of it.

    None where the system does not tell.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return None


def _birth(pid: int) -> int | None:
    """When a process of this machine began, in ticks since its boot; None where it runs no more."""
    try:
        # the name before, in parentheses, may hold anything
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(numbers[18])


def _now_s(folder: Path) -> float:
    """The time by the clock of a folder's file system, which looks at the folder anew for it.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=".") as file:
            return os.fstat(file.fileno()).st_mtime
    except OSError as error:
        raise UserError(
            f"cannot write to {folder}: {error.strerror or error}; free space or choose another "
            "folder"
        ) from error


def _named(folder: Path) -> str:
    """The owner of a folder, for people."""
    owner: Mapping[str, Any] = {}
    with suppress(OSError, ValueError, IndexError):
        owner = json.loads(_claims(folder)[-1].read_text())
    if not owner:
        return "another process"
    job = f", SLURM job {owner['job'].partition('/')[2]}" if owner.get("job") else ""
    return f"process {owner['pid']} on {owner['host']}{job}"


def _claims(folder: Path) -> list[Path]:
    return sorted(folder.glob("claim-*"))


def _release_of(claim: Path) -> Path:
    return claim.with_name(claim.name.replace("claim", "released"))
