"""A cohort: clients whose networks are trained together, as one batched computation.

Each client takes the steps that it takes alone: its own order of windows, dropout, schedule,
correction, clipping and optimiser state. Only the arithmetic is shared, so that results differ from
training one client after another by rounding alone. A client that is done waits for the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional

from affect.config import Experiment
from affect.data.windows import Batch, Window, collate
from affect.errors import UserError
from affect.federated.correction import stacked
from affect.federated.local import Assignment, LocalTraining
from affect.federated.messages import Trained
from affect.federated.place import Step
from affect.metrics import affect_loss, merge, moments
from affect.models.stacked import STACKABLE, Stack
from affect.training.module import AffectModule, make_optimizer

_Result = TypeVar("_Result")
_TINY = 1e-6
"""What torch's clipping adds to a norm."""


def refuse_unfit(experiment: Experiment) -> None:
    """Refuse what a cohort would not train as each client alone.

    Raises:
        UserError: naming the key.
    """
    if experiment.federation.cohort_clients in (None, 1):
        return
    name, precision = experiment.model.name, experiment.trainer.precision
    federation = experiment.federation
    alone = federation.personalisation.local
    secure = federation.privacy.secure_aggregation.enabled
    mend = {
        f"model.name {name}": "" if name in STACKABLE else " or ".join(STACKABLE),
        f"trainer.precision {precision}": "" if precision == "32-true" else "32-true",
        f"federation.personalisation.local {alone}": "" if alone == "none" else "none",
        "federation.privacy.secure_aggregation": "enabled false" if secure else "",
    }
    for refused, choice in mend.items():
        if choice:
            raise UserError(
                f"federation.cohort_clients does not go with {refused}: choose {choice}, or "
                "federation.cohort_clients null"
            )


class CohortTraining:
    """Trains the networks of several clients together.

    Args:
        experiment: model, loss and optimiser.
        local: what each client is to do, and how it answers.

    Raises:
        UserError: networks of the experiment's model cannot be stacked.
    """

    def __init__(self, experiment: Experiment, local: LocalTraining) -> None:
        self._experiment = experiment
        self._local = local
        self._stack = Stack(local.module.model)

    def train(self, works: Sequence[Assignment]) -> list[Trained | Exception]:
        """What each client learns in a round, in their order; an error where it fails.

        Args:
            works: what each is to do, at least one.
        """
        start_s = time.perf_counter()
        networks = _Networks(self._experiment, self._local, self._stack, works)
        while networks.step():
            pass
        ends = networks.ends.cpu()  # waits for the device
        seconds = (time.perf_counter() - start_s) / len(works)
        return list(networks.answers(ends, seconds))


class _Networks:
    """The networks of a cohort in a round: row k of every tensor is the k-th client's.

    Attributes:
        ends: what those networks have come to that are done.
    """

    def __init__(
        self,
        experiment: Experiment,
        local: LocalTraining,
        stack: Stack,
        works: Sequence[Assignment],
    ) -> None:
        self._trainer = experiment.trainer
        self._losses_of = vmap(partial(affect_loss, **asdict(experiment.loss)))
        self._local = local
        self._stack = stack
        self._members = [_Member(work) for work in works]
        self._under_way = set(range(len(works)))
        starts = torch.from_numpy(np.stack([work.start for work in works]))
        self._rows = starts.to(local.module.device).requires_grad_()  # K P
        self.ends = torch.empty_like(self._rows, requires_grad=False)
        self._correction = stacked([work.correction for work in works])
        self._groups = list(_alike(experiment, works))
        self._optimizer = self._optimizer_of(experiment)
        nothing = torch.zeros_like(local.module.metrics_of("train").moments)
        self._moments = torch.stack([nothing] * len(works))  # K D 6
        self._losses = torch.zeros_like(self._moments[..., 0])  # K D

    def step(self) -> bool:
        """Take one optimiser step of every client that has one; False where none has."""
        if not self._advance():
            return False
        self._rows.grad = None
        most = max(len(member.step.batches) for member in self._members if member.step)
        for number in range(most):
            parts = [member.windows(number) for member in self._members]
            if any(parts):
                loss = self._loss_of(parts, number)
                (loss / self._trainer.accumulate_grad_batches).backward()
        if self._rows.grad is not None:
            self._move(self._rows.grad)
        return True

    def answers(
        self, ends: Float32[Tensor, "K P"], seconds: float
    ) -> Iterator[Trained | Exception]:
        """What each client answers, or the error with which it failed.

        Args:
            ends: its parameters after training.
            seconds: that it took.
        """
        seen, losses = self._moments.cpu().numpy(), self._losses.cpu().numpy()
        for row, member in enumerate(self._members):
            yield member.error or attempted(
                self._local.reply,
                member.work,
                ends[row].numpy(),
                member.walked,
                moments=seen[row],
                losses=losses[row] / member.batches,
                batches=member.batches,
                steps=member.steps,
                seconds=seconds,
            )

    def _optimizer_of(self, experiment: Experiment) -> torch.optim.Optimizer:
        """The clients' optimiser; each there is treats a value by itself, so rows do not mix."""
        shared = self._rows.detach()
        groups = [{"params": [nn.Parameter(shared[rows])]} for rows in self._groups]
        return make_optimizer(groups, experiment.federation.optimizer or experiment.optimizer)

    def _advance(self) -> bool:
        """To each client's next step, if any has one; who has none keeps what it has come to."""
        under_way = {row for row in self._under_way if self._members[row].advance()}
        ended = sorted(self._under_way - under_way)
        if ended:
            self.ends[ended] = self._rows.detach()[ended]
        self._under_way = under_way
        return bool(under_way)

    def _loss_of(self, parts: Sequence[Sequence[Window]], number: int) -> Float[Tensor, ""]:
        """The sum over clients of each one's loss of a batch, which its metrics take in."""
        batch = _padded(parts)
        dropped = self._dropped(parts, number, batch)
        batch = batch.to(self._rows.device)
        items = (batch.features, batch.mask, *self._local.module.targets(batch))
        features, mask, labels, valid = (item.unflatten(0, (len(parts), -1)) for item in items)
        prediction = self._stack(self._rows, features, mask, dropped)  # K N S D
        losses = self._losses_of(prediction, labels, valid)  # K D
        seen = vmap(moments)(prediction.detach(), labels, valid)  # K D 6
        self._moments = merge(torch.stack([self._moments, seen]))
        self._losses += losses.detach()
        return losses.mean(dim=1).sum()

    def _dropped(
        self, parts: Sequence[Sequence[Window]], number: int, batch: Batch
    ) -> list[Tensor | None]:
        """All clients' dropout masks, each drawn as by its client alone."""
        if not self._stack.drops:
            return []
        windows, frames = len(batch.mask) // len(parts), batch.mask.shape[1]
        drawn = []
        for part, member in zip(parts, self._members, strict=True):
            member.seed_dropout(self._local.module, number)
            longest = max((len(window.features) for window in part), default=0)
            masks = self._stack.dropped(len(part), longest, self._rows.device)
            padding = (0, 0, 0, frames - longest, 0, windows - len(part))
            drawn.append([None if m is None else functional.pad(m, padding) for m in masks])
        return [None if of[0] is None else torch.stack(of) for of in zip(*drawn, strict=True)]

    def _move(self, gradient: Float32[Tensor, "K P"]) -> None:
        """Move each client's network along its gradient."""
        if self._correction is not None:
            gradient += self._correction.addition(self._rows.detach())
        if self._trainer.gradient_clip_val is not None:
            norms = gradient.norm(dim=1, keepdim=True)
            gradient *= (self._trainer.gradient_clip_val / (norms + _TINY)).clamp(max=1.0)
        for group, rows in zip(self._optimizer.param_groups, self._groups, strict=True):
            group["params"][0].grad = gradient[rows]
            for member in self._members[rows]:
                if member.step is not None:
                    group.update(member.step.settings)
                    member.walked += float(group["lr"])
        self._optimizer.step()


class _Member:
    """A client of a cohort, and how far it has come.

    Attributes:
        work: what it is to do.
        step: which it is at; None before the first, after the last, and once it has failed.
        error: with which it failed.
        steps, batches: taken so far.
        walked: sum of its learning rates over its steps.
    """

    def __init__(self, work: Assignment) -> None:
        self.work = work
        self.step: Step | None = None
        self.error: Exception | None = None
        self.steps = self.batches = 0
        self.walked = 0.0

    def advance(self) -> bool:
        """To the next step; False where there is none."""
        self.step = None if self.error else next(self.work.steps, None)
        self.steps += self.step is not None
        return self.step is not None

    def windows(self, number: int) -> list[Window]:
        """Those of a batch of its step; none where it has no such batch, or cannot read it."""
        if self.step is None or number >= len(self.step.batches):
            return []
        found = attempted(self.work.place.windows, list(self.step.batches.values())[number])
        if isinstance(found, Exception):
            self.step, self.error = None, found
            return []
        self.batches += 1
        return found

    def seed_dropout(self, module: AffectModule, number: int) -> None:
        """Seed dropout as for that batch of the client alone."""
        if self.step is not None and number < len(self.step.batches):
            module.seed_dropout(self.step.epoch, list(self.step.batches)[number], self.work.client)


def attempted(action: Callable[..., _Result], *arguments: Any, **named: Any) -> _Result | Exception:
    """What an action returns, or the error that it raises: a client fails alone."""
    try:
        return action(*arguments, **named)
    except Exception as error:
        return error


def _alike(experiment: Experiment, works: Sequence[Assignment]) -> Iterator[slice]:
    """Neighbours whose schedules are the same at every step."""
    scheduling = experiment.federation.scheduler or experiment.scheduler
    constant = scheduling.name == "constant"
    start = 0
    for _, group in groupby(works, lambda work: 0 if constant else work.place.steps_per_pass):
        stop = start + len(list(group))
        yield slice(start, stop)
        start = stop


def _padded(parts: Sequence[Sequence[Window]]) -> Batch:
    """One batch of all clients' windows, equally many each: some without a frame are added."""
    most = max(map(len, parts))
    some = next(part[0] for part in parts if part)
    nothing = replace(some, features=some.features[:0], labels=some.labels[:0])
    return collate([w for part in parts for w in (*part, *[nothing] * (most - len(part)))])
