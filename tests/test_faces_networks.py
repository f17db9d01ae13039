"""Face detector and landmark network: against loops in NumPy, laws, and OpenFace's landmarks."""

import gzip
import hashlib
import importlib.util
import json
import re
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load

from affect.extraction.faces import detector, landmarks, networks, regions
from affect.extraction.faces.regions import Regions

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
NOTICE = (resources.files("affect.extraction.faces") / "weights" / "NOTICE.md").read_text()


@pytest.fixture(scope="module")
def find():
    return detector.load_detector()


@pytest.fixture(scope="module")
def locate():
    return landmarks.load_landmarks()


def noise(*shape, seed=0):
    """Smooth random frames: neither network answers to white noise."""
    coarse = torch.rand(shape[0], 3, 9, 12, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, shape[1:3], mode="bicubic")
    return (fine.clamp(0, 1) * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# Weights


@pytest.mark.parametrize("name", [detector.WEIGHTS, landmarks.WEIGHTS])
def test_weights_are_those_of_the_notice(name):
    (stated,) = re.findall(rf"`{name}.safetensors` \|.*\| `(\w{{64}})`", NOTICE)
    content = (
        resources.files("affect.extraction.faces") / "weights" / f"{name}.safetensors"
    ).read_bytes()
    assert networks.sha256(name) == hashlib.sha256(content).hexdigest() == stated


def weights(name):
    """Dequantised here again, in NumPy."""
    stored = load(networks.packaged(name))
    return {
        key: value.astype(np.float64) * stored[f"{key}.scale"] + stored[f"{key}.minimum"]
        for key, value in stored.items()
        if value.dtype == np.uint8
    }


def converter():
    path = ROOT / "experiments" / "extraction" / "convert_face_api.py"
    spec = importlib.util.spec_from_file_location("convert_face_api", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_converter_reads_manifest_and_quantised_weights(tmp_path):
    shapes = {
        "a/depthwise_filter": [3, 3, 2, 1],
        "a/pointwise_filter": [1, 1, 2, 4],
        "a/bias": [4],
        "fc/weights": [4, 5],
        "fc/bias": [5],
    }
    entries = [
        {"name": name, "shape": shape, "quantization": {"dtype": "uint8", "scale": 0.5, "min": -1}}
        for name, shape in shapes.items()
    ]
    content = np.arange(18 + 8 + 4 + 20 + 5, dtype=np.uint8).tobytes()
    (tmp_path / "net.bin").write_bytes(content)
    manifest = tmp_path / "net-weights_manifest.json"
    manifest.write_text(json.dumps([{"weights": entries, "paths": ["net.bin"]}]))
    found = converter().tensors_of(tmp_path, "net")
    depthwise = found["a.depthwise.weight"]
    assert depthwise.shape == (2, 1, 3, 3)
    assert depthwise[1, 0, 2, 1] == (2 * 3 + 1) * 2 + 1  # row, column, channel
    assert found["a.pointwise.weight"].shape == (4, 2, 1, 1)
    assert found["a.pointwise.weight"][3, 1, 0, 0] == 18 + 7
    np.testing.assert_array_equal(found["a.pointwise.bias"], 26 + np.arange(4))
    assert found["fc.weight"][4, 1] == 30 + 5 + 4
    assert (found["fc.bias.scale"], found["fc.bias.minimum"]) == (0.5, -1)
    (tmp_path / "net.bin").write_bytes(content + b"x")
    with pytest.raises(ValueError, match="56 bytes, but its manifest says 55"):
        converter().tensors_of(tmp_path, "net")


# Networks against NumPy


def convolved(images, weight, bias=None, stride=1, padding=(0, 0)):
    """[C H W] by [D C k k], a tap of the filter at a time."""
    images = np.pad(images, ((0, 0), padding, padding))
    size = weight.shape[-1]
    height, width = ((extent - size) // stride + 1 for extent in images.shape[1:])
    total = np.zeros((len(weight), height, width))
    for row in range(size):
        for column in range(size):
            part = images[:, row::stride, column::stride][:, :height, :width]
            total += np.einsum("chw,dc->dhw", part, weight[:, :, row, column])
    return total if bias is None else total + bias[:, None, None]


def separable(images, found, name, stride=1, padding=(1, 1)):
    depthwise = found[f"{name}.depthwise.weight"]
    filtered = [
        convolved(image[None], kernel[None], stride=stride, padding=padding)[0]
        for image, kernel in zip(images, depthwise, strict=True)
    ]
    pointwise = found[f"{name}.pointwise.weight"], found[f"{name}.pointwise.bias"]
    return convolved(np.stack(filtered), *pointwise)


def pooled(images, stride):
    padded = np.pad(images, ((0, 0), (0, 1), (0, 1)), constant_values=-np.inf)
    height, width = (-(-extent // stride) for extent in images.shape[1:])
    corners = [
        padded[:, row::stride, column::stride][:, :height, :width]
        for row in (0, 1)
        for column in (0, 1)
    ]
    return np.max(corners, axis=0)


def test_detector_equals_numpy(find):
    images = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    found = weights(detector.WEIGHTS)
    x = convolved(images[0].double().numpy(), found["conv0.weight"], found["conv0.bias"])
    for layer in range(1, 6):
        x = pooled(np.where(x > 0, x, 0.1 * x), stride=2)
        x = separable(x, found, f"conv{layer}")
    x = pooled(np.where(x > 0, x, 0.1 * x), stride=1)
    expected = convolved(x, found["conv8.weight"], found["conv8.bias"])
    assert expected.shape == (25, 3, 4)
    np.testing.assert_allclose(find.encode(images)[0], expected, atol=1e-4)


def test_landmarks_equal_numpy(locate):
    faces = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(2)) - 0.5
    found = weights(landmarks.WEIGHTS)
    x = faces[0].double().numpy()
    for block in range(4):
        if block:
            first = separable(x, found, f"dense{block}.conv0", stride=2, padding=(0, 1))
        else:
            kernel = found["dense0.conv0.weight"], found["dense0.conv0.bias"]
            first = convolved(x, *kernel, stride=2, padding=(0, 1))
        outputs = [np.maximum(first, 0)]
        for layer in (1, 2, 3):
            seen = np.maximum(sum(outputs), 0)
            outputs.append(separable(seen, found, f"dense{block}.conv{layer}"))
        x = np.maximum(sum(outputs), 0)
    assert x.shape == (256, 7, 7)
    expected = found["fc.weight"] @ x.mean(axis=(1, 2)) + found["fc.bias"]
    np.testing.assert_allclose(locate.encode(faces)[0].flatten(), expected, atol=1e-4)


# Detector


def test_detector_follows_a_translation(find):
    patch = noise(1, 64, 48)[0]
    frames = torch.zeros(2, 512, 512, 3, dtype=torch.uint8)
    frames[0, 192:256, 192:240] = patch
    frames[1, 224:288, 256:304] = patch  # a cell down, two to the right
    found, scores = find.candidates(frames, 512)
    grid, scores = found.view(2, 16, 16, 5, 4), scores.view(2, 16, 16, 5)
    # Cells that see neither border: the field of view is 95 pixels to each side.
    first, second = np.s_[0, 4:10, 4:9], np.s_[1, 5:11, 6:11]
    shift = torch.tensor([64.0, 32, 64, 32])
    torch.testing.assert_close(grid[second], grid[first] + shift, atol=1e-2, rtol=0)
    torch.testing.assert_close(scores[second], scores[first], atol=1e-5, rtol=0)
    assert scores[first].std() > 1e-4


def blue_green_red(*shape):
    return torch.tensor([10, 20, 30], dtype=torch.uint8).expand(*shape, 3)


def test_candidates_by_hand(find, monkeypatch):
    seen = []

    def encode(images):
        seen.append(images)
        return torch.zeros(1, 25, 2, 2)

    monkeypatch.setattr(find, "encode", encode)
    found, scores = find.candidates(blue_green_red(1, 64, 128), 64)
    above, below = seen[0][0, :, 0, 0], seen[0][0, :, 40, 0]
    means = np.array([117.001, 114.697, 97.404])  # red, green, blue
    np.testing.assert_allclose(above, (np.array([30, 20, 10]) - means) / 255, rtol=1e-5)
    np.testing.assert_allclose(below, -means / 255, rtol=1e-5)
    assert (scores == 0.5).all()
    # Row 0, column 1, anchor 0: a cell is 64 pixels of the frame, and 0 encodes its centre.
    width, height = 1.603231 * 64, 2.094468 * 64
    expected = [96 - width / 2, 32 - height / 2, 96 + width / 2, 32 + height / 2]
    np.testing.assert_allclose(found[0, 5], expected, rtol=1e-5)


def test_boxes_scale_with_the_frame(find):
    small = noise(1, 64, 96, seed=4)
    large = small.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)
    # Every second pixel of the large frame is the small frame.
    found, scores = find.candidates(small, 96)
    larger, same = find.candidates(large, 96)
    torch.testing.assert_close(larger, 2 * found, atol=1e-3, rtol=0)
    torch.testing.assert_close(same, scores, atol=1e-6, rtol=0)


def test_detections_of_a_batch_equal_those_of_each_frame(find):
    frames = noise(5, 90, 160, seed=3)
    frames[2] = 0
    together = find(frames, sizes=(96, 128), threshold=0.002)
    assert len(together.scores) > 4
    alone = [find(frame[None], sizes=(96, 128), threshold=0.002) for frame in frames]
    counts = torch.bincount(together.frames, minlength=5).tolist()
    assert counts == [len(each.scores) for each in alone]
    torch.testing.assert_close(
        together.boxes, torch.cat([each.boxes for each in alone]), atol=1e-3, rtol=0
    )
    assert (together.scores > 0.002).all()


def test_later_sizes_serve_frames_without_a_face(find, monkeypatch):
    tried = []
    score = {96: torch.tensor([0.9, 0.1, 0.1]), 128: torch.tensor([0.2, 0.8, 0.3])}

    def candidates(pixels, size):
        indices = pixels[:, 0, 0, 0].long()
        tried.append((size, indices.tolist()))
        return torch.tensor([[[0.0, 0, size, size]]]).expand(len(indices), 1, 4), score[size][
            indices
        ][:, None]

    monkeypatch.setattr(find, "candidates", candidates)
    frames = torch.arange(3, dtype=torch.uint8)[:, None, None, None].expand(3, 8, 8, 3)
    found = find(frames, sizes=(96, 128))
    assert tried == [(96, [0, 1, 2]), (128, [1, 2])]
    assert found.frames.tolist() == [0, 1]
    assert found.boxes[:, 2].tolist() == [96, 128]
    tried.clear()
    find(frames, sizes=(96, 128), every_size=True)
    assert tried == [(96, [0, 1, 2]), (128, [0, 1, 2])]


def test_no_frames_have_no_faces(find):
    assert len(find(torch.zeros(0, 90, 160, 3, dtype=torch.uint8)).boxes) == 0


def test_input_size_is_a_multiple_of_the_stride(find):
    with pytest.raises(ValueError, match="must be a multiple of 32: 200"):
        find.candidates(noise(1, 90, 160), 200)


# Landmarks and where they are looked for


def test_landmarks_of_a_batch_equal_those_of_each_face(locate):
    frames = noise(3, 90, 160)
    faces = torch.tensor([[20.0, 10, 80, 75], [-5, 20, 60, 80], [90, 30, 150, 95]])
    together = locate(frames, faces)
    alone = [locate(frames[i : i + 1], faces[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-3, rtol=0)
    chosen = locate(frames, faces[[2, 0]], torch.tensor([2, 0]))
    torch.testing.assert_close(chosen, together[[2, 0]], atol=1e-3, rtol=0)


def test_landmarks_follow_a_translation(locate):
    scene = noise(1, 100, 140)
    frames = torch.zeros(2, 200, 240, 3, dtype=torch.uint8)
    frames[0, 20:120, 30:170] = scene[0]
    frames[1, 67:167, 51:191] = scene[0]
    shift = torch.tensor([21.0, 47])
    face = torch.tensor([60.0, 30, 130, 110])
    found = locate(frames, torch.stack((face, face + shift.repeat(2))))
    torch.testing.assert_close(found[1], found[0] + shift, atol=1e-3, rtol=0)


def test_the_mirror_image_has_mirrored_landmarks(locate):
    frames = noise(1, 90, 160)
    side, centre = 56.0, torch.tensor([[70.0, 40]])
    region = Regions(centre, torch.tensor([side]), torch.zeros(1))
    # A square begins on a sample but ends one sample short of its border.
    opposite = torch.tensor([[159 - 70 + side / 112, 40]])
    which = torch.tensor([0])
    found, correction = locate.both_ways(frames, region, which)
    there = Regions(opposite, region.side, region.roll)
    mirrored, _ = locate.both_ways(frames.flip(2), there, which)
    mirrored = mirrored[:, list(landmarks.MIRRORED)]
    expected = torch.stack((159 - mirrored[..., 0], mirrored[..., 1]), dim=-1)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)
    alone = locate.in_regions(frames, region, which)
    assert not torch.allclose(found, alone, atol=0.1)
    corrected = locate.in_regions(frames, region, which, correction)
    torch.testing.assert_close(corrected, found, atol=1e-4, rtol=0)


def test_the_second_pass_looks_where_the_first_found_the_face(locate, monkeypatch):
    seen, answer = [], torch.rand(1, 68, 2, generator=torch.Generator().manual_seed(6))

    def encode(faces):
        seen.append(faces)
        return answer

    monkeypatch.setattr(locate, "encode", encode)
    frames, box = blue_green_red(1, 90, 160), torch.tensor([[40.0, 10, 100, 60]])
    found = locate(frames, box)
    first = 60 * (answer - 0.5) + torch.tensor([70.0, 35])
    x, y = answer[:, list(landmarks.MIRRORED)].unbind(-1)
    both = (answer + torch.stack((111 / 112 - x, y), dim=-1)) / 2
    expected = regions.around_landmarks(first).to_frame(both)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    means = np.array([122.782, 117.001, 104.298])
    inside = seen[0][0, :, 56, 56]
    np.testing.assert_allclose(inside, (np.array([30, 20, 10]) - means) / 255, rtol=1e-4)


def test_mirroring_reverses_each_part_of_the_face():
    jaw, brows = range(16, -1, -1), range(26, 16, -1)
    nose = (27, 28, 29, 30, *range(35, 30, -1))
    eyes = (45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40)
    outer = (*range(54, 47, -1), *range(59, 54, -1))
    inner = (*range(64, 59, -1), *range(67, 64, -1))
    assert (*jaw, *brows, *nose, *eyes, *outer, *inner) == landmarks.MIRRORED


def test_mirroring_twice_changes_nothing():
    order = np.array(landmarks.MIRRORED)
    np.testing.assert_array_equal(order[order], np.arange(68))
    middle = [8, 27, 28, 29, 30, 33, 51, 57, 62, 66]
    np.testing.assert_array_equal(np.flatnonzero(order == np.arange(68)), middle)


# Real faces


def frames_of(name, step):
    path = SHARED / "videos" / f"{name}.mp4"
    if not path.exists():
        pytest.skip(f"no {path.name} in ../shared/videos")
    av = pytest.importorskip("av")
    with av.open(str(path)) as container:
        kept = [
            frame.to_ndarray(format="bgr24")
            for index, frame in enumerate(container.decode(video=0))
            if index % step == 0
        ]
    return torch.from_numpy(np.stack(kept))


def openface_landmarks(name, step):
    path = SHARED / "openface-reference" / f"{name}.csv.gz"
    with gzip.open(path, "rt") as stream:
        table = pd.read_csv(stream, skipinitialspace=True)[::step]
    axes = [table[[f"{axis}_{point}" for point in range(68)]].to_numpy() for axis in "xy"]
    return np.stack(axes, axis=-1), table["success"].to_numpy() == 1


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "step", "limit"),
    # measured: .0622 and .0542 of the distance between the eyes' centres
    [("WolfgangLanger_Pexels", 24, 0.07), ("single_face", 9, 0.06)],
)
def test_real_faces_are_found_and_near_openfaces(find, locate, name, step, limit):
    frames = frames_of(name, step)
    detections = find(frames)
    assert detections.frames.tolist() == list(range(len(frames)))
    found = locate(frames, detections.boxes).numpy()
    expected, success = openface_landmarks(name, step)
    eyes = expected[:, 42:48].mean(axis=1) - expected[:, 36:42].mean(axis=1)
    error = np.linalg.norm(found - expected, axis=-1).mean(axis=1) / np.linalg.norm(eyes, axis=-1)
    assert error[success].mean() < limit


@pytest.mark.real_data
def test_no_faces_are_seen_where_there_are_none(find):
    assert len(find(frames_of("no_face", 5)).scores) == 0
