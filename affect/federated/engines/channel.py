"""Messages between two processes of one machine, whose large parts pass through shared memory.

A pipe copies each byte four times and wakes both ends for every small piece. Here a part is copied
in and out once, and one that the other end had in the last message, as the model that a round sends
to all clients, is not copied at all.
"""

from __future__ import annotations

import io
import os
import pickle
from mmap import mmap
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

_ROOM_BYTES = 64 * 2**20
"""Of each direction's memory, which takes up no more than was written to it."""
_LARGE_BYTES = 2**15
"""From here on a part passes through shared memory, as long as there is room."""


class _Part(NamedTuple):
    """Where a part of a message is, and whether the last message had it there as well."""

    start: int
    stop: int
    known: bool


class Channel:
    """One end. The two take turns: whoever has sent waits for the answer before it sends again.

    The other end is given to its process as an argument when that is started.

    Args:
        connection: to the other end.
        outgoing, incoming: file descriptors of the memory of each direction.
    """

    def __init__(self, connection: Connection, outgoing: int, incoming: int) -> None:
        self.connection = connection
        self._descriptors = outgoing, incoming
        self._outgoing, self._incoming = mmap(outgoing, _ROOM_BYTES), mmap(incoming, _ROOM_BYTES)
        self._sent: dict[int, bytes] = {}
        self._received: dict[int, bytes] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _opened, (self.connection, *map(DupFd, self._descriptors))

    def send(self, message: Any) -> None:
        """Send what can be pickled.

        Raises:
            OSError: the other end is closed.
        """
        stream = io.BytesIO()
        pickler = _Pickler(stream, self._outgoing, self._sent)
        self._sent = {}  # should what follows fail, nothing in the memory is relied on
        pickler.dump(message)
        self._sent = pickler.parts
        self.connection.send_bytes(stream.getbuffer())

    def receive(self) -> Any:
        """Wait for what the other end sends.

        Raises:
            EOFError, OSError: the other end is closed.
        """
        stream = io.BytesIO(self.connection.recv_bytes())
        unpickler = _Unpickler(stream, self._incoming, self._received)
        message = unpickler.load()
        self._received = unpickler.parts
        return message

    def close(self) -> None:
        """Let go of the connection and of the memory."""
        self.connection.close()
        for memory in (self._outgoing, self._incoming):
            memory.close()
        for descriptor in self._descriptors:
            os.close(descriptor)


def channel() -> tuple[Channel, Channel]:
    """Both ends of a new channel."""
    (ours, theirs), (there, back) = Pipe(), (_shared(), _shared())
    return Channel(ours, there, back), Channel(theirs, os.dup(back), os.dup(there))


def _shared() -> int:
    """Memory that no folder shows, and that goes with the last process that has it."""
    descriptor = os.memfd_create("affect")
    os.ftruncate(descriptor, _ROOM_BYTES)
    return descriptor


def _opened(connection: Connection, outgoing: Any, incoming: Any) -> Channel:
    return Channel(connection, outgoing.detach(), incoming.detach())


class _Pickler(pickle.Pickler):
    """Lays large parts into memory, one behind the other.

    Attributes:
        parts: this message's, by where they begin.
    """

    def __init__(self, stream: io.BytesIO, memory: mmap, last: dict[int, bytes]) -> None:
        super().__init__(stream, pickle.HIGHEST_PROTOCOL)
        self._memory = memory
        self._last = last
        self._laid: dict[int, _Part] = {}
        self._stop = 0
        self.parts: dict[int, bytes] = {}

    def persistent_id(self, obj: Any) -> _Part | None:
        """Where a large part is; None for anything else."""
        if type(obj) is not bytes or len(obj) < _LARGE_BYTES:
            return None
        if id(obj) not in self._laid:
            start, stop = self._stop, self._stop + len(obj)
            if stop > _ROOM_BYTES:
                return None
            # what lies here still does, since all before it did not change its length
            known = self._last.get(start) is obj
            if not known:
                self._memory[start:stop] = obj
            self._laid[id(obj)] = _Part(start, stop, known)
            self.parts[start], self._stop = obj, stop
        return self._laid[id(obj)]


class _Unpickler(pickle.Unpickler):
    """Takes large parts from memory.

    Attributes:
        parts: this message's, by where they begin.
    """

    def __init__(self, stream: io.BytesIO, memory: mmap, last: dict[int, bytes]) -> None:
        super().__init__(stream)
        self._memory = memory
        self._last = last
        self.parts: dict[int, bytes] = {}

    def persistent_load(self, pid: _Part) -> bytes:
        """The part."""
        if pid.start not in self.parts:
            self.parts[pid.start] = (
                self._last[pid.start] if pid.known else self._memory[pid.start : pid.stop]
            )
        return self.parts[pid.start]
