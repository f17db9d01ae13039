"""What a user can mend: every error that ends in one clear line and exit status 2."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """A mistake in input, configuration or environment that the user can mend.

    The message is one line that says what is wrong, where, and how to mend it.
    """


class RecordingError(UserError):
    """A recording, or the file that should hold one, breaks the format."""


class UnwritableError(UserError):
    """A file or folder cannot be written: it may not be, or there is no space.

    Attributes:
        cause: the same in a few words that do not name the file, by which a summary counts.
    """

    cause = "cannot be written"


class Preempted(KeyboardInterrupt):
    """A signal asked for the machine; the state is saved, and the message says how to go on."""


def suggestion(name: str, choices: Iterable[str]) -> str:
    """How to mend an unknown name: `did you mean ...?`, or all choices where none is near."""
    choices = list(choices)
    near = nearest(name, choices)
    return f"did you mean {near!r}?" if near else f"choose one of {', '.join(choices)}"


def nearest(name: str, choices: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The choice that is most like a name; None where none is alike.

    Args:
        name: what was given.
        choices: what there is.
        cutoff: least likeness, 0 to 1.
    """
    from difflib import get_close_matches  # only a mistake needs it

    return next(iter(get_close_matches(name, list(choices), n=1, cutoff=cutoff)), None)
