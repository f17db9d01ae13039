"""A site of a deployment as two processes: one holds the recordings, the other talks to Flower.

Flower starts a process for each message, runs in it the code that its server names, and ends it.
That process only hands the message on: to a service at a Unix socket, which holds the recordings,
keeps the network and prepared recordings in memory, and answers the declared messages alone. Where
both run as different users, nothing that comes over the network can read a recording.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as Proto

from affect.errors import UserError
from affect.federated.answering import App

_log = logging.getLogger("affect.site")
_OTHERS_MAY_NOT = 0o117
"""Of the socket: only its user and group ask."""


def serve(app: App, socket: Path) -> None:
    """Answer at a socket, one message after another, until the process is stopped.

    Args:
        app: answers.
        socket: where; its user and group can ask.

    Raises:
        UserError: the socket cannot be made, or another service answers there.
    """
    with _listener(socket) as listener:
        _log.info("answers at %s", socket)
        while True:
            with listener.accept() as connection:
                try:
                    _answer(app, connection)
                except Exception as error:  # who asks may not end what answers
                    _log.error("not answered: %s: %s", type(error).__name__, error)


def ask(socket: Path, message: Message) -> Message:
    """The service's reply to a message.

    Raises:
        OSError: no service answers there.
    """
    with Client(str(socket), "AF_UNIX") as connection:
        connection.send_bytes(message_to_proto(message).SerializeToString())
        return message_from_proto(Proto.FromString(connection.recv_bytes()))


def _listener(socket: Path) -> Listener:
    with suppress(OSError):
        Client(str(socket), "AF_UNIX").close()
        raise UserError(f"another service answers at {socket}: stop it, or choose another socket")
    before = os.umask(_OTHERS_MAY_NOT)
    try:
        socket.unlink(missing_ok=True)
        return Listener(str(socket), "AF_UNIX")
    except OSError as error:
        raise UserError(f"cannot answer at {socket}: {error.strerror or error}") from error
    finally:
        os.umask(before)


def _answer(app: App, connection: Any) -> None:
    start_s = time.perf_counter()
    message = message_from_proto(Proto.FromString(connection.recv_bytes()))
    answer = message_to_proto(_reply(app, message)).SerializeToString()
    connection.send_bytes(answer)
    kind = message.metadata.message_type
    _log.info("%s: %d bytes in %.1f s", kind, len(answer), time.perf_counter() - start_s)


def _reply(app: App, message: Message) -> Message:
    """An app's reply, or the kind of the error that it raised.

    What an error says may name people: it is logged here and not sent.
    """
    try:
        return app(message, Context(0, 0, {}, RecordDict(), {}))
    except Exception as error:
        _log.error("%s: refused: %s", message.metadata.message_type, error)
        reason = f"{type(error).__name__}, which the site's own log explains"
        return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
