"""The stage as a whole: frames and landmarks to a video's action units, streaming."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, UInt8
from torch import Tensor, nn

from affect.extraction.openface.align import Alignment
from affect.extraction.openface.fhog import Fhog
from affect.extraction.openface.median import RunningMedian
from affect.extraction.openface.pdm import ShapeFit
from affect.extraction.openface.regressors import LinearScores, intensities, presences
from affect.extraction.openface.weights import DESCRIPTORS, OpenFaceWeights
from affect.extraction.parts import InParts
from affect.extraction.rows import Rows

_PREDICTED_AGAIN = 3000
"""Successful frames that are scored with the final median; later ones keep that of their moment."""

_CACHED_FRAMES = 8
"""Frames whose aligned faces a processor's cache holds."""


@dataclass(frozen=True, eq=False)
class ActionUnits:
    """A video's action units; T frames.

    Attributes:
        intensity: 0 to 5, one column a name of the weights' intensities.
        presence: 0 or 1, likewise.
    """

    intensity: Float32[np.ndarray, "T A"]
    presence: UInt8[np.ndarray, "T P"]


class Stage(nn.Module):
    """OpenFace's action-unit stage on any device; holds no state of a video.

    Args:
        weights: the models for video, or for still images.
    """

    def __init__(self, weights: OpenFaceWeights) -> None:
        super().__init__()
        self.weights = weights
        self.fit = ShapeFit(weights.shape)
        self.align = Alignment(weights.shape)
        self.fhog = Fhog()
        self._in_parts = InParts(cpu=_CACHED_FRAMES)
        self.intensity_scores = LinearScores(weights.intensities)
        self.presence_scores = LinearScores(weights.presences)

    def forward(
        self, pixels: UInt8[Tensor, "T H W 3"], landmarks: Float[Tensor, "T 68 2"]
    ) -> Float64[Tensor, "T 4702"]:
        """The descriptor of each frame.

        Args:
            pixels: blue, green, red.
            landmarks: x and y in pixels.
        """
        pose = self.fit(landmarks)
        shape = self.fit.shape(pose) - self.fit.mean  # T 68 3
        geometry = [shape.transpose(1, 2).flatten(1), pose.local]
        appearance = self._in_parts(self._appearance, pixels, landmarks, pose.translation)
        return torch.cat([appearance.double(), *geometry], dim=1)

    def _appearance(self, pixels: Tensor, landmarks: Tensor, translation: Tensor) -> Tensor:
        return self.fhog(self.align(pixels, landmarks, translation))

    def scores(self, descriptors: Float64[Tensor, "T 4702"]) -> Float64[Tensor, "T B"]:
        """Scores of all intensities, then of all presences."""
        return torch.cat(
            [self.intensity_scores(descriptors), self.presence_scores(descriptors)], dim=1
        )

    def scores_of_median(self, median: Float64[Tensor, "*T 4702"]) -> Float64[Tensor, "*T B"]:
        """What a median takes off the scores."""
        parts = [model.of_median(median) for model in (self.intensity_scores, self.presence_scores)]
        return torch.cat(parts, dim=-1)


class VideoUnits:
    """One video's action units, from batches of its frames in order.

    Memory grows by 35 scores a frame. A still image is a video of one frame under the models for
    still images.

    Args:
        stage: with the models for video.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._median = RunningMedian(stage.fit.mean.device)
        self._succeeded = 0
        self._scores, self._success, self._settled = Rows(), Rows(), Rows()

    def add(
        self,
        pixels: UInt8[Tensor, "T H W 3"],
        landmarks: Float[Tensor, "T 68 2"],
        success: Bool[Tensor, " T"],
    ) -> Float64[Tensor, "T 4702"]:
        """Take in the next frames; landmarks where `success` is False are not looked at.

        Returns:
            The frames' descriptors, on the stage's device; zeros where `success` is False.
        """
        stage = self._stage
        device = stage.fit.mean.device
        success = success.to(device)
        descriptors = torch.zeros(len(success), DESCRIPTORS, dtype=torch.float64, device=device)
        if bool(success.any()):
            descriptors[success] = stage(*_chosen(success, pixels.to(device), landmarks.to(device)))
        scores = stage.scores(descriptors)
        number = self._succeeded + success.cumsum(0)
        settled = number > _PREDICTED_AGAIN
        self._succeeded = int(number[-1]) if len(number) else self._succeeded
        self._median.update(descriptors[~settled], success[~settled])
        if bool(settled.any()):
            moments = self._median.follow(descriptors[settled], success[settled])
            scores[settled] -= stage.scores_of_median(moments)
        for kept, values in zip(
            (self._scores, self._success, self._settled), (scores, success, settled), strict=True
        ):
            kept.add(values)
        return descriptors

    def finish(self) -> ActionUnits:
        """The action units of all frames."""
        final = self._stage.scores_of_median(self._median.median()).cpu().numpy()
        scores, seen = self._scores.all(), self._success.all()
        scores[~self._settled.all()] -= final
        weights = self._stage.weights
        of_intensity, of_presence = np.split(scores, [len(weights.intensities.names)], 1)
        return ActionUnits(
            intensities(of_intensity, seen, weights.intensities.cutoff),
            presences(of_presence, seen, weights.presences.positive, weights.presences.negative),
        )


def _chosen(rows: Bool[Tensor, " T"], *values: Tensor) -> list[Tensor]:
    """The chosen rows of tensors; where that is all, the tensors themselves: pixels are large."""
    return [*values] if bool(rows.all()) else [value[rows] for value in values]
