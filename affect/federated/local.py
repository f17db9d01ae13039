"""What happens at a client's place: its recordings surveyed, a network trained and evaluated there.

Nothing in here knows Flower. The steps are those of `affect fit`: the module's own training step,
optimiser, schedule, clipping and order of windows, so that a single client that holds all training
subjects learns the same to the bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import lightning
import numpy as np
import torch
from jaxtyping import Float32
from torch import nn

from affect import store
from affect.config import Experiment, OptimizerConfig, SchedulerConfig
from affect.data.calibration import CalibrationSeries, calibrating, calibration_frames
from affect.data.preparation import (
    Preparation,
    SeriesCache,
    selected_names,
    survey_of,
)
from affect.data.standardisation import Statistics, merge
from affect.errors import UserError
from affect.federated.correction import Correction, Proximal, Scaffold, correct
from affect.federated.draws import Draws
from affect.federated.flat import FlatParameters
from affect.federated.memory import Memory, remember
from affect.federated.messages import Evaluated, Surveyed, Trained
from affect.federated.personal import adapting, staying, travelling
from affect.federated.place import Place, Step
from affect.federated.privacy import noised
from affect.metrics import AffectMetrics
from affect.store import Entry
from affect.training.module import AffectModule, make_optimizer, make_schedule, rewind

_MIB = 2**20


def survey(entries: Sequence[Entry], experiment: Experiment) -> Surveyed:
    """What some recordings are like.

    Raises:
        UserError: they differ in rate or action units, or one has no frame with a face.
    """
    config = experiment.data
    first = store.read(entries[0].path)
    for entry in entries:
        if round(entry.rate_hz, 2) != round(first.rate_hz, 2):
            raise UserError(
                f"recording {first.key} has {first.rate_hz:g} frames a second, {entry.key} has "
                f"{entry.rate_hz:g}: use recordings of one rate"
            )
    names = selected_names(first, config.features)
    found = survey_of(entries, names, config)
    features = merge(found.subjects.values())
    return Surveyed(
        names=list(names),
        rate_hz=first.rate_hz,
        frames=sum(entry.frames for entry in entries),
        longest=max(entry.frames for entry in entries),
        features=_stacked(features) if "train" in config.standardise else None,
        centred=_stacked(found.centred) if "centred" in config.standardise else None,
        labels=_stacked(found.labels),
    )


class LocalTraining:
    """A network that is trained at one place after another, on one device.

    Args:
        experiment: model, loss, optimiser, schedule, and the federation's local work.
        preparation: how recordings become the network's input.
        entries: the recordings of each client, by its index.
        memory: what clients keep between rounds.
        device: where to compute.
        draws: where the noise of local differential privacy comes from.
    """

    def __init__(
        self,
        experiment: Experiment,
        preparation: Preparation,
        entries: Mapping[int, Sequence[Entry]],
        memory: Memory,
        device: torch.device,
        draws: Draws,
    ) -> None:
        self._draws = draws
        self._experiment = experiment
        self._entries = entries
        self._memory = memory
        self.module = initial_module(experiment, preparation.features).to(device)
        self._travelling = FlatParameters(travelling(self.module.model, experiment))
        self._staying = FlatParameters(staying(self.module.model, experiment))
        self._first_head = self._staying.read()
        federation = experiment.federation
        self._keeps_head = federation.personalisation.local == "head"
        self._remembers = remember(experiment)
        self._optimization = federation.optimizer or experiment.optimizer
        self._scheduling = federation.scheduler or experiment.scheduler
        self._optimizer = make_optimizer(self.module.model.parameters(), self._optimization)
        limit_bytes = experiment.data.memory_mb * _MIB
        self._series = SeriesCache(preparation, limit_bytes)
        self._calibration_series = CalibrationSeries(preparation, limit_bytes)
        self._places: dict[int, Place] = {}
        self._calibrations: dict[int, Place] = {}
        self._settings: dict[tuple[int, int], list[dict[str, Any]]] = {}

    def train(
        self,
        client: int,
        round_: int,
        parameters: Float32[np.ndarray, " P"],
        control: Float32[np.ndarray, " P"] | None = None,
        memory: int | None = None,
    ) -> Trained:
        """What a client learns in a round.

        Args:
            client: its index.
            round_: 1 for the first.
            parameters: that travel, at the round's start.
            control: the server's control variate, of SCAFFOLD alone.
            memory: the round after which the client kept what it starts from; None for nothing.

        Raises:
            UserError: there are more or fewer parameters than the network has, what it kept is
                lost, or what it would keep is not finite.
        """
        start_s = time.perf_counter()
        work = self.assigned(client, round_, parameters, control, memory)
        self._load(parameters, work.own.get("head"))
        self._switch(training=True)
        rewind(self._optimizer)
        steps, walked = 0, 0.0
        for step in work.steps:
            self._take(step, work.place, client, self._optimizer, work.correction)
            steps += 1
            walked += float(self._optimizer.param_groups[0]["lr"])
        return self.reply(
            work,
            self._travelling.read(),
            walked,
            head=self._staying.read() if self._keeps_head else None,
            **_scored(self.module.metrics_of("train")),
            steps=steps,
            seconds=time.perf_counter() - start_s,
        )

    def assigned(
        self,
        client: int,
        round_: int,
        parameters: Float32[np.ndarray, " P"],
        control: Float32[np.ndarray, " P"] | None = None,
        memory: int | None = None,
    ) -> Assignment:
        """What a client is to do in a round; see `train`."""
        place = self._place(client)
        own = self._memory.after(client, memory) if self._remembers else {}
        correction = self._correction(own, parameters, control)
        steps = self._steps(place, round_)
        return Assignment(client, round_, parameters, memory, own, place, steps, correction)

    def reply(
        self,
        work: Assignment,
        trained: Float32[np.ndarray, " P"],
        walked: float,
        head: Float32[np.ndarray, " H"] | None = None,
        **effort: Any,
    ) -> Trained:
        """A client's answer; what it keeps for later rounds is kept.

        Args:
            work: what it was to do.
            trained: parameters of its network that travel.
            walked: sum of its learning rates over its steps.
            head: those that stay, of FedPer alone.
            effort: scores, steps and seconds, as in `Trained`.

        Raises:
            UserError: what it would keep is not finite.
        """
        change, kept = None, {}
        if isinstance(work.correction, Scaffold):
            change = work.correction.change(work.start, trained, walked)
            kept["control"] = work.correction.own + change
        if head is not None:
            kept["head"] = head
        if kept:
            self._memory.keep(work.client, work.round, kept, work.memory)
        return Trained(
            parameters=self._sent(work.client, work.round, work.start, trained),
            control=change,
            frames=work.place.frames,
            **effort,
        )

    def _correction(
        self, own: Mapping[str, np.ndarray], start: np.ndarray, control: np.ndarray | None
    ) -> Correction | None:
        """What the strategy adds to the gradients of a client, given what it has kept."""
        config = self._experiment.federation.strategy
        if config.name == "fedprox":
            return Proximal(start, config.mu)
        if config.name != "scaffold":
            return None
        none = np.zeros_like(start)
        return Scaffold(own.get("control", none), none if control is None else control)

    def _sent(
        self, client: int, round_: int, start: np.ndarray, trained: np.ndarray
    ) -> Float32[np.ndarray, " P"]:
        """What leaves the client: its parameters, noised under local differential privacy."""
        privacy = self._experiment.federation.privacy
        if privacy.mode != "local":
            return trained
        return noised(trained, start, privacy, self._draws(round_, 2, client))

    def evaluate(self, client: int, parameters: Float32[np.ndarray, " P"]) -> Evaluated:
        """How a client's network does on what is scored of its recordings; see `personalised`."""
        self.personalised(client, parameters)
        place = self._place(client)
        self._switch(training=False)
        with torch.inference_mode():
            for index, batch in enumerate(place.evaluation(self._experiment.data.eval_batch_size)):
                self.module.validation_step(batch.to(self.module.device), index)
        return Evaluated(**_scored(self.module.metrics_of("val")))

    def personalised(self, client: int, parameters: Float32[np.ndarray, " P"]) -> AffectModule:
        """The network of a client of validation or test, adapted to its calibration part.

        It is this object's own network, which the next call changes.

        Args:
            client: its index.
            parameters: that travel.

        Raises:
            UserError: there are more or fewer parameters than the network has, or the calibration
                part has no label.
        """
        place = self._calibration(client)
        self._load(parameters)
        config = self._experiment.federation.personalisation
        if config.steps and place.frames:
            tuning = replace(self._optimization, lr=config.lr or self._optimization.lr)
            self._switch(training=True)
            with adapting(self.module.model, self._experiment) as chosen:
                optimizer = make_optimizer(chosen, tuning)
                for step in islice(place.steps(0), config.steps):
                    self._take(step, place, client, optimizer)
            self.module.metrics_of("train").reset()
        return self.module

    def _calibration(self, client: int) -> Place:
        """The calibration part of a client, whose labels are scored no more."""
        if client not in self._calibrations:
            self._place(client)
            entries = self._entries[client]
            frames = calibration_frames(entries, self._experiment.data)
            self._series.unscored |= frames
            self._calibration_series.preparation = self._series.preparation
            place = Place(self._experiment, calibrating(entries, frames), self._calibration_series)
            if frames and not place.labelled:
                raise UserError(
                    "the calibration part of a client is shorter than the annotation delay: raise "
                    "data.split.calibration_fraction"
                )
            self._calibrations[client] = place
        return self._calibrations[client]

    def _place(self, client: int) -> Place:
        if client not in self._places:
            entries = self._entries[client]
            self._series.preparation = self._series.preparation.with_subjects(entries)
            self._places[client] = Place(self._experiment, entries, self._series)
        return self._places[client]

    def _switch(self, *, training: bool) -> None:
        """Into the mode; Lightning's own way through all layers costs a tenth of a tiny client."""
        if self.module.training != training:
            self.module.train(training)

    def _load(
        self,
        parameters: Float32[np.ndarray, " P"],
        head: Float32[np.ndarray, " H"] | None = None,
    ) -> None:
        """Into the network; without a head of its own it takes the one that all begin with."""
        self._travelling.write(parameters)
        self._staying.write(self._first_head if head is None else head)

    def _steps(self, place: Place, round_: int) -> Iterator[Step]:
        """The optimiser steps of a round: whole passes, or so many steps from where it stopped."""
        federation = self._experiment.federation
        a_pass = place.steps_per_pass
        count = federation.local_steps or federation.local_epochs * a_pass
        first = (round_ - 1) * count
        epoch, skipped = divmod(first, a_pass)
        settings = self._schedule(count * federation.rounds, a_pass)
        for number, step in enumerate(islice(place.steps(epoch), skipped, skipped + count), first):
            yield replace(step, settings=settings[number]) if settings else step

    def _schedule(self, total_steps: int, steps_per_pass: int) -> list[dict[str, Any]]:
        """See `settings_of`; empty where nothing changes."""
        key = (total_steps, steps_per_pass)
        if self._scheduling.name == "constant":
            return []
        if key not in self._settings:
            self._settings[key] = settings_of(self._optimization, self._scheduling, *key)
        return self._settings[key]

    def _take(
        self,
        step: Step,
        place: Place,
        client: int,
        optimizer: torch.optim.Optimizer,
        correction: Correction | None = None,
    ) -> None:
        """One optimiser step, over one batch or several whose gradients are accumulated."""
        config = self._experiment.trainer
        for group in optimizer.param_groups:
            group.update(step.settings)
        optimizer.zero_grad()
        for index, windows in step.batches.items():
            batch = place.batch(windows)
            self.module.seed_dropout(step.epoch, index, client)
            with self._precision():
                loss = self.module.training_step(batch.to(self.module.device), index)
            (loss / config.accumulate_grad_batches).backward()
        if correction is not None:
            correct(correction, self._travelling.parameters)
        if config.gradient_clip_val is not None:
            trained = optimizer.param_groups[0]["params"]
            nn.utils.clip_grad_norm_(trained, config.gradient_clip_val)
        optimizer.step()

    def _precision(self) -> Any:
        half = self._experiment.trainer.precision == "bf16-mixed"
        return torch.autocast(self.module.device.type, torch.bfloat16, enabled=half)


@dataclass(frozen=True)
class Assignment:
    """What a client is to do in a round.

    Attributes:
        client: its index.
        round: 1 for the first.
        start: parameters that travel, at the round's start.
        memory: the round after which the client kept what it starts from; None for nothing.
        own: what that is.
        place: the client's windows.
        steps: the optimiser steps, one after another.
        correction: what the strategy adds to the gradients.
    """

    client: int
    round: int
    start: Float32[np.ndarray, " P"]
    memory: int | None
    own: Mapping[str, np.ndarray]
    place: Place
    steps: Iterator[Step]
    correction: Correction | None


def initial_module(experiment: Experiment, features: int) -> AffectModule:
    """The network with the weights that every run of this seed starts from."""
    lightning.seed_everything(experiment.seed, verbose=False)
    return AffectModule(experiment, features)


def settings_of(
    optimizer: OptimizerConfig, scheduler: SchedulerConfig, total_steps: int, steps_per_pass: int
) -> list[dict[str, Any]]:
    """What a schedule sets the optimiser's options to, at each step of a client's whole training.

    Args:
        optimizer: which one.
        scheduler: which one.
        total_steps: of all rounds.
        steps_per_pass: after which a schedule by epochs moves.
    """
    imitation = make_optimizer([nn.Parameter(torch.zeros(1))], optimizer)
    schedule = make_schedule(imitation, scheduler, total_steps)
    settings = []
    for step in range(1, total_steps + 1):
        group = imitation.param_groups[0]
        settings.append({name: group[name] for name in group if name != "params"})
        imitation.step()
        if schedule.get("interval") == "step" or step % steps_per_pass == 0:
            schedule["scheduler"].step()
    return settings


def _scored(seen: AffectMetrics) -> dict[str, Any]:
    """What metrics have seen as a reply's fields; they start anew."""
    fields = {
        "moments": seen.moments.cpu().numpy(),
        "losses": (seen.losses / seen.batches).cpu().numpy(),
        "batches": int(seen.batches),
    }
    seen.reset()
    return fields


def _stacked(statistics: Statistics) -> np.ndarray:
    return np.stack([statistics.count, statistics.mean, statistics.deviations])
