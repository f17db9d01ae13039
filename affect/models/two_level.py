"""Both levels in one: a video's pixels to action units, these to valence and arousal.

Pixels go from step to step a batch of frames at a time and are let go. What is held of a whole
video are its action units, a few dozen numbers a frame, because three things are defined over all
of it: OpenFace's median of the person and its cut-offs, which change the first frame as well; the
statistics by which features are standardised; and a bidirectional network, which reads from the
end too. Both levels' memory grows by these numbers alone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from affect.data.preparation import Preparation, select
from affect.data.timeline import Place
from affect.errors import UserError
from affect.extraction.backends import choice
from affect.extraction.backends.choice import Options
from affect.extraction.backends.protocol import Backend, Listener
from affect.extraction.failures import ExtractionError
from affect.extraction.geometry import PROXIES
from affect.extraction.pipeline import refuse_names
from affect.extraction.video import SUFFIXES, Video
from affect.prediction import Prediction
from affect.recording import OPENFACE_INTENSITIES, Recording, check

CORPUS = "videos"
"""The corpus of recordings that come from videos, where nobody names another."""

_FEATURES: Mapping[str, Collection[str]] = {
    "openface": OPENFACE_INTENSITIES,
    "openface-bin": OPENFACE_INTENSITIES,
    "geometry": PROXIES,
}
"""A backend's name and the features that a network can count on from it."""


@runtime_checkable
class LevelTwo(Protocol):
    """A trained network with all that leads to it and from it.

    Attributes:
        preparation: how recordings become its input.
    """

    preparation: Preparation

    def __call__(self, recordings: Sequence[Recording]) -> Iterator[Prediction]:
        """The prediction of each recording, in the order of a cache.

        Args:
            recordings: all that there are of each of their subjects.
        """
        ...


class TwoLevel:
    """A video to what is felt in it: traces of each dimension, with the times of the frames.

    Predictions equal to the bit those of the recordings that the backend puts into a cache.
    Nothing is written to a disk.

    Args:
        backend: level 1, on the device that it was made for.
        level_two: level 2.
    """

    def __init__(self, backend: Backend, level_two: LevelTwo) -> None:
        self.backend = backend
        self.level_two = level_two

    def __call__(self, path: Path) -> list[Prediction]:
        """The prediction of each face of a video, taken as all that there is of its person.

        Raises:
            UserError: as `recordings`.
        """
        return list(self.level_two(self.recordings(path, Place(CORPUS, path.stem, path.stem))))

    def recordings(
        self, path: Path, place: Place, listener: Listener | None = None
    ) -> list[Recording]:
        """Level 1 alone: a video's recordings, which level 2 takes.

        Args:
            path: the video.
            place: what the recordings are called.
            listener: is told how it goes on.

        Raises:
            UserError: the video cannot be read, shows no face or has another frame rate than the
                network was trained on, or the backend makes other features.
        """
        preparation = self.level_two.preparation
        refuse_names(place, path)
        _refuse_rate(path, _rate_hz(path), preparation)  # before it is decoded to its end
        found = list(
            self.backend.recordings(
                path, place, self.backend.provenance(path), listener or Listener()
            )
        )
        for recording in found:
            check(recording)
            _refuse_rate(path, recording.rate_hz, preparation)
            features = select(recording, preparation.feature_names)
            if preparation.by_subject and not np.isfinite(features).any():
                frames = recording.frames
                raise ExtractionError(path, "no face", f"none of its {frames} frames shows one")
        return found


def backend_for(features: Collection[str], options: Options) -> Backend:
    """The backend that makes these features of a video.

    Args:
        features: names of action units, or of proxies.
        options: of extraction; the backend `auto` is the one that makes the features, of OpenFace's
            two its program where it is given.

    Raises:
        UserError: there is none, the one that was asked for makes others or reads no videos, or
            its files or the device are not there.
    """
    lacking = {
        name: [feature for feature in features if feature not in known]
        for name, known in _FEATURES.items()
    }
    if options.backend == "auto":
        fitting = _fitting(lacking)
        by_program = fitting == "openface" and options.openface_bin is not None
        options = replace(options, backend="openface-bin" if by_program else fitting)
    elif lacking.get(options.backend):
        raise UserError(
            f"the {options.backend} backend does not make {lacking[options.backend][0]!r}, which "
            "the network was trained on: leave out --backend"
        )
    backend = choice.make(options)
    if not backend.suffixes & SUFFIXES:
        raise UserError(
            f"the {backend.name} backend reads no videos: put its tables into a cache with "
            "`affect extract`, and predict on that"
        )
    return backend


def _fitting(lacking: Mapping[str, Sequence[str]]) -> str:
    """The backend that lacks no feature."""
    nearest = min(lacking, key=lambda name: len(lacking[name]))
    if lacking[nearest]:
        raise UserError(
            f"no backend makes {lacking[nearest][0]!r}, which the network was trained on, of a "
            "video: predict on a cache of recordings that have it"
        )
    return nearest


def _rate_hz(path: Path) -> float:
    with Video(path, threads=1) as video:
        return video.rate_hz


def _refuse_rate(path: Path, rate_hz: float, preparation: Preparation) -> None:
    if not preparation.fits_rate(rate_hz):
        raise ExtractionError(
            path,
            "another frame rate",
            f"it has {rate_hz:g} frames a second, the network was trained on "
            f"{preparation.rate_hz:g}: convert it to that rate",
        )
