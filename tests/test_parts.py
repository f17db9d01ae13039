import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from affect.data.timeline import Place
from affect.extraction import pipeline, stream
from affect.extraction.backends import choice
from affect.extraction.backends.choice import Options
from affect.extraction.backends.protocol import Listener
from affect.extraction.faces import detector
from affect.extraction.openface import weights
from affect.extraction.openface.align import Alignment
from affect.extraction.openface.median import RunningMedian
from affect.extraction.openface.pdm import ShapeFit
from affect.extraction.openface.stage import Stage
from affect.extraction.parts import Halving, InParts
from affect.extraction.progress import Progress
from tests import clips, openface_models


@given(st.integers(1, 40), st.integers(1, 12))
def test_parts_change_no_result_and_none_is_larger(frames, size):
    lengths = []

    def summed(first, second):
        lengths.append(len(first))
        return first + second

    rows = torch.arange(frames)
    assert InParts(cpu=size)(summed, rows, rows).equal(2 * rows)
    assert max(lengths) <= size


class Device:
    """A device that holds so many frames at once; `meta` tensors are on no CPU."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.tried = []

    def __call__(self, frames):
        self.tried.append(len(frames))
        if len(frames) > self.capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return frames


@pytest.mark.parametrize("capacity", [1, 5, 100])
def test_parts_are_halved_where_memory_runs_out_and_stay_so(capacity):
    device, in_parts = Device(capacity), InParts(cpu=8, gpu=64)
    frames = torch.zeros(50, 3, device="meta")
    assert in_parts(device, frames).shape == (50, 3)
    assert in_parts.gpu == {1: 1, 5: 3, 100: 64}[capacity]
    device.tried.clear()
    in_parts(device, frames)
    assert max(device.tried) <= capacity


def test_memory_that_does_not_hold_a_frame_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        InParts(cpu=8)(Device(0), torch.zeros(4, device="meta"))


# --- a whole video, of which one step or another runs out of memory ------------------------------


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """A clip of five segments, which make one batch of eight at most, and its landmarks."""
    landmarks, pictures = openface_models.poses(150)
    path = clips.write(tmp_path_factory.mktemp("film") / "a.mkv", list(pictures))
    return clips.lay_landmarks(path, landmarks)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return openface_models.write_folder(tmp_path_factory.mktemp("openface"))


class Heard(Listener):
    def __init__(self):
        self.frames = 0

    def advance(self, frames):
        self.frames += frames


def extracted(filmed, home, segments):
    backend = choice.make(Options("openface", "cpu", home))
    backend._segments = Halving(segments)
    heard = Heard()
    (recording,) = backend.recordings(
        filmed, Place("c", "s", "a"), backend.provenance(filmed), heard
    )
    assert heard.frames == recording.frames == 150
    return recording, backend


def fitted(fit, landmarks):
    return len(landmarks)


def aligned(align, pixels, landmarks, translation):
    return len(pixels)


def counted(median, descriptors, success):
    return len(descriptors)


def scored(stage, descriptors):
    return len(descriptors)


def moved(batches, device):
    return sum(len(batch.time_s) for batch in batches)


def limited(monkeypatch, owner, name, frames, capacity):
    """Let a step fail as a GPU does, where it is to take more frames than a capacity."""
    whole = getattr(owner, name)

    def step(*arguments):
        if frames(*arguments) > capacity:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(*arguments)

    monkeypatch.setattr(owner, name, step)


@pytest.fixture(scope="module")
def unbroken(filmed, home):
    with pytest.MonkeyPatch.context() as patch:
        load = weights.load
        patch.setattr(weights, "load", lambda *a, **k: load(*a, **k, verify=False))
        return extracted(filmed, home, segments=1)[0]


@pytest.mark.parametrize(
    ("owner", "name", "frames", "capacity", "segments"),
    [
        (ShapeFit, "forward", fitted, 40, 1),
        (RunningMedian, "update", counted, 100, 2),
        (Stage, "scores", scored, 40, 1),
        (stream, "_one", moved, 40, 1),
        (Alignment, "forward", aligned, 5, 8),  # which works on parts of a batch
    ],
)
def test_a_video_begins_again_with_less_at_once(
    filmed, home, unbroken, unverified, monkeypatch, owner, name, frames, capacity, segments
):
    limited(monkeypatch, owner, name, frames, capacity)
    recording, backend = extracted(filmed, home, segments=8)
    assert backend._segments.size == segments
    np.testing.assert_allclose(recording.intensity, unbroken.intensity, atol=1e-5)
    np.testing.assert_array_equal(recording.presence, unbroken.presence)
    if segments == 1:
        np.testing.assert_array_equal(recording.intensity, unbroken.intensity)


def test_frames_are_resampled_in_parts_that_fit(monkeypatch):
    pixels = torch.from_numpy(np.stack(clips.noise(6, 90, 160)))
    network = detector.load_detector()
    expected = network.candidates(pixels, 224)
    limited(monkeypatch, detector, "squared", lambda pixels, size: len(pixels), capacity=1)
    for values, unbroken in zip(network.candidates(pixels, 224), expected, strict=True):
        torch.testing.assert_close(values, unbroken)


def test_a_video_for_which_there_is_no_memory_is_told(
    filmed, home, unverified, monkeypatch, tmp_path
):
    limited(monkeypatch, ShapeFit, "forward", fitted, capacity=5)
    backend = choice.make(Options("openface", "cpu", home))
    done = pipeline.extract_one(Place("c", "s", "a"), filmed, tmp_path, backend)
    assert done.error == (
        f"{filmed}: too little memory on the GPU: free some of it, or give --device cpu"
    )
    assert done.cause == "too little memory on the GPU"
    assert not list(tmp_path.rglob("*.h5"))


def test_a_bar_counts_a_video_that_begins_again_once(tmp_path):
    paths = [tmp_path / name for name in "ab"]
    for path in paths:
        path.write_bytes(b"0" * 100)
    with Progress(paths) as progress:
        for frames in (50, -50, 60):
            if frames > 0:
                progress.expect(paths[0], 80)
            progress.advance(frames)
        assert (progress._bar.n, progress._bar.total) == (60, 160)
