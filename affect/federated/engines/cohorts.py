"""Messages to train, answered a cohort at a time where an app can do so."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol, runtime_checkable

from flwr.app import Context, Message

from affect.federated.answering import Answers, App, Task, answered, failed
from affect.federated.messages import Train


@runtime_checkable
class CohortApp(Protocol):
    """An app that can answer several messages to train at once."""

    def __call__(self, message: Message, context: Context) -> Message:
        """The reply to a message."""
        ...

    def together(self, messages: Sequence[Message]) -> list[Message]:
        """The replies to messages to train, in their order."""
        ...


def cohorts(tasks: Iterable[Task], clients: int) -> Iterator[list[Task]]:
    """Tasks in their order: so many neighbours to train at a time, any other by itself.

    Args:
        tasks: taken as cohorts are asked for.
        clients: of a cohort, at most.
    """
    cohort: list[Task] = []
    for task in tasks:
        trains = task[0].metadata.message_type == Train.action
        if cohort and not trains:
            yield cohort
            cohort = []
        cohort.append(task)
        if len(cohort) == clients or not trains:
            yield cohort
            cohort = []
    if cohort:
        yield cohort


def answered_together(app: App, tasks: Sequence[Task]) -> list[Message]:
    """An app's replies to a cohort, or the error that it raised."""
    if len(tasks) == 1 or not isinstance(app, CohortApp):
        return [answered(app, message, context) for message, context in tasks]
    messages = [message for message, _ in tasks]
    try:
        return app.together(messages)
    except Exception as error:
        return [failed(message, error) for message in messages]


def in_cohorts(app: App, clients: int = 1) -> Answers:
    """Answers of an app in this process.

    Args:
        app: answers.
        clients: of a cohort, at most.
    """

    def answers(tasks: Iterable[Task]) -> Iterator[Message]:
        for cohort in cohorts(tasks, clients):
            yield from answered_together(app, cohort)

    return answers
