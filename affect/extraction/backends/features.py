"""What turns the frames and landmarks of a face into features: one class a kind, one protocol."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor

from affect.extraction import geometry
from affect.extraction.openface import weights as openface_weights
from affect.extraction.openface.stage import Stage, VideoUnits


@dataclass(frozen=True, eq=False)
class Features:
    """A whole video's features; T frames.

    Attributes:
        intensity: one column a name of the backend's intensities.
        presence: 0 or 1, likewise.
    """

    intensity: Float32[np.ndarray, "T F"]
    presence: UInt8[np.ndarray, "T P"]


@runtime_checkable
class FaceFeatures(Protocol):
    """The features of one face of one video, from batches of its frames in order."""

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
    """

    name: str
    weights_sha256: str
    intensity_names: tuple[str, ...]
    presence_names: tuple[str, ...]

    def begin(self) -> FaceFeatures:
        """Start on a face of a video."""
        ...


class OpenFaceFeatures:
    """OpenFace's action-unit stage with the user's model files.

    Args:
        home: the OpenFace folder; None for the environment variable OPENFACE_HOME.
        device: to work on.
        still: use the models for still images.

    Raises:
        UserError: the folder is not there, incomplete or not OpenFace's own.
    """

    name = "openface"

    def __init__(self, home: Path | None, device: torch.device, *, still: bool = False) -> None:
        models = openface_weights.load(openface_weights.home_of(home), still=still)
        self._stage = Stage(models).to(device)
        self.weights_sha256 = models.sha256
        self.intensity_names = models.intensities.names
        self.presence_names = models.presences.names

    def begin(self) -> FaceFeatures:
        """Start on a face of a video."""
        return _OpenFaceFace(self._stage)


class GeometryFeatures:
    """Proxies from landmarks alone: needs no model files."""

    name = "geometry"
    weights_sha256 = ""
    intensity_names = tuple(geometry.PROXIES)
    presence_names: tuple[str, ...] = ()

    def begin(self) -> FaceFeatures:
        """Start on a face of a video."""
        return _GeometryFace()


class _OpenFaceFace:
    def __init__(self, stage: Stage) -> None:
        self._units = VideoUnits(stage)

    @torch.inference_mode()
    def add(self, pixels: Tensor, landmarks: Tensor, success: Tensor) -> None:
        self._units.add(pixels, landmarks, success)

    def finish(self) -> Features:
        units = self._units.finish()
        return Features(units.intensity, units.presence)


class _GeometryFace:
    def __init__(self) -> None:
        self._proxies: list[Tensor] = []

    @torch.inference_mode()
    def add(self, pixels: Tensor, landmarks: Tensor, success: Tensor) -> None:
        self._proxies.append(geometry.proxies(landmarks).float().cpu())

    def finish(self) -> Features:
        values = torch.cat(self._proxies).numpy()
        return Features(values, np.zeros((len(values), 0), np.uint8))
