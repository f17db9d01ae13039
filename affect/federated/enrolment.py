"""A place of a deployment: it divides its own people into parts, and tells only how many they are.

The experiment's rules are the same everywhere; who falls into which part stays at the place.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from affect.data.corpus import frames_by_subject
from affect.data.splits import Fold, divided
from affect.errors import UserError
from affect.federated.draws import unforeseeable
from affect.federated.messages import Enrol, Enrolled, Request, Train, TrainMasked
from affect.federated.site import Site, experiment_of
from affect.store import Entry

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class EnrolledPlace:
    """The recordings at one place, of which each part is a client.

    Args:
        name: what the server calls the place.
        entries: all recordings that may be used.
        state: folder of what clients keep between rounds, one in it for each federation.
        device: where to compute.
        split: file of this place's own folds, for experiments that divide people by a file.

    Raises:
        UserError: the name is none.
    """

    def __init__(
        self,
        name: str,
        entries: Sequence[Entry],
        state: Path,
        device: torch.device,
        split: Path | None = None,
    ) -> None:
        refuse_name(name, "a site")
        self._name = name
        self._entries = entries
        self._state = state
        self._device = device
        self._split = split
        self._parts: dict[int, str] = {}
        self._held: dict[int, list[Entry]] = {}
        self._site: Site | None = None
        self._answers = ("", "")

    def enrol(self, request: Enrol) -> Enrolled:
        """Which clients are here.

        Raises:
            UserError: the experiment's rules cannot divide the people at this place.
        """
        fold = self._fold(request.experiment)
        return Enrolled(self._name, len(fold.train), len(fold.val), len(fold.test))

    def site_of(self, request: Request) -> Site:
        """What answers a request: of the part that it names, and to train on no other than `train`.

        Raises:
            UserError: the request asks for something else.
        """
        if isinstance(request, Train | TrainMasked) and request.part != "train":
            raise UserError(f"asked to train on the {request.part} part")
        asked = (request.run, request.experiment)
        if self._site is None or self._answers != asked:
            refuse_name(request.run, "a run")
            self._parts, self._held = {}, {}
            self._site = Site(
                self._held, self._state / request.run, self._device, draws=unforeseeable
            )
            self._answers = asked
        if self._parts.setdefault(request.client, request.part) != request.part:
            raise UserError(f"client {request.client} was another part before")
        if request.client not in self._held:
            subjects = set(getattr(self._fold(request.experiment), request.part, ()))
            self._held[request.client] = [e for e in self._entries if e.subject in subjects]
        return self._site

    def _fold(self, text: str) -> Fold:
        split = experiment_of(text).data.split
        if split.kind == "file":
            if self._split is None:
                raise UserError("the experiment divides people by a file: give one with --split")
            split = replace(split, file=str(self._split))
        return divided(frames_by_subject(self._entries), split)


def refuse_name(name: str, what: str) -> None:
    """Refuse a name that is no single folder's.

    Raises:
        UserError: it is none.
    """
    if not _NAME.fullmatch(name):
        raise UserError(
            f"{name!r} is no name of {what}: take letters, digits, '-', '_' and '.', at most 64"
        )
