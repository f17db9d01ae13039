"""What of a network is a client's own: which parameters travel, and which adapt to its people.

`local: head` is Arivazhagan et al. (2019), "Federated Learning with Personalization Layers" (arXiv
1912.00818): a client trains the whole network, sends the body and keeps the head. A client that
has never trained begins with the head that every network of the experiment's seed begins with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from affect.config import Experiment
from affect.data.datamodule import evaluation_dataset
from affect.data.preparation import SeriesCache
from affect.errors import UserError
from affect.models.heads import AffectModel
from affect.store import Entry
from affect.training.evaluate import Output, outputs_of
from affect.training.module import AffectModule
from affect.training.trained import Predict


def travelling(model: AffectModel, experiment: Experiment) -> list[nn.Parameter]:
    """The parameters that server and clients exchange: all, or those of the body."""
    own = {id(parameter) for parameter in staying(model, experiment)}
    return [parameter for parameter in model.parameters() if id(parameter) not in own]


def staying(model: AffectModel, experiment: Experiment) -> list[nn.Parameter]:
    """The parameters that no client sends."""
    local = experiment.federation.personalisation.local
    return list(model.head.parameters()) if local == "head" else []


@contextmanager
def adapting(model: AffectModel, experiment: Experiment) -> Iterator[list[nn.Parameter]]:
    """The parameters that adapt to a client's people; meanwhile the others are constants."""
    tune = experiment.federation.personalisation.tune
    chosen = list((model.head if tune == "head" else model).parameters())
    model.requires_grad_(requires_grad=False)
    for parameter in chosen:
        parameter.requires_grad_()
    try:
        yield chosen
    finally:
        model.requires_grad_()


def predictor(
    experiment: Experiment,
    held: Mapping[int, Sequence[Entry]],
    network_of: Callable[[int], AffectModule],
    series: SeriesCache,
) -> Predict:
    """Makes the output of each client's own network over some of the clients' recordings.

    Args:
        experiment: the configuration.
        held: recordings of each client, by its index.
        network_of: a client's network.
        series: prepares the recordings.
    """
    config = experiment.data

    def predict(entries: Sequence[Entry]) -> list[Output]:
        chosen = {entry.path for entry in entries}
        found: dict[Path, Output] = {}
        for client, theirs in held.items():
            if mine := [entry for entry in theirs if entry.path in chosen]:
                dataset = evaluation_dataset(mine, series, config)
                outputs = outputs_of(network_of(client), dataset, series, config)
                found |= {item.entry.path: item for item in outputs}
        return [found[entry.path] for entry in entries]

    return predict


def refuse_unfit(experiment: Experiment) -> None:
    """Refuse what does not go together with a client's own network.

    Raises:
        UserError: naming the key.
    """
    asked = experiment.federation.personalisation
    if asked.local == "head" and not asked.steps:
        raise UserError(
            "federation.personalisation.local head needs federation.personalisation.steps: "
            "validation and test clients have trained no head"
        )
    if not asked.steps:
        return
    if not experiment.data.split.calibration_fraction:
        raise UserError(
            "federation.personalisation.steps adapt to labels of validation and test people: give "
            "data.split.calibration_fraction, such as .2"
        )
    if experiment.evaluation.importance_repeats:
        raise UserError(
            "evaluation.importance_repeats is of one network, federation.personalisation gives "
            "each client its own: leave it out"
        )
