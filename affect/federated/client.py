"""The Flower ClientApp: a request's message to the site, and its answer back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from affect.config import TrainerConfig
from affect.data.staging import staged
from affect.devices import use_threads
from affect.federated.answering import failed
from affect.federated.cohort import attempted
from affect.federated.enrolment import EnrolledPlace
from affect.federated.messages import (
    Content,
    Delays,
    Enrol,
    Evaluate,
    MakeKeys,
    Request,
    ShareSecrets,
    Survey,
    Train,
    TrainMasked,
    Unmask,
)
from affect.federated.site import Site, device_for
from affect.store import Entry


def app_at(
    entries: Mapping[int, Sequence[Entry]], memory: Path, trainer: TrainerConfig, number: int = 0
) -> TogetherApp:
    """The app of clients whose recordings this machine can read; see `staged`.

    Args:
        entries: the recordings of each client, by its index.
        memory: folder of what clients keep between rounds.
        trainer: where to compute.
        number: of the process that asks; processes take turns on the GPUs.
    """
    use_threads("trainer.threads", trainer.threads)
    near = iter(staged([entry for held in entries.values() for entry in held]))
    here = {client: list(islice(near, len(held))) for client, held in entries.items()}
    return TogetherApp(Site(here, memory, device_for(trainer, number)))


class TogetherApp:
    """The app of a place whose clients are trained together where they are asked to be.

    Args:
        site: the place.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._app = client_app(lambda _: site)

    def __call__(self, message: Message, context: Context) -> Message:
        """A client's reply."""
        return self._app(message, context)

    def together(self, messages: Sequence[Message]) -> list[Message]:
        """The replies of the clients of a cohort that are asked to train."""
        requests = [attempted(Train.decode, message.content) for message in messages]
        fit = [request for request in requests if isinstance(request, Train)]
        trained = iter(self._site.train_together(fit))
        outcomes = [item if isinstance(item, Exception) else next(trained) for item in requests]
        return [
            failed(message, item)
            if isinstance(item, Exception)
            else Message(item.encode(), reply_to=message)
            for message, item in zip(messages, outcomes, strict=True)
        ]


_Request = TypeVar("_Request", bound=Request)


def client_app(site_of: Callable[[Request], Site]) -> ClientApp:
    """The app of the clients at a place.

    Args:
        site_of: the place that answers a request.
    """
    app = ClientApp()

    def answers(
        kind: type[_Request], answer: Callable[[Site, _Request], Content]
    ) -> Callable[[Message, Context], Message]:
        def handle(message: Message, _: Context) -> Message:
            request = kind.decode(message.content)
            return Message(answer(site_of(request), request).encode(), reply_to=message)

        return handle

    app.query("survey")(answers(Survey, Site.survey))
    app.query("delays")(answers(Delays, Site.delays))
    app.query("keys")(answers(MakeKeys, Site.keys))
    app.query("shares")(answers(ShareSecrets, Site.shares))
    app.query("unmask")(answers(Unmask, Site.unmask))
    app.train()(answers(Train, Site.train))
    app.train("masked")(answers(TrainMasked, Site.train_masked))
    app.evaluate()(answers(Evaluate, Site.evaluate))
    return app


def enrolled_app(place: EnrolledPlace) -> ClientApp:
    """The app of a place whose people the server does not know."""
    app = client_app(place.site_of)

    @app.query("enrol")
    def enrol(message: Message, _: Context) -> Message:
        reply = place.enrol(Enrol.decode(message.content))
        return Message(reply.encode(), reply_to=message)

    return app
