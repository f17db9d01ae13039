"""A federation over sites that hold their own data: enrolled, trained and tested by messages alone.

The server has no recording. It learns how many people each site has in each part, makes a client of
each, numbered by the names of the sites, and leads them as it leads clients on one machine.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flwr.app import Message
from flwr.serverapp import Grid

from affect import config as configuration
from affect.config import Experiment
from affect.data.preparation import Preparation
from affect.data.splits import Fold, refuse_empty, refuse_folds
from affect.devices import use_threads
from affect.errors import UserError
from affect.federated.draws import unforeseeable
from affect.federated.enrolment import refuse_name
from affect.federated.federate import kept, kept_module, refuse_unfit, trained_rounds
from affect.federated.messages import Enrol, Enrolled, MessageError
from affect.federated.population import population
from affect.federated.server import Server, State, shared
from affect.training import run as runs
from affect.training.execution import finish, under_way
from affect.training.inputs import refuse_other_configuration
from affect.training.postprocess import Postprocessing, Trace
from affect.training.run import Run
from affect.training.trained import Trained, save_trained

_POLL_S = 1.0
LONGEST_WAIT_S = 3600.0
"""What sites get to connect, where the experiment gives no time-out."""


@dataclass(frozen=True)
class Enrolment:
    """Who takes part.

    Attributes:
        fold: the clients as `site/part`, in the order of their names.
        nodes: Flower's node of each site.
        people: how many each site has in each part.
    """

    fold: Fold
    nodes: Mapping[str, int]
    people: Mapping[str, Mapping[str, int]]


def lead(
    grid: Grid,
    experiment: Experiment,
    sites: int,
    *,
    resume: Run | None = None,
    wait_s: float = LONGEST_WAIT_S,
) -> Run:
    """Train an experiment at sites, then validate and test it there.

    Args:
        grid: reaches the sites.
        experiment: the configuration, with its federation.
        sites: how many must be connected before anything is asked.
        resume: an unfinished run of the same sites, which goes on after its last finished round.
        wait_s: what they get to connect, where the experiment gives no time-out.

    Returns:
        The run: `model.safetensors`, `preparation.json`, `metrics.csv`, `clients.csv` and
        `run.json`, whose metrics come from the moments of the validation and test clients. There
        are no predictions, since none leaves a site.

    Raises:
        UserError: the configuration, a site or the folder cannot be used.
    """
    _refuse_unfit(experiment)
    if resume is not None and resume.record["status"] == "done":
        return resume
    if resume is not None:
        refuse_other_configuration(resume.folder, experiment, "federate")
    use_threads("trainer.threads", experiment.trainer.threads)
    _wait_for(grid, sites, experiment.federation.timeout_s or wait_s)
    enrolment = _enrolled(grid, experiment)
    if resume is None:
        refuse_empty([enrolment.fold])
        run = runs.create(experiment, "federate", [enrolment.fold])
    else:
        run = resume
        _refuse_others(run, enrolment.fold)
    go_on = f"flwr run . --run-config 'resume=\"{run.folder}\"'"
    with under_way(run, go_on, () if resume is None else None) as (tracker, stopwatch):
        run.update({"sites": enrolment.people})
        server = _server(grid, run, enrolment)
        state, preparation = trained_rounds(run, enrolment.fold, server, tracker)
        metrics = server.final(kept(experiment, state), preparation)
        _save(run, preparation, state)
        if tracker is not None:
            finish(run, metrics, tracker, stopwatch, lambda _: [])
    return run


def _server(grid: Grid, run: Run, enrolment: Enrolment) -> Server:
    experiment = run.experiment
    clients = population(enrolment.fold, replace(experiment.federation, subjects_per_client=1))
    nodes = {client.index: enrolment.nodes[_site(client.name)] for client in clients}
    private = experiment.federation.privacy.mode == "central"
    draws = unforeseeable if private else None
    return Server(grid, clients, nodes, experiment, run=run.record["id"], draws=draws)


def _save(run: Run, preparation: Preparation, state: State) -> None:
    module = kept_module(run.experiment, preparation, state)
    untouched = Postprocessing((Trace(),) * len(preparation.dimensions))
    fold = run.record["folds"][0]
    save_trained(Trained(module, preparation, untouched, fold), run.fold_folder(fold))


def _wait_for(grid: Grid, sites: int, limit_s: float) -> None:
    """Wait until so many sites are connected.

    Raises:
        UserError: they are not in time.
    """
    start_s = time.monotonic()
    while (there := len(list(grid.get_node_ids()))) < sites:
        if time.monotonic() - start_s > limit_s:
            raise UserError(
                f"{there} of {sites} sites are connected after {limit_s:g} s: start the others, or "
                "raise federation.timeout_s (deployment/README.md tells of Flower's simulation)"
            )
        time.sleep(_POLL_S)


def _enrolled(grid: Grid, experiment: Experiment) -> Enrolment:
    """Ask every connected site which clients it holds.

    Raises:
        UserError: one does not answer as it should, or two have one name.
    """
    records = Enrol(configuration.to_yaml(shared(experiment))).encode()
    nodes = sorted(grid.get_node_ids())
    messages = [
        Message(records, node, Enrol.action, group_id=str(place))
        for place, node in enumerate(nodes)
    ]
    found: dict[str, tuple[int, Enrolled]] = {}
    answered = set[int]()
    for reply in grid.send_and_receive(messages, timeout=experiment.federation.timeout_s):
        node = nodes[int(reply.metadata.group_id or 0)]
        enrolled = _read(node, reply)
        if enrolled.site in found:
            raise UserError(f"two sites call themselves {enrolled.site!r}: rename one")
        found[enrolled.site] = (node, enrolled)
        answered.add(node)
    for node in nodes:
        if node not in answered:
            raise UserError(f"the site at node {node} did not answer in time")
    return _enrolment({site: found[site] for site in sorted(found)})


def _read(node: int, reply: Message) -> Enrolled:
    if reply.has_error():
        raise UserError(f"the site at node {node} cannot take part: {reply.error.reason}")
    try:
        enrolled = Enrolled.decode(reply.content)
    except MessageError as error:
        raise UserError(f"the site at node {node} cannot take part: {error}") from error
    refuse_name(enrolled.site, "a site")
    return enrolled


def _enrolment(found: Mapping[str, tuple[int, Enrolled]]) -> Enrolment:
    parts = {
        part: tuple(f"{site}/{part}" for site, (_, told) in found.items() if getattr(told, part))
        for part in ("train", "val", "test")
    }
    fold = Fold(0, **parts)
    people = {
        site: {part: getattr(told, part) for part in parts} for site, (_, told) in found.items()
    }
    return Enrolment(fold, {site: node for site, (node, _) in found.items()}, people)


def _site(client: str) -> str:
    return client.rpartition("/")[0]


def _refuse_unfit(experiment: Experiment) -> None:
    """Refuse what takes data that the server has not.

    Raises:
        UserError: naming the key.
    """
    refuse_unfit(experiment)
    refuse_folds(experiment.data.split)
    refused: Sequence[tuple[str, bool]] = (
        ("evaluation.postprocess", bool(experiment.evaluation.postprocess)),
        ("evaluation.importance_repeats", bool(experiment.evaluation.importance_repeats)),
    )
    for key, asked in refused:
        if asked:
            raise UserError(
                f"{key} takes predictions, which leave no site of a deployment: leave it out"
            )


def _refuse_others(run: Run, fold: Fold) -> None:
    before = run.folds[0]
    if before != fold:
        raise UserError(
            f"{run.folder} began with the clients {_listed(before)}, now there are "
            f"{_listed(fold)}: start the same sites with the same recordings"
        )


def _listed(fold: Fold) -> str:
    return ", ".join((*fold.train, *fold.val, *fold.test))


def opened(folder: Path) -> Run:
    """The federated run in a folder, to go on with.

    Raises:
        UserError: it is none.
    """
    run = runs.open_run(folder)
    if run.record["kind"] != "federate" or "sites" not in run.record:
        raise UserError(f"{folder} is no run of a deployment")
    return run
