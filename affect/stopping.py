"""What ends a command: signals as Ctrl-C does, with what is half done tidied away."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from typing import Any

from affect.errors import Preempted


@contextmanager
def stopping(message: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end the block alike.

    Args:
        message: what stays, and how to go on.

    Raises:
        KeyboardInterrupt: with the message.
    """
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(message) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def giving_way(message: str = "") -> Iterator[None]:
    """SIGTERM and SIGUSR1, by which a cluster asks for its machine, and SIGHUP end the block.

    Args:
        message: what stays, and how to go on; without one that of whatever ends the block.

    Raises:
        Preempted: at the signal; further ones are ignored while the block ends.
        KeyboardInterrupt: at Ctrl-C.
    """

    def give_way(*_: Any) -> None:
        for number in numbers:  # asked again while it ends, it would be left half-way
            signal.signal(number, signal.SIG_IGN)
        raise Preempted

    numbers = [signal.SIGTERM, signal.SIGUSR1]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, give_way) for number in numbers}
    try:
        yield
    except KeyboardInterrupt as stop:
        raise (type(stop)(message) if message else stop) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def deaf() -> Iterator[None]:
    """No signal that asks for an end is heard until the block, which ends soon, has tidied away."""
    with _ignoring(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        yield


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """A process that starts in here never hears Ctrl-C or SIGUSR1: the first process decides.

    A terminal sends the one to all processes, SLURM the other.
    """
    with _ignoring(signal.SIGINT, signal.SIGUSR1):
        yield


@contextmanager
def _ignoring(*numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def heed_parent_alone(_: int = 0) -> None:
    """From now on SIGTERM ends this process where its parent sent it, and nobody else.

    A data loader's worker that SLURM's SIGTERM to all ends would take the training with it.
    """

    def listen() -> None:
        while signal.sigwaitinfo(numbers).si_pid != os.getppid():
            pass
        os._exit(0)

    numbers = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    Thread(target=listen, daemon=True).start()
