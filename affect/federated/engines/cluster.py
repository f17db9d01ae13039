"""A Ray for a run: one of its own on this machine, or a cluster that is there already."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, worker

from affect.errors import UserError
from affect.stopping import deaf_to_interrupts

_log = logging.getLogger("affect.ray")
_LONGEST_ROOT = 30
"""Bytes of the path in which Ray's folder is made: its sockets may have 107 and add up to 77."""
_CONNECT_S = 5.0


@contextmanager
def joined(address: str | None, cpus: int) -> Iterator[None]:
    """A Ray that this process is in; one that it is in already is used and left as it is.

    Args:
        address: `host:port`, `auto` for the cluster that this machine is in, None for a Ray of the
            run's own, which ends with the block.
        cpus: of a Ray of its own; actors take one each.

    Raises:
        UserError: there is no such cluster.
    """
    if ray.is_initialized():
        yield
        return
    if address is not None:
        _refuse_absent(address)
    root = tempfile.gettempdir()
    root = root if len(os.fsencode(root)) <= _LONGEST_ROOT else "/tmp"
    with (
        _holding(worker, "print_to_stdstream", _noted),  # it would print among the results
        tempfile.TemporaryDirectory(prefix="ray-", dir=root, ignore_cleanup_errors=True) as folder,
    ):
        try:
            if address is None:
                _start(cpus, Path(folder))
            else:
                _join(address)
            yield
        finally:
            ray.shutdown()


def _start(cpus: int, folder: Path) -> None:
    """Start a Ray that is reachable from this machine alone."""
    # without clusters, as on macOS and Windows, Ray stays on the loopback device
    with _holding(ray_constants, "ENABLE_RAY_CLUSTER", False):
        _init(
            "local",
            num_cpus=cpus,
            include_dashboard=False,
            _temp_dir=str(folder),
            _node_ip_address="127.0.0.1",
        )


def _join(address: str) -> None:
    try:
        _init(address)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"federation.ray.address: {address!r} cannot be joined ({' '.join(str(error).split())})"
        ) from error


def _init(address: str, **options: Any) -> None:
    with _signals_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a default to come
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)


def _refuse_absent(address: str) -> None:
    """Refuse an address at which nobody listens: Ray itself would wait for long.

    Raises:
        UserError: saying so.
    """
    if address == "auto":
        return
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"no Ray answers at federation.ray.address {address!r} ({error}): start one with "
            "`ray start --head`, or leave the address out"
        ) from error


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray's start leaves signals as they were; one that comes meanwhile is heard afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        with deaf_to_interrupts():
            yield
    except SystemExit:  # what Ray makes of SIGTERM
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _holding(owner: Any, name: str, value: object) -> Iterator[None]:
    """An attribute that has another value for a while."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _noted(data: dict[str, Any], *_: Any, **__: Any) -> None:
    """What Ray tells of its own: the run tells itself whom a worker's death costs."""
    _log.debug("%s", " ".join(map(str, data["lines"])))
