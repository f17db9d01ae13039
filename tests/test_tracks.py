"""Many faces of one video: each gives the numbers of a whole video, and costs while it is there."""

import weakref

import numpy as np
import pytest
import torch

from affect.data.timeline import Place
from affect.extraction.backends.features import GeometryFeatures, OpenFaceFeatures
from affect.extraction.backends.tracks import Tracks
from affect.extraction.faces.tracker import FaceTracker, TrackedFace
from affect.extraction.openface import stage as stages
from affect.extraction.openface.median import RunningMedian, _Histogram
from affect.extraction.video import FrameBatch
from affect.recording import Provenance
from tests import openface_models
from tests.test_extraction import CentreNet, SquareDetector, batches, film

FRAMES = 90
WHEN = ("0-20", "3-9,15-30", "27-27", "44-60", "58-62,66-83", "80-86", "88-89")
"""First and last frames of each face."""
PLACE, PROVENANCE = Place("c", "s", "v"), Provenance("test", "1", "0" * 64)


def presence():
    rows = np.zeros((len(WHEN), FRAMES), bool)
    for row, spans in zip(rows, WHEN, strict=True):
        for span in spans.split(","):
            first, last = map(int, span.split("-"))
            row[first : last + 1] = True
    return rows


class Script:
    """Faces that come and go as written, each with the landmarks of its own; forgotten at once."""

    def __init__(self, landmarks, there):
        self.landmarks, self.there, self.frame = landmarks, there, 0

    def track(self, batch):
        rows = slice(self.frame, self.frame + len(batch.time_s))
        self.frame = rows.stop
        return {n: self.face(n, rows) for n, there in enumerate(self.there) if there[rows].any()}

    def face(self, number, rows):
        success = torch.from_numpy(self.there[number, rows])
        points = torch.from_numpy(self.landmarks[rows] + number)
        return TrackedFace(
            points.masked_fill(~success[:, None, None], torch.nan), success, 0.9 * success
        )

    def remembered(self):
        return frozenset(n for n, row in enumerate(self.there) if row[self.frame :].any())


def played(pictures, size):
    for start in range(0, len(pictures), size):
        pixels = torch.from_numpy(pictures[start : start + size])
        yield FrameBatch(pixels, np.arange(len(pixels)) / 25, np.ones(len(pixels), bool))


@pytest.mark.parametrize(("size", "limit"), [(1, 3000), (7, 5), (32, 3000)])
def test_a_face_that_is_finished_early_has_the_numbers_of_the_whole_video(
    tmp_path, unverified, monkeypatch, size, limit
):
    monkeypatch.setattr(stages, "_PREDICTED_AGAIN", limit)
    home, device = openface_models.write_folder(tmp_path), torch.device("cpu")
    extractor = OpenFaceFeatures(home, device, keep={"landmarks"})
    landmarks, pictures = openface_models.poses(FRAMES)
    there = presence()
    tracks, whole = Tracks(Script(landmarks, there), extractor), Script(landmarks, there)
    alone = [extractor.begin() for _ in there]
    for batch in played(pictures, size):
        tracks.add(batch)
        rows = slice(whole.frame, whole.frame + len(batch.time_s))
        whole.frame = rows.stop
        for number, features in enumerate(alone):
            face = whole.face(number, rows)
            features.add(batch.pixels, face.landmarks, face.success)
    faces = tracks.finish()
    assert list(faces) == list(range(len(there)))
    assert len(faces[0].success) < FRAMES
    for number, face in faces.items():
        recording = face.recording(PLACE, FRAMES, 25.0, extractor, PROVENANCE)
        expected, seen = alone[number].finish(), there[number]
        np.testing.assert_array_equal(recording.success, seen)
        np.testing.assert_array_equal(recording.intensity[seen], expected.intensity[seen])
        np.testing.assert_array_equal(recording.presence[seen], expected.presence[seen])
        assert np.isnan(recording.intensity[~seen]).all()
        assert recording.presence[~seen].max(initial=0) == 0
        np.testing.assert_array_equal(recording.confidence, np.float32(0.9) * seen)
        for name, values in expected.identifying.items():
            np.testing.assert_array_equal(recording.identifying[name], values)
    assert np.concatenate([face.features.intensity for face in faces.values()]).std() > 0.05


class Watched(GeometryFeatures):
    """Knows which of the faces that it began on are still held by anyone."""

    def __init__(self):
        super().__init__()
        self.alive = weakref.WeakSet()

    def begin(self):
        features = super().begin()
        self.alive.add(features)
        return features


def test_a_face_that_is_over_costs_its_own_frames_alone():
    extractor, faces = Watched(), 20
    there = np.zeros((faces, 50 * faces), bool)
    for number, row in enumerate(there):
        row[50 * number : 50 * number + 40] = True
    landmarks = openface_models.poses(40)[0]
    tracks = Tracks(Script(np.tile(landmarks, (2 * faces, 1, 1)), there), extractor)
    most = 0
    for batch in played(np.zeros((50 * faces, 4, 4, 3), np.uint8), 32):
        tracks.add(batch)
        most = max(most, len(extractor.alive))
    assert most <= 2
    for face in tracks.finish().values():
        held = (face.features.intensity, face.features.presence, face.success, face.confidence)
        assert all(values.base is None for values in held)
        assert len(face.success) <= 8 + 3 * 32
    assert not extractor.alive


def test_a_face_is_over_once_it_would_be_a_new_one():
    seen = [*range(20), *range(56, 64)]
    places = [[(10, 20, 30, 200)] * (f in seen) + [(100, 20, 30, 100)] for f in range(160)]
    tracker = FaceTracker(SquareDetector(), CentreNet(), "all", segment_frames=16)
    remembered = []
    for batch in batches(film(places)):
        tracker.track(batch)
        remembered.append(tracker.remembered())
    # Frame 111 is less than 2 s after frame 63, frame 127 is not.
    assert remembered == [{0, 1}] * 7 + [{1}] * 3
    assert list(tracker._known) == [1]


@pytest.mark.parametrize("frames", [32767, 32768, 40000])
def test_counts_grow_wider_before_they_overflow(frames):
    values = np.random.default_rng(0).beta(2, [1, 3, 9], (frames, 3))
    values[:, 2] = 0.55
    histogram = _Histogram(3, 10, 0.0, 1.0, torch.device("cpu"))
    for start in range(0, frames, 5000):
        histogram.add(torch.from_numpy(values[start : start + 5000]))
        histogram.median(start + 1)
    middle = np.sort(np.trunc(values * 10), axis=0)[(frames + 1) // 2 - 1]
    np.testing.assert_allclose(histogram.median(frames), (middle + 0.5) / 10)
    assert int(histogram._counts.sum()) == 3 * frames
    assert (histogram._counts.dtype == torch.int16) == (frames == 32767)


def test_a_median_takes_fifteen_megabytes_at_first():
    median = RunningMedian(torch.device("cpu"))
    counts = (median._fhog._counts, median._geometry._counts)
    assert sum(values.nbytes for values in counts) < 15e6
