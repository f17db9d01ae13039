"""What the server and its clients agree on before the first round: one Preparation for all.

It is made of the clients' surveys, which hold names, counts and moments; no recording travels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from affect.config import DataConfig
from affect.data.annotation import delay_from_moments
from affect.data.preparation import Preparation, given_delays
from affect.data.standardisation import Statistics, merge
from affect.errors import UserError
from affect.federated.messages import Delayed, Surveyed
from affect.federated.population import Client

_CONSTANT_STD = 1e-6


def agreed(surveys: Mapping[Client, Surveyed], config: DataConfig) -> Preparation:
    """The preparation that all clients use, without an estimated delay.

    Only training clients' moments enter, merged in the order of the clients.

    Args:
        surveys: what each client has; training clients first.
        config: which dimensions, gold standard, forms and delay.

    Raises:
        UserError: clients differ in action units or rate, a part has no label of a dimension or
            constant ones, the recordings are too short for the delay or the window.
    """
    first, survey = next(iter(surveys.items()))
    for client, other in surveys.items():
        _refuse_unlike(client, other, first, survey)
    _refuse_labels(surveys, config.dimensions)
    train = [item for client, item in surveys.items() if client.part == "train"]
    longest = max(item.longest for item in train)
    if config.window_frames is not None and longest < config.window_frames:
        raise UserError(
            f"data.window_frames is {config.window_frames}, the longest training recording has "
            f"{longest} frames: choose a shorter window"
        )
    estimated = config.delay_s == "auto"
    return Preparation(
        feature_names=tuple(survey.names),
        dimensions=tuple(config.dimensions),
        gold_standard=config.gold_standard,
        standardise=tuple(config.standardise),
        delay_s=(0.0,) * len(config.dimensions)
        if estimated
        else given_delays(config, longest / survey.rate_hz),
        rate_hz=survey.rate_hz,
        train=_merged([item.features for item in train], len(survey.names)),
        train_centred=_merged([item.centred for item in train], len(survey.names)),
    )


def with_delays(preparation: Preparation, moments: Sequence[Delayed]) -> Preparation:
    """The same preparation with the delays that the training clients' moments show.

    Raises:
        UserError: fewer than two of the clients have a recording that is long enough.
    """
    found = [
        (item.features, item.products, item.labels)
        for item in moments
        if item.features is not None and item.products is not None and item.labels is not None
    ]
    if len(found) < 2:  # noqa: PLR2004 - one to learn from, one to judge
        raise UserError(
            "data.delay_s: auto takes two training clients with recordings of more than 8 s and "
            f"finds {len(found)}: give the delay in seconds"
        )
    delays = [
        delay_from_moments(
            [(features, products[d], labels[d]) for features, products, labels in found],
            preparation.rate_hz,
        )
        for d in range(len(preparation.dimensions))
    ]
    return replace(preparation, delay_s=tuple(delays))


def _refuse_unlike(client: Client, survey: Surveyed, first: Client, expected: Surveyed) -> None:
    if survey.names != expected.names:
        raise UserError(
            f"client {client.name} has the action units {', '.join(survey.names)}, client "
            f"{first.name} has {', '.join(expected.names)}: choose common ones with data.features"
        )
    if round(survey.rate_hz, 2) != round(expected.rate_hz, 2):
        raise UserError(
            f"client {client.name} has {survey.rate_hz:g} frames a second, client {first.name} "
            f"has {expected.rate_hz:g}: use recordings of one rate"
        )


def _refuse_labels(surveys: Mapping[Client, Surveyed], dimensions: Sequence[str]) -> None:
    for part in ("train", "val", "test"):
        parts = [Statistics(*item.labels) for c, item in surveys.items() if c.part == part]
        if not parts:
            continue
        labels = merge(parts)
        for column, dimension in enumerate(dimensions):
            if not labels.count[column]:
                raise UserError(
                    f"no {part} client has labels of {dimension!r}: mend data.dimensions or "
                    "data.split"
                )
            if labels.std[column] < _CONSTANT_STD:
                raise UserError(
                    f"the labels of {dimension!r} are constant over all {part} clients: "
                    "there is nothing to learn or to score, mend the annotations or data.split"
                )


def _merged(parts: Sequence[np.ndarray | None], width: int) -> Statistics:
    known = [Statistics(*part) for part in parts if part is not None]
    return merge(known) if known else Statistics(*np.zeros((3, width)))
