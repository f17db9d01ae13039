"""OpenFace's action-unit model files: found, verified and read.

The files belong to Carnegie Mellon University and come with the user's own OpenFace 2.0 to 2.2.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float64

from affect.errors import UserError

HOME_VARIABLE = "OPENFACE_HOME"
LICENCE = (
    "OpenFace's models are licensed by Carnegie Mellon University for academic, non-commercial use"
)

POINTS = 68
MODES = 34
DESCRIPTORS = 4702
"""Elements of a frame's descriptor: 4464 of FHOG, 204 of the shape, 34 of its parameters."""

_FOLDERS = ("", "build/bin", "bin", "lib/local/FaceAnalyser", "FaceAnalyser")
_PREDICTORS = "AU_predictors"
_SHAPE_MODEL = "In-the-wild_aligned_PDM_68.txt"
_STATIC_SVR, _DYNAMIC_SVR, _STATIC_SVM, _DYNAMIC_SVM = 0, 1, 4, 5
_ELEMENT_TYPES = {4: np.dtype("<i4"), 5: np.dtype("<f4"), 6: np.dtype("<f8")}


@dataclass(frozen=True, eq=False)
class ShapeModel:
    """The point distribution model of 68 landmarks: shape = mean + components p.

    Attributes:
        mean: millimetres, 68 x, then 68 y, then 68 z.
        components: one column a mode.
        eigenvalues: variance of each mode's parameter.
    """

    mean: Float64[np.ndarray, " 204"]
    components: Float64[np.ndarray, "204 34"]
    eigenvalues: Float64[np.ndarray, " 34"]


@dataclass(frozen=True, eq=False)
class Regressors:
    """Linear models of some action units, side by side; A units.

    A score is (x - means - median) . weights + bias, the median being subtracted for dynamic units
    alone. A presence is its unit's `positive` class where the score is above 0, else `negative`.

    Attributes:
        names: `AU01_r` ... or `AU01_c` ...
        weights, means: one column a unit.
        bias: one value a unit, likewise the following.
        dynamic: whether the person's median is subtracted.
        cutoff: share of successful frames below the person's zero intensity; -1 for none.
        positive, negative: classes of a presence; 0 for intensities.
    """

    names: tuple[str, ...]
    weights: Float64[np.ndarray, "4702 A"]
    means: Float64[np.ndarray, "4702 A"]
    bias: Float64[np.ndarray, " A"]
    dynamic: Bool[np.ndarray, " A"]
    cutoff: Float64[np.ndarray, " A"]
    positive: Float64[np.ndarray, " A"]
    negative: Float64[np.ndarray, " A"]


@dataclass(frozen=True, eq=False)
class OpenFaceWeights:
    """Everything that the action-unit stage reads.

    Attributes:
        shape: the point distribution model.
        intensities, presences: models for video, or for still images.
        sha256: over all files that were read, hexadecimal.
    """

    shape: ShapeModel
    intensities: Regressors
    presences: Regressors
    sha256: str


def home_of(given: Path | None) -> Path:
    """The user's OpenFace folder: as given, else from the environment variable OPENFACE_HOME.

    Raises:
        UserError: neither names a folder.
    """
    named = given or home_in_environment()
    if named is None:
        raise UserError(
            "the openface backend needs OpenFace's model files: give --openface-home, or export "
            f"{HOME_VARIABLE}=... ({LICENCE})"
        )
    folder = named.expanduser()
    if not folder.is_dir():
        raise UserError(f"no OpenFace folder at {folder}: give one with --openface-home")
    return folder


def home_in_environment() -> Path | None:
    """The folder that OPENFACE_HOME names; None where it is unset or empty."""
    named = os.environ.get(HOME_VARIABLE)
    return Path(named) if named else None


def load(home: Path, *, still: bool = False, verify: bool = True) -> OpenFaceWeights:
    """Read the models of an OpenFace folder.

    Args:
        home: an OpenFace source tree, build, binary release, or a folder with `AU_predictors`.
        still: models for still images instead of video.
        verify: compare every file's SHA-256 with that of OpenFace 2.2.

    Raises:
        UserError: a file is missing, differs from OpenFace's own, or cannot be read.
    """
    files = _Files(_predictors_in(home), verify)
    shape = _shape_model(files.text(_SHAPE_MODEL))
    listed = files.text("AU_all_static.txt" if still else "AU_all_best.txt").split()
    models = [
        _model(files.bytes(path), f"{unit}_{'r' if path.startswith('svr') else 'c'}")
        for path, unit in zip(listed[::2], listed[1::2], strict=True)
    ]
    return OpenFaceWeights(
        shape=shape,
        intensities=_side_by_side([model for model in models if model.name.endswith("_r")]),
        presences=_side_by_side([model for model in models if model.name.endswith("_c")]),
        sha256=files.digest.hexdigest(),
    )


@dataclass(frozen=True, eq=False)
class _Model:
    name: str
    dynamic: bool
    cutoff: float
    means: np.ndarray
    weights: np.ndarray
    bias: float
    positive: float = 0.0
    negative: float = 0.0


class _Files:
    """Reads files of a folder, and digests what it has read."""

    def __init__(self, folder: Path, verify: bool) -> None:
        self._folder = folder
        self._verify = verify
        self.digest = hashlib.sha256()

    def bytes(self, name: str) -> bytes:
        path = self._folder / name
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            raise UserError(
                f"{path} is missing: the OpenFace folder is incomplete, install it again"
            ) from None
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        found = hashlib.sha256(content)
        if self._verify and found.hexdigest() != self._known[f"{_PREDICTORS}/{name}"]:
            raise UserError(
                f"{path} is not the file of OpenFace 2.2 (SHA-256 {found.hexdigest()[:12]}...): "
                "install OpenFace again"
            )
        self.digest.update(found.digest())
        return content

    def text(self, name: str) -> str:
        return self.bytes(name).decode("ascii")

    @cached_property
    def _known(self) -> Mapping[str, str]:
        text = (resources.files("affect.extraction.openface") / "files.sha256").read_text()
        return {name: digest for digest, name in (line.split() for line in text.splitlines())}


def _predictors_in(home: Path) -> Path:
    for folder in _FOLDERS:
        candidate = home / folder / _PREDICTORS
        if candidate.is_dir():
            return candidate
    if home.name == _PREDICTORS:
        return home
    raise UserError(f"{home} holds no {_PREDICTORS} folder: give OpenFace's own folder")


def _shape_model(text: str) -> ShapeModel:
    numbers = iter(" ".join(line for line in text.splitlines() if not line.startswith("#")).split())

    def matrix() -> np.ndarray:
        rows, columns, _ = (int(next(numbers)) for _ in range(3))
        values = [float(next(numbers)) for _ in range(rows * columns)]
        return np.array(values).reshape(rows, columns)

    try:
        mean, components, eigenvalues = matrix(), matrix(), matrix()
        return ShapeModel(mean[:, 0], components, eigenvalues[0])
    except (StopIteration, ValueError, RuntimeError) as error:
        raise UserError(f"{_SHAPE_MODEL} is no point distribution model of 68 points") from error


def _model(content: bytes, name: str) -> _Model:
    """A linear model: kind, cut-off (dynamic SVRs), means, weights, bias, classes (SVMs)."""
    try:
        (kind,) = np.frombuffer(content, "<i4", 1)
        offset = 4
        cutoff = -1.0
        if kind == _DYNAMIC_SVR:
            cutoff = float(np.frombuffer(content, "<f8", 1, offset)[0])
            offset += 8
        means, offset = _matrix(content, offset)
        weights, offset = _matrix(content, offset)
        bias, *classes = np.frombuffer(content, "<f8", offset=offset).tolist()
        if kind not in {_STATIC_SVR, _DYNAMIC_SVR, _STATIC_SVM, _DYNAMIC_SVM}:
            raise ValueError(f"kind {kind}")
        if (means.size, weights.size) != (DESCRIPTORS, DESCRIPTORS):
            raise ValueError(f"{means.size} means and {weights.size} weights")
        dynamic = kind in {_DYNAMIC_SVR, _DYNAMIC_SVM}
        return _Model(name, dynamic, cutoff, means.ravel(), weights.ravel(), bias, *classes)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"the model of {name} is no linear model of OpenFace: {error}") from error


def _matrix(content: bytes, offset: int) -> tuple[np.ndarray, int]:
    rows, columns, kind = np.frombuffer(content, "<i4", 3, offset).tolist()
    element = _ELEMENT_TYPES[kind]
    values = np.frombuffer(content, element, rows * columns, offset + 12)
    return values.astype(np.float64), offset + 12 + values.nbytes


def _side_by_side(models: Sequence[_Model]) -> Regressors:
    models = sorted(models, key=lambda model: model.name)
    return Regressors(
        names=tuple(model.name for model in models),
        weights=np.stack([model.weights for model in models], axis=1),
        means=np.stack([model.means for model in models], axis=1),
        bias=np.array([model.bias for model in models]),
        dynamic=np.array([model.dynamic for model in models]),
        cutoff=np.array([model.cutoff for model in models]),
        positive=np.array([model.positive for model in models]),
        negative=np.array([model.negative for model in models]),
    )
