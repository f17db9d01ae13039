"""Which backend: from a user's options to a working one.

A new backend is one file beside this one and one line in `BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from affect.devices import device_of
from affect.errors import UserError, suggestion
from affect.extraction.backends.features import GeometryFeatures, OpenFaceFeatures
from affect.extraction.backends.frames import FrameBackend
from affect.extraction.backends.protocol import Backend
from affect.extraction.faces.tracker import Faces
from affect.extraction.openface import weights as openface_weights


@dataclass(frozen=True)
class Options:
    """How to extract; all that a worker process needs to make its own backend.

    Attributes:
        backend: a key of `BACKENDS`, or `auto`: openface where its folder is known, else geometry.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.
        openface_home: the OpenFace folder; None for the environment variable OPENFACE_HOME.
        faces: the `largest` face of a video, or `all`.
        threads: decoding threads; 0 for as many as there are cores.
        still: the files are still images, not videos.
        keep: what of `recording.IDENTIFYING` goes into the recordings.
    """

    backend: str = "auto"
    device: str = "auto"
    openface_home: Path | None = None
    faces: Faces = "largest"
    threads: int = 0
    still: bool = False
    keep: frozenset[str] = frozenset()


def make(options: Options) -> Backend:
    """The backend of these options.

    Raises:
        UserError: the name is unknown, the backend's files or the device are not there, or it has
            not what is to be kept.
    """
    name = options.backend
    if name == "auto":
        known = options.openface_home or openface_weights.home_in_environment()
        name = "openface" if known else "geometry"
    if name not in BACKENDS:
        raise UserError(f"unknown backend {name!r}: {suggestion(name, ['auto', *BACKENDS])}")
    backend = BACKENDS[name](options)
    missing = ", ".join(sorted(options.keep - backend.keep))
    if missing:
        raise UserError(f"the {name} backend has no {missing} to keep: give --backend openface")
    return backend


def _openface(options: Options) -> Backend:
    device = device_of(options.device)
    features = OpenFaceFeatures(
        options.openface_home, device, still=options.still, keep=options.keep
    )
    return FrameBackend(features, device, options.faces, options.threads, still=options.still)


def _geometry(options: Options) -> Backend:
    device = device_of(options.device)
    features = GeometryFeatures(options.keep)
    return FrameBackend(features, device, options.faces, options.threads, still=options.still)


BACKENDS: Mapping[str, Callable[[Options], Backend]] = {
    "openface": _openface,
    "geometry": _geometry,
}
"""A backend's name and what makes it."""
