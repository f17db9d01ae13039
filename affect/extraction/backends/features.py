"""What turns the frames and landmarks of a face into features: one class a kind, one protocol."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from affect.extraction import geometry
from affect.extraction.backends.identifying import Identifying
from affect.extraction.openface import weights as openface_weights
from affect.extraction.openface.stage import Stage, VideoUnits
from affect.extraction.rows import Rows


@dataclass(frozen=True, eq=False)
class Features:
    """A whole video's features; T frames.

    Attributes:
        intensity: one column a name of the backend's intensities.
        presence: 0 or 1, likewise.
        identifying: what the extractor keeps of `recording.IDENTIFYING`; NaN where no face is.
    """

    intensity: Float32[np.ndarray, "T F"]
    presence: UInt8[np.ndarray, "T P"]
    identifying: Mapping[str, np.ndarray] = field(default_factory=dict)


@runtime_checkable
class FaceFeatures(Protocol):
    """The features of one face of one video, from batches of its frames in order.

    Of the frames before the face comes and after it goes, eight are enough: leaving out others, an
    even number of them before, changes nothing in those in which it is there.
    """

    def add(
        self,
        pixels: UInt8[Tensor, "N H W 3"],
        landmarks: Float[Tensor, "N 68 2"],
        success: Bool[Tensor, " N"],
    ) -> None:
        """Take in the next frames; landmarks where `success` is False are not looked at."""
        ...

    def finish(self) -> Features:
        """The features of all frames."""
        ...


@runtime_checkable
class FeatureExtractor(Protocol):
    """A way from pixels and landmarks to features.

    Attributes:
        name: of the backend that it makes.
        weights_sha256: of its model files; empty where it has none.
        intensity_names, presence_names: of the columns.
        keep: what it keeps of `recording.IDENTIFYING`.
    """

    name: str
    weights_sha256: str
    intensity_names: tuple[str, ...]
    presence_names: tuple[str, ...]
    keep: frozenset[str]

    def begin(self) -> FaceFeatures:
        """Start on a face of a video."""
        ...


class OpenFaceFeatures:
    """OpenFace's action-unit stage with the user's model files.

    Args:
        home: the OpenFace folder; None for the environment variable OPENFACE_HOME.
        device: to work on.
        still: use the models for still images.
        keep: see `FeatureExtractor`; descriptors are 19 kB a frame.

    Raises:
        UserError: the folder is not there, incomplete or not OpenFace's own.
    """

    name = "openface"

    def __init__(
        self,
        home: Path | None,
        device: torch.device,
        *,
        still: bool = False,
        keep: Collection[str] = (),
    ) -> None:
        models = openface_weights.load(openface_weights.home_of(home), still=still)
        self._stage = Stage(models).to(device)
        self.weights_sha256 = models.sha256
        self.intensity_names = models.intensities.names
        self.presence_names = models.presences.names
        self.keep = frozenset(keep)

    def begin(self) -> FaceFeatures:
        """Start on a face of a video."""
        return _OpenFaceFace(self._stage, Identifying(self.keep))


class GeometryFeatures:
    """Proxies from landmarks alone: needs no model files.

    Args:
        keep: see `FeatureExtractor`; it has no descriptors.
    """

    name = "geometry"
    weights_sha256 = ""
    intensity_names = tuple(geometry.PROXIES)
    presence_names: tuple[str, ...] = ()

    def __init__(self, keep: Collection[str] = ()) -> None:
        self.keep = frozenset(keep) & {"landmarks"}

    def begin(self) -> FaceFeatures:
        """Start on a face of a video."""
        return _GeometryFace(Identifying(self.keep))


class _OpenFaceFace:
    def __init__(self, stage: Stage, identifying: Identifying) -> None:
        self._units = VideoUnits(stage)
        self._identifying = identifying

    @torch.inference_mode()
    def add(self, pixels: Tensor, landmarks: Tensor, success: Tensor) -> None:
        descriptors = self._units.add(pixels, landmarks, success)
        self._identifying.add(success, landmarks=landmarks, descriptors=descriptors)

    def finish(self) -> Features:
        units = self._units.finish()
        return Features(units.intensity, units.presence, self._identifying.finish())


class _GeometryFace:
    def __init__(self, identifying: Identifying) -> None:
        self._identifying = identifying
        self._proxies = Rows()

    @torch.inference_mode()
    def add(self, pixels: Tensor, landmarks: Tensor, success: Tensor) -> None:
        self._proxies.add(geometry.proxies(landmarks).float())
        self._identifying.add(success, landmarks=landmarks)

    def finish(self) -> Features:
        values = self._proxies.all()
        presence = np.zeros((len(values), 0), np.uint8)
        return Features(values, presence, self._identifying.finish())
