"""How videos are to be read, and what is told of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from affect.cli.command import path_of
from affect.cli.output import complain
from affect.errors import UserError


def add_reading(parser: argparse._ActionsContainer) -> None:
    """What level 1 takes wherever it reads videos; None where it is not given."""
    parser.add_argument(
        "--openface-home",
        type=path_of,
        help="folder of OpenFace's model files (or OPENFACE_HOME)",
    )
    parser.add_argument(
        "--openface-bin",
        type=path_of,
        help="OpenFace's FeatureExtraction (default: in its folder, or on PATH)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help="of FeatureExtraction, a video (default: 600 for every 1200 frames)",
    )
    parser.add_argument(
        "--faces",
        choices=("largest", "all"),
        help="the largest face (default), or all: a recording each",
    )
    parser.add_argument(
        "--gpu-decoding",
        action="store_true",
        default=None,
        help="decode on the GPU as well (not yet measured)",
    )


def reading_of(options: argparse.Namespace) -> dict[str, Any]:
    """The same as `Options` has it."""
    return {
        "backend": "auto" if options.backend is None else options.backend,
        "device": options.device,
        "openface_home": options.openface_home,
        "openface_bin": options.openface_bin,
        "timeout_s": options.timeout,
        "faces": options.faces or "largest",
        "gpu_decoding": bool(options.gpu_decoding),
    }


def tell_of(outcomes: Sequence[Any], *, whole: bool = False) -> None:
    """What became of files, in lines.

    Args:
        outcomes: of `pipeline.Extracted`.
        whole: go on where the only file failed, instead of with its error as the command's.
    """
    for outcome in outcomes:
        for note in outcome.notes:
            complain(note)
        if outcome.error and len(outcomes) == 1 and not whole:
            raise UserError(outcome.error)
        if outcome.error:
            complain(outcome.error)
