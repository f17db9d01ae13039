"""Action-unit *proxies* from 68 landmarks alone, for machines without OpenFace's files.

Each is a distance in the face that an action unit changes, in units of the distance between the
eyes, with the eyes level: larger is stronger. It has no zero of its own; `standardise: centred` or
`subject` takes the person's face at rest off. They are no action units, and the README tells how
far each goes with OpenFace's intensity. Units that no such distance follows are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "T 68 2"]

_RIGHT_EYE, _LEFT_EYE = slice(36, 42), slice(42, 48)
_RIGHT_LIDS, _LEFT_LIDS = ((37, 41), (38, 40)), ((43, 47), (44, 46))


def proxies(landmarks: Points) -> Float[Tensor, "T P"]:
    """Each proxy in each frame, in the order of `PROXIES`."""
    level = levelled(landmarks)
    return torch.stack([measure(level) for measure in PROXIES.values()], dim=1)


def levelled(landmarks: Points) -> Points:
    """Landmarks about the point between the eyes, turned and scaled so that these lie 1 apart."""
    right, left = landmarks[:, _RIGHT_EYE].mean(1), landmarks[:, _LEFT_EYE].mean(1)
    across = left - right
    length = torch.linalg.vector_norm(across, dim=-1, keepdim=True)
    cosine, sine = (across / length).unbind(-1)
    turn = torch.stack([cosine, sine, -sine, cosine], -1).view(-1, 2, 2)
    centred = landmarks - ((right + left) / 2)[:, None]
    return centred @ turn.mT / length[:, None]


def _inner_brows(points: Points) -> Float[Tensor, " T"]:
    return _mean_drop(points, ((21, 39), (22, 42)))


def _eye_opening(points: Points) -> Float[Tensor, " T"]:
    return _mean_drop(points, (*_RIGHT_LIDS, *_LEFT_LIDS))


def _lip_corners(points: Points) -> Float[Tensor, " T"]:
    return torch.linalg.vector_norm(points[:, 54] - points[:, 48], dim=-1)


def _upper_lip(points: Points) -> Float[Tensor, " T"]:
    return -_mean_drop(points, ((33, 51),))


def _lips_apart(points: Points) -> Float[Tensor, " T"]:
    return _mean_drop(points, ((61, 67), (62, 66), (63, 65)))


def _jaw(points: Points) -> Float[Tensor, " T"]:
    return _mean_drop(points, ((33, 8),))


def _mean_drop(points: Points, pairs: tuple[tuple[int, int], ...]) -> Float[Tensor, " T"]:
    """How far the second point of a pair lies below the first, averaged over pairs."""
    drops = [points[:, low, 1] - points[:, high, 1] for high, low in pairs]
    return torch.stack(drops).mean(0)


PROXIES: Mapping[str, Callable[[Points], Float[Tensor, " T"]]] = {
    "AU01_proxy": _inner_brows,
    "AU05_proxy": _eye_opening,
    "AU06_proxy": lambda points: _lip_corners(points) - _eye_opening(points),
    "AU10_proxy": _upper_lip,
    "AU12_proxy": _lip_corners,
    "AU25_proxy": _lips_apart,
    "AU26_proxy": _jaw,
}
"""A proxy's name and how it is measured on levelled landmarks."""
