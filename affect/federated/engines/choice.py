"""The engine that an experiment asks for: what runs the clients and carries their messages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

from affect.config import FederationConfig
from affect.devices import refuse_crowd
from affect.errors import UserError
from affect.federated.answering import App
from affect.federated.engines import workers
from affect.federated.engines.inprocess import InProcessGrid


def engine(
    make_app: Callable[[int], App], nodes: int, config: FederationConfig
) -> AbstractContextManager[InProcessGrid]:
    """A grid of clients, in this process, in workers or on Ray.

    Args:
        make_app: makes the ClientApp in worker 0, 1, ...; must be picklable.
        nodes: how many there are; more workers than that are not started.
        config: which engine, and what it takes.

    Raises:
        UserError: Ray is asked for and not installed, or more workers than this machine takes.
    """
    config = replace(config, workers=min(config.workers, nodes))
    if config.engine == "inprocess" or config.ray.address is None:
        refuse_crowd("federation.workers", config.workers)
    if config.engine == "inprocess":
        return workers.engine(make_app, nodes, config)
    try:
        from affect.federated.engines import ray
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise UserError(
            "federation.engine: ray needs Ray, which is not installed: "
            "pip install 'affect[simulation]', or take engine: inprocess"
        ) from None
    return ray.engine(make_app, nodes, config)
