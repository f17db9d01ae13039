"""A Ray for a run: one of its own on this machine, or a cluster that is there already."""

from __future__ import annotations

import logging
import os
import signal
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import ray
from ray._private import ray_constants, services, worker

from affect.errors import UserError
from affect.stopping import deaf_to_interrupts

_log = logging.getLogger("affect.ray")
_LONGEST_ROOT = 30
"""Bytes of the path in which Ray's folder is made: its sockets may have 107 and add up to 77."""
_CONNECT_S = 5.0
_ANSWERED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
"""What a Ray says that wants a token, which it takes from this process by its own means."""


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
    """Join a cluster.

    Raises:
        UserError: it is not there, or it does not take this process.
    """
    try:
        found = services.canonicalize_bootstrap_address(address) or ""
        _refuse_silent(found)
        _init(found)
    except (grpc.RpcError, ConnectionError, OSError, RuntimeError, ValueError) as error:
        said = error.details() if isinstance(error, grpc.Call) else str(error)
        raise UserError(
            f"federation.ray.address: no Ray cluster can be joined at {address!r} "
            f"({' '.join(str(said).split())}); start one with `ray start --head`, or leave it out"
        ) from error


def _refuse_silent(address: str) -> None:
    """Refuse an address at which no Ray answers: Ray itself would wait for minutes.

    Raises:
        grpc.RpcError: saying why.
    """
    with grpc.insecure_channel(address) as channel:
        alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            alive(b"", timeout=_CONNECT_S)
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call) or error.code() not in _ANSWERED:
                raise


def _init(address: str, **options: Any) -> None:
    with _signals_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of a default to come
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)


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
