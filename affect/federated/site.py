"""One place and its clients: answers each request from the recordings that are there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from affect import config
from affect.config import Experiment, SecureAggregationConfig, TrainerConfig
from affect.data.annotation import delay_moments
from affect.data.calibration import calibration_frames
from affect.data.preparation import Preparation, load_series, long_enough
from affect.devices import device_of
from affect.errors import UserError
from affect.federated.cohort import CohortTraining, attempted
from affect.federated.draws import Draws, seeded
from affect.federated.local import Assignment, LocalTraining, survey
from affect.federated.memory import Memory
from affect.federated.messages import (
    Delayed,
    Delays,
    Evaluate,
    Evaluated,
    MakeKeys,
    Masked,
    Pieces,
    PublicKeys,
    Request,
    SealedShares,
    ShareSecrets,
    Survey,
    Surveyed,
    Train,
    Trained,
    TrainMasked,
    Unmask,
)
from affect.federated.secure.client import Masking
from affect.federated.secure.numbers import contribution
from affect.store import Entry


class Site:
    """The recordings at one place, which never leave it.

    Args:
        entries: the recordings of each client at this place, by the client's index.
        memory: folder of what clients keep between rounds.
        device: where to compute.
        draws: where the noise of local differential privacy comes from; None for the
            experiment's seed.
    """

    def __init__(
        self,
        entries: Mapping[int, Sequence[Entry]],
        memory: Path,
        device: torch.device,
        draws: Draws | None = None,
    ) -> None:
        self._entries = entries
        self._memory = Memory(memory)
        self._masking = Masking(memory)
        self._device = device
        self._draws = draws
        self._training: LocalTraining | None = None
        self._trains = ("", "")

    def survey(self, request: Survey) -> Surveyed:
        """What a client has.

        Raises:
            UserError: it has nothing, or what it has does not go together.
        """
        entries, experiment = self._of(request.client), experiment_of(request.experiment)
        if request.part != "train":
            calibration_frames(entries, experiment.data)  # refused before the first round
        return survey(entries, experiment)

    def delays(self, request: Delays) -> Delayed:
        """A client's moments for the estimate of the delay; none where all recordings are short."""
        entries = self._of(request.client)
        preparation = _preparation(request.preparation).with_subjects(entries)
        long = long_enough(entries, preparation.rate_hz)
        if not long:
            return Delayed()
        series = [load_series(entry, preparation) for entry in long]
        columns = range(len(preparation.dimensions))
        sums = [
            [
                np.sum(parts, axis=0)
                for parts in zip(
                    *(
                        delay_moments(item.features, item.reference[:, d], preparation.rate_hz)
                        for item in series
                    ),
                    strict=True,
                )
            ]
            for d in columns
        ]
        return Delayed(
            features=sums[0][0],
            products=np.stack([item[1] for item in sums]),
            labels=np.stack([item[2] for item in sums]),
        )

    def train(self, request: Train) -> Trained:
        """What a client has learned; see `LocalTraining.train`.

        Raises:
            UserError: the experiment says that no client shows what it has learned.
        """
        if _secure(request).enabled:
            raise UserError("asked for an update without masks in a run with secure aggregation")
        training = self._trained_by(request)
        start = request.parameters, request.control, request.memory
        return training.train(request.client, request.round, *start)

    def keys(self, request: MakeKeys) -> PublicKeys:
        """A client's public keys of a round; see `Masking.keys`."""
        return self._masking.keys(request)

    def shares(self, request: ShareSecrets) -> SealedShares:
        """A client's secrets, sealed for its neighbours; see `Masking.shares`."""
        return self._masking.shares(request, _secure(request))

    def train_masked(self, request: TrainMasked) -> Masked:
        """What a client has learned, under masks; see `contribution` and `Masking.masked`."""
        federation = experiment_of(request.experiment).federation

        def learned() -> Masked:
            training = self._trained_by(request)
            start = request.parameters, None, request.memory
            trained = training.train(request.client, request.round, *start)
            rounding = seeded(experiment_of(request.experiment).seed)
            place = (request.round, 3, request.client)
            return contribution(trained, request.parameters, federation, rounding(*place))

        return self._masking.masked(request, learned, federation.privacy.secure_aggregation)

    def unmask(self, request: Unmask) -> Pieces:
        """Pieces of the secrets of a client's neighbours; see `Masking.pieces`."""
        return self._masking.pieces(request, _secure(request))

    def train_together(self, requests: Sequence[Train]) -> list[Trained | Exception]:
        """What each client of a cohort has learned, or why it failed; see `CohortTraining`.

        Args:
            requests: to the clients, in one round.
        """
        begun = [attempted(self._assigned, request) for request in requests]
        works = [item for item in begun if isinstance(item, Assignment)]
        learned: Iterator[Trained | Exception] = iter(())
        if works and self._training is not None:
            experiment = experiment_of(self._trains[0])
            learned = iter(CohortTraining(experiment, self._training).train(works))
        return [item if isinstance(item, Exception) else next(learned) for item in begun]

    def _assigned(self, request: Train) -> Assignment:
        training = self._trained_by(request)
        start = request.parameters, request.control, request.memory
        return training.assigned(request.client, request.round, *start)

    def evaluate(self, request: Evaluate) -> Evaluated:
        """How a network does at a client; see `LocalTraining.evaluate`."""
        return self._trained_by(request).evaluate(request.client, request.parameters)

    def _of(self, client: int) -> Sequence[Entry]:
        entries = self._entries.get(client)
        if not entries:
            raise UserError(f"there is no recording of client {client} at this place")
        return entries

    def _trained_by(self, request: Train | TrainMasked | Evaluate) -> LocalTraining:
        self._of(request.client)
        asked = (request.experiment, request.preparation)
        if self._training is None or self._trains != asked:
            experiment, preparation = experiment_of(asked[0]), _preparation(asked[1])
            self._training = LocalTraining(
                experiment,
                preparation,
                self._entries,
                self._memory,
                self._device,
                self._draws or seeded(experiment.seed),
            )
            self._trains = asked
        return self._training


def device_for(trainer: TrainerConfig, number: int = 0) -> torch.device:
    """Where a process computes; processes take turns on the GPUs.

    Args:
        trainer: asks for an accelerator.
        number: of the process, 0 for the first.

    Raises:
        UserError: it is not there.
    """
    device = device_of({"gpu": "cuda"}.get(trainer.accelerator, trainer.accelerator))
    if device.type != "cuda" or device.index is not None:
        return device
    return torch.device("cuda", number % torch.cuda.device_count())


@lru_cache(maxsize=2)
def experiment_of(text: str) -> Experiment:
    """The experiment that a request holds as text.

    Raises:
        UserError: it is none.
    """
    return config.from_yaml(text)


def _secure(request: Request) -> SecureAggregationConfig:
    return experiment_of(request.experiment).federation.privacy.secure_aggregation


@lru_cache(maxsize=2)
def _preparation(text: str) -> Preparation:
    return Preparation.from_json(json.loads(text))
