"""What a user can mend: every error that ends in one clear line and exit status 2."""

from __future__ import annotations

from collections.abc import Iterable


class UserError(Exception):
    """A mistake in input, configuration or environment that the user can mend.

    The message is one line that says what is wrong, where, and how to mend it.
    """


class RecordingError(UserError):
    """A recording, or the file that should hold one, breaks the format."""


def suggestion(name: str, choices: Iterable[str]) -> str:
    """How to mend an unknown name: `did you mean ...?`, or all choices where none is near."""
    from difflib import get_close_matches  # only a mistake needs it

    choices = list(choices)
    near = get_close_matches(name, choices, n=1)
    return f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(choices)}"
