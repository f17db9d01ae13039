"""What ends a command: SIGTERM as Ctrl-C does, with what is half done tidied away."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager


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
def deaf_to_interrupts() -> Iterator[None]:
    """A process that starts in here never hears Ctrl-C, which goes to all: the first decides."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
