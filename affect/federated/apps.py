"""The apps that Flower's own commands start: `flwr run` from the project's folder.

`server` leads the experiment that the run configuration names. `client` stands at a site: it hands
each message to the service that holds the site's recordings (`affect site`). In Flower's
simulation, where a node has no such service, it is a site itself, with its share of the
experiment's people.
"""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.superlink.grid import InMemoryGrid

from affect.errors import UserError
from affect.federated.engines.service import ask

_SIMULATION_S = 60.0
"""What the nodes of Flower's simulation get to be there: their number is settled at its start."""

server = ServerApp()
client = ClientApp()


def in_a_line(record: logging.LogRecord) -> bool:
    """Let Flower log what the user can mend in one line, without the traceback that it adds."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, UserError):
        record.msg, record.args, record.exc_info = "affect: error: %s", (str(error),), None
    return True


logging.getLogger("flwr").addFilter(in_a_line)


@server.main()
def lead(grid: Grid, context: Context) -> None:
    """Lead the experiment `experiment`, or go on with the run in the folder `resume`.

    Raises:
        UserError: as `deployment.lead`, or where neither is named.
    """
    from affect import config
    from affect.federated.engines import deployment
    from affect.federated.engines.polling import PollingGrid

    settings = context.run_config
    if settings["resume"]:
        run = deployment.opened(Path(str(settings["resume"])))
        experiment = run.experiment
    elif settings["experiment"]:
        run, experiment = None, config.load(Path(str(settings["experiment"])))
    else:
        raise UserError("name an experiment: --run-config 'experiment=\"FILE.yaml\"'")
    sites = int(settings["sites"])
    wait_s = _SIMULATION_S if isinstance(grid, InMemoryGrid) else deployment.LONGEST_WAIT_S
    deployment.lead(PollingGrid(grid), experiment, sites, resume=run, wait_s=wait_s)


@client.query("enrol")
@client.query("survey")
@client.query("delays")
@client.query("keys")
@client.query("shares")
@client.query("unmask")
@client.train()
@client.train("masked")
@client.evaluate()
def answer(message: Message, context: Context) -> Message:
    """The site's reply.

    Raises:
        UserError: the node's configuration names no service, or none answers.
    """
    socket = context.node_config.get("socket")
    if socket is None and "partition-id" in context.node_config:
        return _simulated(*_place(context))(message, context)
    if socket is None:
        raise UserError("the SuperNode needs --node-config 'socket=\"PATH\"' of `affect site`")
    try:
        return ask(Path(str(socket)), message)
    except (OSError, EOFError) as error:
        raise UserError("no `affect site` answers at the SuperNode's socket") from error


def _place(context: Context) -> tuple[str, int, int]:
    settings, node = context.run_config, context.node_config
    partition, partitions = node["partition-id"], node["num-partitions"]
    return str(settings["experiment"]), int(partition), int(partitions)


@cache
def _simulated(experiment: str, partition: int, partitions: int) -> ClientApp:
    """A site with every `partitions`-th of the people in the experiment's cache."""
    from affect import config
    from affect.data.corpus import entries_of
    from affect.devices import use_threads
    from affect.federated.client import enrolled_app
    from affect.federated.enrolment import EnrolledPlace
    from affect.federated.site import device_for

    chosen = config.load(Path(experiment))
    use_threads("trainer.threads", chosen.trainer.threads)
    entries = entries_of(chosen.data, progress=False)
    people = sorted({entry.subject for entry in entries})[partition::partitions]
    mine = [entry for entry in entries if entry.subject in people]
    state = Path(chosen.runs) / chosen.name / "sites" / str(partition)
    name = f"site-{partition:04}"
    return enrolled_app(EnrolledPlace(name, mine, state, device_for(chosen.trainer)))
