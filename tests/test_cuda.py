"""Level 1 on a GPU against the same on the CPU; skipped where there is none."""

import numpy as np
import pyfhog
import pytest
import torch

from affect.data.timeline import Place
from affect.extraction.backends import choice
from affect.extraction.backends.choice import Options
from affect.extraction.backends.protocol import Listener
from affect.extraction.openface import weights
from affect.extraction.openface.fhog import Fhog
from affect.extraction.openface.stage import Stage, VideoUnits
from affect.extraction.video import Video
from tests import clips, openface_models
from tests.test_openface_stage import near_ties

pytestmark = pytest.mark.cuda


@pytest.fixture
def gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device("cuda")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    home = openface_models.write_folder(tmp_path_factory.mktemp("openface"))
    return weights.load(home, verify=False)


def test_fhog_equals_dlibs(gpu):
    faces = np.random.default_rng(0).integers(0, 256, (4, 112, 112, 3), dtype=np.uint8)
    found = Fhog().to(gpu)(torch.from_numpy(faces).to(gpu)).cpu().view(4, 12, 12, 31)
    expected = np.stack([pyfhog.extract_fhog_features(face, 8) for face in faces])
    off = np.abs(found.numpy() - expected.reshape(found.shape)).max(axis=-1) > 1e-5
    assert not off[~near_ties(faces)].any()


def test_the_stage_gives_the_same_action_units(gpu, models):
    landmarks, pictures = openface_models.poses(100)
    units = []
    for device in (torch.device("cpu"), gpu):
        video = VideoUnits(Stage(models).to(device))
        shown = torch.from_numpy(pictures), torch.from_numpy(landmarks)
        video.add(*shown, torch.ones(100, dtype=torch.bool))
        units.append(video.finish())
    np.testing.assert_allclose(units[1].intensity, units[0].intensity, atol=1e-3)
    assert (units[1].presence == units[0].presence).mean() > 0.999


@pytest.mark.parametrize("gpu_decoding", [False, True])
def test_a_video_gives_the_same_recording(gpu, tmp_path, gpu_decoding):
    landmarks, pictures = openface_models.poses(300)
    path = clips.write(tmp_path / "a.mp4", list(pictures), codec="libx264", pixel_format="yuv420p")
    clips.lay_landmarks(path, landmarks)
    recordings = []
    for device in ("cpu", str(gpu)):
        options = Options("geometry", device, gpu_decoding=gpu_decoding and device != "cpu")
        backend = choice.make(options)
        recordings += backend.recordings(
            path, Place("a", "b", "c"), backend.provenance(path), Listener()
        )
    one, other = recordings
    np.testing.assert_allclose(other.intensity, one.intensity, atol=1e-5)
    assert (other.success == one.success).all()


def test_a_gpu_decodes_to_the_same_bits(gpu, tmp_path):
    path = clips.write(
        tmp_path / "a.mp4", clips.noise(50, 240, 320), codec="libx264", pixel_format="yuv420p"
    )
    with Video(path) as plain, Video(path, gpu=gpu) as asked:
        for one, other in zip(plain, asked, strict=True):
            assert other.pixels.device.type == "cuda"
            assert other.pixels.cpu().equal(one.pixels)


def test_memory_that_runs_out_is_met_with_halves(gpu):
    from affect.extraction.parts import InParts

    in_parts = InParts(cpu=1, gpu=1 << 20)
    free, _ = torch.cuda.mem_get_info(gpu)
    frame_bytes = free // 8
    frames = torch.zeros(32, 1, device=gpu)
    found = in_parts(lambda rows: rows.expand(-1, frame_bytes).clone()[:, :1].clone(), frames)
    assert found.shape == (32, 1)
    assert in_parts.gpu < 32
