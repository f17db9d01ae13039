"""What a Prediction is: a model's output over one recording beside its reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted and reference traces of one recording; T frames (or windows), D dimensions.

    Attributes:
        corpus, subject, name: the recording.
        split: `train`, `val`, `test`, or `predict` where there is no split.
        fold: which fold's model predicted it.
        time_s: seconds from the start of the video.
        dimensions: names of the D columns.
        prediction: the model's output, after post-processing.
        reference: the unshifted gold standard; NaN where it is missing.
    """

    corpus: str
    subject: str
    name: str
    split: str
    fold: int
    time_s: Float64[np.ndarray, " T"]
    dimensions: tuple[str, ...]
    prediction: Float32[np.ndarray, "T D"]
    reference: Float32[np.ndarray, "T D"]

    @property
    def key(self) -> str:
        """`corpus/subject/name` of the recording."""
        return f"{self.corpus}/{self.subject}/{self.name}"
