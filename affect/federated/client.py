"""The Flower ClientApp: a request's message to the site, and its answer back."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from affect.federated.messages import Content, Delays, Evaluate, Survey, Train
from affect.federated.site import Site

_Request = TypeVar("_Request", bound=Content)


def client_app(site_of: Callable[[Context], Site]) -> ClientApp:
    """The app of the clients at a place.

    Args:
        site_of: the place that a node stands for.
    """
    app = ClientApp()

    def answers(
        kind: type[_Request], answer: Callable[[Site, _Request], Content]
    ) -> Callable[[Message, Context], Message]:
        def handle(message: Message, context: Context) -> Message:
            reply = answer(site_of(context), kind.decode(message.content))
            return Message(reply.encode(), reply_to=message)

        return handle

    app.query("survey")(answers(Survey, Site.survey))
    app.query("delays")(answers(Delays, Site.delays))
    app.train()(answers(Train, Site.train))
    app.evaluate()(answers(Evaluate, Site.evaluate))
    return app
