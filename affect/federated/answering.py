"""A client's reply to a message, or the error that its app raised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode

from affect.errors import UserError

App = Callable[[Message, Context], Message]
Task = tuple[Message, Context]
Answers = Callable[[Iterable[Task]], Iterator[Message]]


def answered(app: App, message: Message, context: Context) -> Message:
    """An app's reply, or the error that it raised."""
    try:
        return app(message, context)
    except Exception as error:
        return failed(message, error)


def failed(message: Message, error: Exception) -> Message:
    """The reply of a client that raised an error."""
    kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
    reason = Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, f"{kind}{error}")
    return Message(reason, reply_to=message)
