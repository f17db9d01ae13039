"""SIGTERM ends a command as Ctrl-C does: what is half done is tidied away."""

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
