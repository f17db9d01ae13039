"""The server: rounds of training and validation over any Flower Grid.

It knows clients by their indices and what they answer; it holds no recording.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from flwr.serverapp import Grid
from jaxtyping import Float32

from affect import config as configuration
from affect.config import Experiment, RayConfig, SourceConfig
from affect.data.annotation import lags_of
from affect.data.preparation import Preparation
from affect.errors import UserError
from affect.federated import privacy, strategy
from affect.federated.agreement import agreed, with_delays
from affect.federated.draws import Draws, seeded
from affect.federated.exchange import Cost, Exchange, Failure, Own, complete
from affect.federated.gathered import ControlSum, Gathered
from affect.federated.memory import remember
from affect.federated.messages import (
    Content,
    Delayed,
    Delays,
    Evaluate,
    Evaluated,
    Survey,
    Surveyed,
    Train,
    Trained,
)
from affect.federated.population import Client, clients_per_round, of_part, sample
from affect.federated.secure import refusals
from affect.federated.secure.leader import SecureRound, Start
from affect.federated.secure.numbers import masked_tallies
from affect.federated.secure.outcome import Outcome
from affect.federated.strategy import Slots, Update
from affect.training.scores import MONITOR

_Reply = TypeVar("_Reply", bound=Content)
_Scored = TypeVar("_Scored", Trained, Evaluated)


@dataclass(frozen=True)
class State:
    """All that a federation has come to after a round; what the next one starts from.

    Attributes:
        round: the last finished one; 0 before the first.
        parameters: of the network.
        slots: what the strategy remembers.
        clipping_norm: of the next round, under differential privacy.
        best_parameters: of the best validated round.
        best_round: which that was; 0 before any.
        best_ccc: its validation CCC.
        waited: validations since that one.
        memories: the last round in which each client's answer was taken in, by its index, where
            clients keep something between rounds: what it kept then is what it goes on from.
        bytes_down: sent to clients in all rounds.
        bytes_up: received from them.
    """

    round: int
    parameters: Float32[np.ndarray, " P"]
    best_parameters: Float32[np.ndarray, " P"]
    slots: Slots = field(default_factory=dict)
    clipping_norm: float = 1.0
    best_round: int = 0
    best_ccc: float = -np.inf
    waited: int = 0
    memories: Mapping[int, int] = field(default_factory=dict)
    bytes_down: int = 0
    bytes_up: int = 0


@dataclass(frozen=True)
class Round:
    """What a round has come to.

    Attributes:
        state: after it.
        metrics: over all its clients, under the keys that every mode shares.
        clients: what each client did, by its name.
        failures: clients that were skipped.
        seconds: by phase.
        bytes_down: sent to clients.
        bytes_up: received from them.
        epsilon: spent so far; 0 without differential privacy.
        drift: root mean square distance of the clients' models from their weighted mean.
    """

    state: State
    metrics: Mapping[str, float]
    clients: Sequence[Mapping[str, float | str]]
    failures: Sequence[Failure]
    seconds: Mapping[str, float]
    bytes_down: int
    bytes_up: int
    epsilon: float
    drift: float | None


class Server:
    """Leads a federation.

    Args:
        grid: reaches the clients.
        clients: all of them, those of training first.
        node_of: the node of each client, by the client's index.
        experiment: the configuration.
        run: names the federation where a site takes part in several.
        draws: where chance comes from; None for the experiment's seed.

    Raises:
        UserError: the federation asks for what cannot be had together.
    """

    def __init__(
        self,
        grid: Grid,
        clients: Sequence[Client],
        node_of: Mapping[int, int],
        experiment: Experiment,
        *,
        run: str = "run",
        draws: Draws | None = None,
    ) -> None:
        self._clients = clients
        privacy.refuse_unfit(experiment.federation)
        self._train = of_part(clients, "train")
        self._expected = clients_per_round(len(self._train), experiment.federation)
        refusals.refuse_unfit(experiment.federation, len(self._train), self._expected)
        self._config = privacy.calibrated(experiment.federation, len(self._train), self._expected)
        experiment = replace(experiment, federation=self._config)
        self._experiment = experiment
        self._about = (configuration.to_yaml(shared(experiment)), run, 0, "train")
        seed = experiment.seed if self._config.seed is None else self._config.seed
        self._draws = draws or seeded(seed)
        self._preparation = ""
        dimensions = len(experiment.data.dimensions)
        sizes = {"D": dimensions, "M": masked_tallies(dimensions)}
        self._exchange = Exchange(grid, node_of, self._config, sizes)
        # kept, since to count one takes longer than to train a tiny client
        self._epsilon = cache(
            partial(privacy.spent, self._config, len(self._train), self._expected)
        )
        self._refuse_overdrawn()

    def agree(self) -> Preparation:
        """The preparation that all clients have agreed on.

        Raises:
            UserError: a client does not answer, or clients do not go together.
        """
        asked = self._exchange.answers(self._clients, Survey(*self._about), Surveyed)
        preparation = agreed(dict(complete(asked)), self._experiment.data)
        if self._experiment.data.delay_s != "auto":
            return preparation
        request = Delays(*self._about, json.dumps(preparation.to_json()))
        lags = len(lags_of(preparation.rate_hz))
        self._exchange.sizes |= {"F": preparation.features, "L": lags}
        answers = self._exchange.answers(self._train, request, Delayed)
        return with_delays(preparation, [reply for _, reply in complete(answers)])

    def rounds(self, state: State, preparation: Preparation) -> Iterator[Round]:
        """The rounds that are left, one after another.

        They end early before a round that would spend more than `max_epsilon`, and after as many
        validations without a better one as `trainer.patience` allows. The last is validated.

        Args:
            state: after the last round that was finished.
            preparation: what the clients have agreed on.

        Raises:
            UserError: more clients fail than are allowed to, or training diverges.
        """
        self._preparation = json.dumps(preparation.to_json())
        patience = self._experiment.trainer.patience
        while not self._is_last(state.round) and (patience is None or state.waited < patience):
            done = self._round(state.round + 1, state)
            state = done.state
            yield done

    def _is_last(self, number: int) -> bool:
        """Whether no round may follow this one, however well it went."""
        limit = self._config.privacy.max_epsilon
        if number >= self._config.rounds or limit is None:
            return number >= self._config.rounds
        return self._epsilon(number + 1) > limit

    def _refuse_overdrawn(self) -> None:
        if self._is_last(0):
            raise UserError(
                f"federation.privacy.max_epsilon is {self._config.privacy.max_epsilon}, one round "
                f"spends {self._epsilon(1):.3g}: raise it, or federation.privacy.noise_multiplier"
            )

    def spent(self, rounds: int) -> dict[str, float]:
        """What so many rounds cost: `epsilon`, `delta` and the noise; empty without privacy."""
        private = self._config.privacy
        if private.mode == "none":
            return {}
        return {
            "epsilon": self._epsilon(rounds),
            "delta": privacy.delta_of(private, len(self._train)),
            "noise_multiplier": private.noise_multiplier,
        }

    @property
    def doubt(self) -> str:
        """What makes the privacy that is asked for worth little, in a line; empty for nothing."""
        return privacy.doubt(self._config.privacy, len(self._train))

    def final(
        self, parameters: Float32[np.ndarray, " P"], preparation: Preparation
    ) -> dict[str, float]:
        """Validation and test metrics of a network, from the moments of those clients.

        Raises:
            UserError: more clients fail than are allowed to.
        """
        self._preparation = json.dumps(preparation.to_json())
        clients = [client for client in self._clients if client.part != "train"]
        request = Evaluate(*self._about, self._preparation, self._config.rounds, parameters)
        answers = list(self._exchange.tolerated(clients, request, Evaluated))
        values: dict[str, float] = {}
        for part in ("val", "test"):
            gathered = Gathered(self._experiment.data.dimensions)
            for _ in gathered.taking((c, reply) for c, reply in answers if c.part == part):
                pass
            values |= gathered.scores(part)
        return values

    def _round(self, number: int, state: State) -> Round:
        cost = self._exchange.cost = Cost()
        start_s = time.perf_counter()
        chosen = sample(self._train, self._draws(number), self._config)
        secure = self._config.privacy.secure_aggregation.enabled
        train = self._trained_masked if secure else self._trained
        state, combined, training = train(number, state, chosen)
        trained_s = time.perf_counter()
        waited_s = cost.waited_s
        values = training.scores("train")
        evaluation = Gathered(self._experiment.data.dimensions)
        if number % self._config.evaluate_every == 0 or self._is_last(number):
            self._evaluate(number, state.parameters, evaluation)
            values |= evaluation.scores("val")
            _refuse_unscored(values, number)
            state = _validated(state, values[MONITOR])
        state = replace(
            state,
            bytes_down=state.bytes_down + cost.bytes_down,
            bytes_up=state.bytes_up + cost.bytes_up,
        )
        return Round(
            state=state,
            metrics=values,
            clients=[*training.rows(), *evaluation.rows()],
            failures=[*training.failures, *evaluation.failures],
            seconds={
                "train": waited_s,
                "aggregate": trained_s - start_s - waited_s,
                "evaluate": time.perf_counter() - trained_s,
            },
            bytes_down=cost.bytes_down,
            bytes_up=cost.bytes_up,
            epsilon=self._epsilon(number),
            drift=training.drift(combined, self._config),
        )

    def _trained(
        self, number: int, state: State, chosen: Sequence[Client]
    ) -> tuple[State, np.ndarray, Gathered]:
        """The state after a round's training, the clients' models in one, and their scores."""
        training = Gathered(self._experiment.data.dimensions, state.parameters)
        control = None
        if self._config.strategy.name == "scaffold":
            none = np.zeros_like(state.parameters)
            control = state.slots.get("control", none).astype(np.float32)
        asked = *self._about, self._preparation, number, state.parameters
        memories = {client: {"memory": round_} for client, round_ in state.memories.items()}
        answers = self._exchange.tolerated(chosen, Train(*asked, control), Trained, memories)
        state, combined = self._aggregated(number, state, training.taking(answers))
        failed = {failure.client.index for failure in training.failures}
        there = [client for client in chosen if client.index not in failed]
        return self._remembering(state, there), combined, training

    def _trained_masked(
        self, number: int, state: State, chosen: Sequence[Client]
    ) -> tuple[State, np.ndarray, Outcome]:
        """The same by secure aggregation."""
        failures: list[Failure] = []

        def exchange(
            clients: Sequence[Client], request: Content, reply: type[_Reply], own: Own
        ) -> Iterator[tuple[Client, _Reply]]:
            for client, answer in self._exchange.answers(clients, request, reply, own):
                if isinstance(answer, Failure):
                    failures.append(answer)
                else:
                    yield client, answer
            self._exchange.refuse_failures(failures, len(chosen))

        start = Start(self._about, self._preparation, number, state.parameters, state.memories)
        rules = self._config.privacy.secure_aggregation
        total, clients = SecureRound(exchange, start, rules).summed(chosen)
        outcome = Outcome(total, clients, failures, self._experiment.data.dimensions, rules)
        noise = self._draws(number, 1)
        combined = outcome.combined(state.parameters, self._expected, self._config, noise)
        parameters, slots = self._stepped(state, combined, number)
        state = replace(state, round=number, parameters=parameters, slots=slots)
        return self._remembering(state, clients), combined, outcome

    def _remembering(self, state: State, clients: Sequence[Client]) -> State:
        """The state that knows of what these clients have kept in its round, if they keep any."""
        if not remember(self._experiment):
            return state
        now = {client.index: state.round for client in clients}
        return replace(state, memories={**state.memories, **now})

    def _aggregated(
        self, number: int, state: State, replies: Iterator[Trained]
    ) -> tuple[State, np.ndarray]:
        """The state after a round's training, and the clients' models in one."""
        config = self._config
        changes = ControlSum()
        weighted = (
            Update(reply.parameters, float(reply.frames)) for reply in changes.taking(replies)
        )
        norm = state.clipping_norm
        if config.privacy.mode == "central":
            noise = self._draws(number, 1)
            private = privacy.released(
                weighted, state.parameters, self._expected, norm, config.privacy, noise
            )
            combined, norm = private.combined, private.clipping_norm
        else:
            combined = strategy.combine(weighted, config.strategy)
        parameters, slots = self._stepped(state, combined, number)
        if changes.total is not None:
            slots["control"] = slots.get("control", 0.0) + changes.total / len(self._train)
        state = replace(state, round=number, parameters=parameters, slots=slots, clipping_norm=norm)
        return state, combined

    def _stepped(self, state: State, combined: np.ndarray, number: int) -> tuple[np.ndarray, Slots]:
        """The next model, and what the strategy remembers.

        Raises:
            UserError: the step leaves what numbers can hold.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # told below, in one line
            parameters, slots = strategy.step(
                state.parameters, combined, dict(state.slots), self._config.strategy
            )
        if not np.isfinite(parameters).all():
            noise = "" if self._config.privacy.mode == "none" else ", or the noise of the privacy"
            raise UserError(
                f"the server's step of round {number} leaves the range of numbers, training "
                f"diverged: lower federation.strategy.server_lr or optimizer.lr{noise}"
            )
        return parameters, slots

    def _evaluate(self, number: int, parameters: np.ndarray, gathered: Gathered) -> None:
        clients = of_part(self._clients, "val")
        request = Evaluate(*self._about, self._preparation, number, parameters)
        for _ in gathered.taking(self._exchange.tolerated(clients, request, Evaluated)):
            pass


def shared(experiment: Experiment) -> Experiment:
    """What clients are told of an experiment: nothing of the server's folders and accounts."""
    split = replace(experiment.data.split, file=Path(experiment.data.split.file).name)
    data = replace(experiment.data, cache="cache", source=SourceConfig(), corpus="", split=split)
    return Experiment(
        seed=experiment.seed,
        data=data,
        model=experiment.model,
        loss=experiment.loss,
        optimizer=experiment.optimizer,
        scheduler=experiment.scheduler,
        trainer=experiment.trainer,
        federation=replace(experiment.federation, engine="inprocess", ray=RayConfig()),
    )


def _validated(state: State, ccc: float) -> State:
    """The state after a validation, which may be the best one."""
    if not ccc > state.best_ccc:
        return replace(state, waited=state.waited + 1)
    best = {"best_parameters": state.parameters, "best_round": state.round}
    return replace(state, best_ccc=ccc, waited=0, **best)


def _refuse_unscored(values: Mapping[str, float], number: int) -> None:
    for name, value in values.items():
        if not np.isfinite(value):
            raise UserError(
                f"{name} is {value} in round {number}: either no recording of that part has such "
                "labels, or training diverged (lower optimizer.lr or federation.strategy.server_lr)"
            )
