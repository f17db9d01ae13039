"""From frames to the landmarks of each face, followed from batch to batch.

The detector looks at some frames of a segment, and on both sides of a cut; where two neighbouring
looks find other faces, or faces at other places, at all frames between. Between two looks a face's
region moves evenly, so that a jump of the detector cannot pass for a movement of the face, and
every frame's landmarks are read in its own region. At a look they are read in the mirror image too;
how that corrects them moves evenly likewise.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from affect.extraction.faces.boxes import overlaps
from affect.extraction.faces.detector import FaceDetector
from affect.extraction.faces.landmarks import POINTS, LandmarkNet
from affect.extraction.faces.regions import (
    Regions,
    around_boxes,
    around_landmarks,
    interpolated,
    moved,
)
from affect.extraction.video import FrameBatch

Faces = Literal["largest", "all"]

EVERY = 8
"""Frames from one look of the detector to the next."""

SEGMENT_FRAMES = 32
"""The detector looks at the last frame of each segment, whatever a batch's length."""

_SAME_FACE = 0.3
"""Least overlap of a face's box with the one before."""
_CUT = 16.0
"""Mean change of a frame's brightness, of 255, that is more than faces' movement."""
_THUMBNAIL = 64
"""Pixels along the longer side of what cuts are seen in, at least."""
_FORGOTTEN_S = 2.0
"""A face that returns later than this is a new one."""


@dataclass(frozen=True, eq=False)
class TrackedFace:
    """One face in the N frames of a batch.

    Attributes:
        landmarks: x and y in pixels; NaN where there is no face.
        success: whether the face is there.
        confidence: 0 to 1; 0 where there is no face.
    """

    landmarks: Float[Tensor, "N 68 2"]
    success: Bool[Tensor, " N"]
    confidence: Float[Tensor, " N"]


@runtime_checkable
class LandmarkSource(Protocol):
    """Finds the faces of one video, batch by batch."""

    def track(self, batch: FrameBatch) -> dict[int, TrackedFace]:
        """The faces of the next frames by their number in the video."""
        ...

    def remembered(self) -> frozenset[int]:
        """The numbers of the faces that may be in the next frames again; others are over."""
        ...


@dataclass(eq=False)
class _Seen:
    """A face's latest box, and when it was there."""

    box: Tensor
    time_s: float


@dataclass(frozen=True, eq=False)
class _Sighting:
    """A face in one frame of a batch."""

    frame: int
    box: Tensor
    score: float


_BEFORE = -1
"""The last frame of the batch before, counted as those of a batch."""


@dataclass(frozen=True, eq=False)
class _Path:
    """Where one face was in the frames of a batch that were looked at; S of them, ascending."""

    frames: Int[Tensor, " S"]
    regions: Regions
    landmarks: Float[Tensor, "S 68 2"]
    corrections: Float[Tensor, "S 68 2"]
    scores: list[float]

    def after(self, before: _Path) -> _Path:
        """The whole of two paths."""
        return _Path(
            torch.cat([before.frames, self.frames]),
            before.regions.followed_by(self.regions),
            torch.cat([before.landmarks, self.landmarks]),
            torch.cat([before.corrections, self.corrections]),
            before.scores + self.scores,
        )

    def end(self) -> _Path:
        """Its last frame, as the next batch counts it."""
        rows = slice(-1, None)
        before = torch.full_like(self.frames[rows], _BEFORE)
        return _Path(
            before,
            self.regions.taken(rows),
            self.landmarks[rows],
            self.corrections[rows],
            self.scores[rows],
        )


@dataclass(frozen=True, eq=False)
class _Before:
    """The last frame of the batch before: in small, its boxes, and who is followed."""

    thumbnail: Tensor
    boxes: Tensor
    paths: dict[int, _Path]


class FaceTracker:
    """Follows the faces of one video with the packaged networks.

    Args:
        detector: on the device to work on.
        network: on the same device.
        faces: `largest` follows the face that was largest when it was found; `all` follows each.
        every: frames from one look of the detector to the next.
        segment_frames: of which every batch but the last is a multiple.
    """

    def __init__(
        self,
        detector: FaceDetector,
        network: LandmarkNet,
        faces: Faces,
        every: int = EVERY,
        segment_frames: int = SEGMENT_FRAMES,
    ) -> None:
        self._detector = detector
        self._network = network
        self._faces = faces
        self._every = every
        self._segment_frames = segment_frames
        self._known: dict[int, _Seen] = {}
        self._time_s = 0.0
        self._numbers = 0
        self._before: _Before | None = None

    @torch.inference_mode()
    def track(self, batch: FrameBatch) -> dict[int, TrackedFace]:
        """The faces of the next frames by their number in the video."""
        pixels = batch.pixels.to(self._detector.mean.device)
        found = self._look(pixels, batch.decoded)
        sightings: dict[int, list[_Sighting]] = {}
        for frame in sorted(found):
            boxes, scores = found[frame]
            for row, number in self._numbered(boxes, float(batch.time_s[frame])):
                sighting = _Sighting(frame, boxes[row], float(scores[row]))
                sightings.setdefault(number, []).append(sighting)
        paths = {number: self._path(pixels, seen) for number, seen in sightings.items()}
        faces = {}
        for number, path in paths.items():
            before = self._before.paths.get(number) if self._before else None
            whole = path.after(before) if before else path
            faces[number] = self._face(pixels, whole, [_BEFORE, *sorted(found)], batch.decoded)
        last = len(pixels) - 1
        ends = {n: path.end() for n, path in paths.items() if int(path.frames[-1]) == last}
        self._before = _Before(_thumbnails(pixels[last:]), found[last][0], ends)
        self._time_s = float(batch.time_s[last])
        return faces

    def remembered(self) -> frozenset[int]:
        """The numbers of the faces that may be in the next frames again; others are over."""
        return frozenset({0} if self._faces == "largest" else self._known_at(self._time_s))

    def _look(
        self, pixels: Tensor, decoded: Bool[np.ndarray, " N"]
    ) -> dict[int, tuple[Tensor, Tensor]]:
        """Boxes and scores of every frame that was looked at."""
        count = len(pixels)
        looks = {*self._looks(count), *self._beside_cuts(pixels)}
        found = self._detected(pixels, sorted(looks))
        boxes = {frame: boxes for frame, (boxes, _) in found.items()}
        if self._before is not None:
            boxes = {_BEFORE: self._before.boxes, **boxes}
        between = [
            frame
            for before, after in pairwise(boxes)
            if not _alike(boxes[before], boxes[after])
            for frame in range(before + 1, after)
        ]
        # what could not be decoded parts its neighbours, which are looked at as the ends of theirs
        lost = np.flatnonzero(~decoded)
        beside = {int(frame) for frame in (*(lost - 1), *(lost + 1)) if 0 <= frame < count}
        more = sorted({*between, *beside, *map(int, lost)} - found.keys())
        return found | self._detected(pixels, more)

    def _looks(self, count: int) -> list[int]:
        """The frames of a batch to look at first: the first of a video, then every so many."""
        looks: list[int] = [] if self._before or count == 1 else [0]
        for start in range(0, count, self._segment_frames):
            last = min(start + self._segment_frames, count) - 1
            looks += [*range(start + self._every - 1, last, self._every), last]
        return looks

    def _beside_cuts(self, pixels: Tensor) -> set[int]:
        """The frames of a batch on both sides of a cut, or of a frame that is blank."""
        small = _thumbnails(pixels)
        first = small[:1] if self._before is None else self._before.thumbnail
        changes = (small - torch.cat([first, small[:-1]])).abs().mean(dim=(1, 2, 3))
        cuts = (changes > _CUT).nonzero().flatten().tolist()
        return {frame for cut in cuts for frame in (cut - 1, cut) if frame >= 0}

    def _detected(self, pixels: Tensor, frames: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
        if not frames:
            return {}
        chosen = torch.tensor(frames, device=pixels.device)
        faces = self._detector(pixels.index_select(0, chosen), every_size=self._faces == "all")
        boxes, scores, places = faces.boxes.cpu(), faces.scores.cpu(), faces.frames.cpu()
        return {
            frame: (boxes[places == index], scores[places == index])
            for index, frame in enumerate(frames)
        }

    def _numbered(self, boxes: Tensor, time_s: float) -> list[tuple[int, int]]:
        """The row and the number of each face that is followed in a frame."""
        if not len(boxes):
            return []
        self._known = self._known_at(time_s)
        pairs = _matched(boxes, self._known)
        if self._faces == "largest":
            pairs = pairs[:1] or [(_largest(boxes), 0)]
        else:
            taken = {row for row, _ in pairs}
            pairs += [(row, self._new()) for row in range(len(boxes)) if row not in taken]
        for row, number in pairs:
            self._known[number] = _Seen(boxes[row], time_s)
        return pairs

    def _known_at(self, time_s: float) -> dict[int, _Seen]:
        """The faces that are not forgotten at a time."""
        return {
            number: seen
            for number, seen in self._known.items()
            if time_s - seen.time_s <= _FORGOTTEN_S
        }

    def _new(self) -> int:
        self._numbers += 1
        return self._numbers - 1

    def _path(self, pixels: Tensor, seen: Sequence[_Sighting]) -> _Path:
        frames = torch.tensor([sighting.frame for sighting in seen], device=pixels.device)
        boxes = torch.stack([sighting.box for sighting in seen]).to(pixels.device)
        first = self._network.in_regions(pixels, around_boxes(boxes), frames)
        regions = around_landmarks(first)
        landmarks, corrections = self._network.both_ways(pixels, regions, frames)
        scores = [sighting.score for sighting in seen]
        return _Path(frames, regions, landmarks, corrections, scores)

    def _face(
        self,
        pixels: Tensor,
        path: _Path,
        looked: Sequence[int],
        decoded: Bool[np.ndarray, " N"],
    ) -> TrackedFace:
        device = pixels.device
        read = path.frames.tolist()
        there = set(_covered(read, looked)) & set(np.flatnonzero(decoded).tolist())
        success = torch.zeros(len(pixels), dtype=torch.bool, device=device)
        success[sorted(there)] = True
        landmarks = torch.full((len(pixels), POINTS, 2), torch.nan, device=device)
        now = path.frames != _BEFORE
        landmarks[path.frames[now]] = path.landmarks[now]
        landmarks[~success] = torch.nan
        if between := sorted(there.difference(read)):
            frames = torch.tensor(between, device=device)
            regions = moved(path.regions, path.frames, frames)
            correction = interpolated(path.corrections, path.frames, frames)
            landmarks[frames] = self._network.in_regions(pixels, regions, frames, correction)
        scores = np.interp(np.arange(len(pixels)), path.frames.tolist(), path.scores)
        confidence = torch.from_numpy(scores).float().to(device) * success
        return TrackedFace(landmarks, success, confidence)


def _thumbnails(pixels: Tensor) -> Tensor:
    """Some pixels of each frame, as numbers that can be subtracted."""
    step = max(max(pixels.shape[1:3]) // _THUMBNAIL, 1)
    return pixels[:, ::step, ::step].float()


def _alike(boxes: Tensor, others: Tensor) -> bool:
    """Whether two frames show as many faces, each about where one of the other frame is."""
    if len(boxes) != len(others) or not len(boxes):
        return len(boxes) == len(others)
    same = overlaps(boxes, others) > _SAME_FACE
    return bool(same.any(dim=0).all() and same.any(dim=1).all())


def _covered(present: Sequence[int], looked: Sequence[int]) -> Iterable[int]:
    """Frames in which a face was seen, and those between neighbouring looks that both saw it."""
    yield from present
    seen = set(present)
    for before, after in pairwise(looked):
        if before in seen and after in seen:
            yield from range(before + 1, after)


def _matched(boxes: Tensor, known: dict[int, _Seen]) -> list[tuple[int, int]]:
    """Rows and numbers of boxes that continue known faces, the greatest overlap first."""
    if not known:
        return []
    numbers = list(known)
    shared = overlaps(boxes, torch.stack([known[number].box for number in numbers]))
    pairs = []
    while float(shared.max()) > _SAME_FACE:
        row, column = divmod(int(shared.argmax()), shared.shape[1])
        pairs.append((row, numbers[column]))
        shared[row], shared[:, column] = 0, 0
    return pairs


def _largest(boxes: Tensor) -> int:
    extent = boxes[:, 2:] - boxes[:, :2]
    return int(extent.prod(1).argmax())
