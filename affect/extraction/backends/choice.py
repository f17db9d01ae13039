"""Which backend: from a user's options to a working one.

A new backend is one file beside this one and one line in `BACKENDS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from affect.devices import device_of
from affect.errors import UserError, suggestion
from affect.extraction.backends.features import (
    FeatureExtractor,
    GeometryFeatures,
    OpenFaceFeatures,
)
from affect.extraction.backends.frames import FrameBackend
from affect.extraction.backends.openface_bin import OpenFaceBin
from affect.extraction.backends.openface_csv import OpenFaceCsv
from affect.extraction.backends.protocol import Backend
from affect.extraction.faces.tracker import Faces
from affect.extraction.openface import program as openface_program
from affect.extraction.openface import weights as openface_weights


@dataclass(frozen=True)
class Options:
    """How to extract; all that a worker process needs to make its own backend.

    Attributes:
        backend: a key of `BACKENDS`, or `auto`: openface-bin where its program is given, openface
            where its folder is known, else geometry.
        device: `auto`, `cpu`, `cuda` or `cuda:<index>`.
        openface_home: the OpenFace folder; None for the environment variable OPENFACE_HOME.
        faces: the `largest` face of a video, or `all`.
        threads: decoding threads; 0 for as many as there are cores.
        gpu_decoding: decode on the device as well, where it is a GPU that can.
        still: the files are still images, not videos.
        keep: what of `recording.IDENTIFYING` goes into the recordings.
        openface_bin: OpenFace's program; None to look for it in its folder and on PATH.
        timeout_s: seconds that OpenFace's program may take a video; None for what its length
            allows.
    """

    backend: str = "auto"
    device: str = "auto"
    openface_home: Path | None = None
    faces: Faces = "largest"
    threads: int = 0
    gpu_decoding: bool = False
    still: bool = False
    keep: frozenset[str] = frozenset()
    openface_bin: Path | None = None
    timeout_s: float | None = None


def make(options: Options) -> Backend:
    """The backend of these options.

    Raises:
        UserError: the name is unknown, the backend's files or the device are not there, it has
            not what is to be kept, or it has no use for an option.
    """
    name = options.backend
    if name == "auto":
        name = "openface" if _home(options) else "geometry"
        name = "openface-bin" if options.openface_bin else name
    if name not in BACKENDS:
        raise UserError(f"unknown backend {name!r}: {suggestion(name, ['auto', *BACKENDS])}")
    backend = BACKENDS[name](options)
    missing = ", ".join(sorted(options.keep - backend.keep))
    if missing:
        raise UserError(f"the {name} backend has no {missing} to keep: give --backend openface")
    return backend


def _openface(options: Options) -> Backend:
    device = _device_of_frames(options)
    features = OpenFaceFeatures(
        options.openface_home, device, still=options.still, keep=options.keep
    )
    return _of_frames(features, device, options)


def _geometry(options: Options) -> Backend:
    device = _device_of_frames(options)
    features = GeometryFeatures(options.keep)
    return _of_frames(features, device, options)


def _device_of_frames(options: Options) -> torch.device:
    _refuse_given(options, "openface_bin", "timeout_s")
    device = device_of(options.device)
    if device.type != "cuda" or options.still:
        _refuse_given(options, "gpu_decoding")
    return device


def _of_frames(features: FeatureExtractor, device: torch.device, options: Options) -> Backend:
    return FrameBackend(
        features,
        device,
        options.faces,
        options.threads,
        gpu_decoding=options.gpu_decoding,
        still=options.still,
    )


def _openface_csv(options: Options) -> Backend:
    _require_one_video_face(options)
    _refuse_given(options, "openface_bin", "timeout_s", "gpu_decoding")
    return OpenFaceCsv()


def _openface_bin(options: Options) -> Backend:
    _require_one_video_face(options)
    _refuse_given(options, "gpu_decoding")
    if options.timeout_s is not None and not options.timeout_s > 0:
        raise UserError(f"--timeout {options.timeout_s:g}: give seconds above 0")
    program = openface_program.find(options.openface_bin, _home(options))
    return OpenFaceBin(program, options.timeout_s)


def _home(options: Options) -> Path | None:
    return options.openface_home or openface_weights.home_in_environment()


def _require_one_video_face(options: Options) -> None:
    if options.still:
        raise UserError("--still: FeatureExtraction takes videos: choose --backend openface")
    if options.faces != "largest":
        raise UserError(
            f"FeatureExtraction follows one face: leave out --faces {options.faces}, or choose "
            "--backend openface"
        )


_PURPOSES: Mapping[str, tuple[str, str]] = {
    "openface_bin": ("--openface-bin", "the openface-bin backend"),
    "timeout_s": ("--timeout", "the openface-bin backend"),
    "gpu_decoding": ("--gpu-decoding", "videos that openface or geometry reads on a GPU"),
}
"""Options that only some backends use: the flag and what it is for."""


def _refuse_given(options: Options, *names: str) -> None:
    """What the backend has no use for must be at its default, else a user waits for its effect."""
    for name in names:
        if getattr(options, name) != getattr(Options, name):
            flag, purpose = _PURPOSES[name]
            raise UserError(f"{flag} is for {purpose}: leave it out")


BACKENDS: Mapping[str, Callable[[Options], Backend]] = {
    "openface": _openface,
    "geometry": _geometry,
    "openface-csv": _openface_csv,
    "openface-bin": _openface_bin,
}
"""A backend's name and what makes it."""
