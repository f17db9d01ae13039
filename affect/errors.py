"""What a user can mend: every error that ends in one clear line and exit status 2."""


class UserError(Exception):
    """A mistake in input, configuration or environment that the user can mend.

    The message is one line that says what is wrong, where, and how to mend it.
    """


class RecordingError(UserError):
    """A recording, or the file that should hold one, breaks the format."""


class Preempted(Exception):  # noqa: N818 - an outcome, not an error
    """The process was told to stop and has saved its state; exit status 75."""
