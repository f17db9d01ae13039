import gzip
from pathlib import Path

import av
import numpy as np
import pandas as pd
import pyfhog
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.path import Path as Outline

from affect.errors import UserError
from affect.extraction.openface import stage as stages
from affect.extraction.openface import weights
from affect.extraction.openface.align import Alignment, inside, warp
from affect.extraction.openface.fhog import Fhog, strongest_gradient
from affect.extraction.openface.median import RunningMedian
from affect.extraction.openface.pdm import ShapeFit
from affect.extraction.openface.regressors import intensities, moving_average, presences
from affect.extraction.openface.stage import Stage, VideoUnits
from tests import openface_models as oracle

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return weights.load(oracle.write_folder(tmp_path_factory.mktemp("openface")), verify=False)


@pytest.fixture(scope="module")
def clip():
    return oracle.poses(30)


@pytest.fixture(scope="module")
def described(models, clip):
    landmarks, pictures = (torch.from_numpy(values) for values in clip)
    return Stage(models)(pictures, landmarks)


def parts_of(models):
    shape = models.shape
    return shape.mean.reshape(3, 68), shape.components, shape.eigenvalues


def test_the_shape_fit_is_that_of_a_loop(models, clip):
    landmarks = clip[0][:6].copy()
    landmarks[2, 5, 0] = 0  # invisible
    pose = ShapeFit(models.shape)(torch.from_numpy(landmarks))
    for index, points in enumerate(landmarks):
        scale, turn, shift, local = oracle.fit(points, *parts_of(models))
        np.testing.assert_allclose(pose.scale[index], scale, rtol=1e-9)
        np.testing.assert_allclose(pose.rotation[index], turn, atol=1e-9)
        np.testing.assert_allclose(pose.translation[index], shift, atol=1e-7)
        np.testing.assert_allclose(pose.local[index], local, atol=1e-7)


def test_the_shape_fit_finds_a_pose_that_it_projected(models):
    fit = ShapeFit(models.shape)
    angle = torch.tensor(0.3, dtype=torch.float64)
    cosine, sine = angle.cos(), angle.sin()
    turn = torch.tensor([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]], dtype=torch.float64)
    flat = 1.7 * (fit.mean @ turn[:2].T) + torch.tensor([320.0, 180.0])
    pose = fit(flat[None])
    torch.testing.assert_close(pose.rotation[0], turn, atol=1e-3, rtol=0)
    assert float(pose.scale) == pytest.approx(1.7, abs=1e-3)
    np.testing.assert_allclose(pose.translation[0], [320, 180], atol=0.05)


def test_batching_changes_no_fit(models, clip):
    fit, landmarks = ShapeFit(models.shape), torch.from_numpy(clip[0])
    together = fit(landmarks)
    alone = fit(landmarks[7:8])
    torch.testing.assert_close(together.local[7:8], alone.local, rtol=0, atol=1e-10)


def test_the_aligned_face_is_that_of_a_loop(models, clip):
    landmarks, pictures = clip
    align, fit = Alignment(models.shape), ShapeFit(models.shape)
    points = torch.from_numpy(landmarks[:3])
    shift = fit(points).translation
    faces = align(torch.from_numpy(pictures[:3]), points, shift)
    for index in range(3):
        expected = oracle.align(
            pictures[index], landmarks[index], shift[index].numpy(), parts_of(models)[0]
        )
        assert (faces[index].numpy() != expected).mean() < 1e-3  # a pixel centre on the outline
        assert (expected > 0).mean() > 0.4


def test_the_warp_is_black_outside_the_frame():
    white = torch.full((1, 20, 30, 3), 255, dtype=torch.uint8)
    moved = warp(
        white, torch.eye(2, dtype=torch.float64)[None], torch.tensor([[40.0, 60.5]]).double()
    )
    face = moved[0, ..., 0]
    assert face[62, 45] == 255
    assert face[60, 45] == 128  # half a pixel of black
    assert face[:60].max() == 0
    assert face[:, :40].max() == 0
    assert face[:, 70:].max() == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_inside_is_the_even_odd_rule(seed):
    rng = np.random.default_rng(seed)
    around = np.sort(rng.uniform(0, 2 * np.pi, 27))
    reach = rng.uniform(10, 70, 27)
    points = np.stack([56 + reach * np.cos(around), 56 + reach * np.sin(around)], axis=1)
    grid = np.stack(np.meshgrid(np.arange(112), np.arange(112)), axis=-1).reshape(-1, 2)
    expected = Outline(points).contains_points(grid).reshape(112, 112)
    found = inside(torch.from_numpy(points)[None])[0].numpy()
    assert (found == expected).mean() > 0.9999


@pytest.mark.parametrize("seed", range(3))
def test_fhog_equals_dlibs(seed):
    rng = np.random.default_rng(seed)
    faces = rng.integers(0, 256, (4, 112, 112, 3), dtype=np.uint8)
    faces[3] = np.clip(np.cumsum(rng.normal(size=(112, 112, 3)), axis=0) * 5 + 128, 0, 255)
    found = Fhog().batched(torch.from_numpy(faces)).view(4, 12, 12, 31)
    expected = np.stack([pyfhog.extract_fhog_features(face, 8) for face in faces])
    off = np.abs(found.numpy() - expected.reshape(found.shape)).max(axis=-1) > 1e-5
    assert not off[~near_ties(faces)].any()
    assert near_ties(faces).mean() < 0.7


def near_ties(faces):
    """Cells that a pixel reaches whose direction, or channel, is ambiguous in float32."""
    gradient = strongest_gradient(torch.from_numpy(faces))
    dx, dy = (values.numpy().astype(float) for values in gradient)
    angles = np.deg2rad(np.arange(0, 180, 20))
    cosines, sines = np.round(np.cos(angles), 4), np.round(np.sin(angles), 4)
    along = np.abs(dx[..., None] * cosines + dy[..., None] * sines)
    first, second = np.sort(along, axis=-1)[..., -1], np.sort(along, axis=-1)[..., -2]
    tie = (first > second) & (first - second < 1e-3)  # exact ties are broken alike
    cells = np.zeros((len(faces), 12, 12), bool)
    for face, row, column in zip(*np.nonzero(tie), strict=True):
        low_row, low_column = (int(np.floor((p + 1.5) / 8 - 0.5)) - 1 for p in (row, column))
        cells[face, max(low_row - 1, 0) : low_row + 3, max(low_column - 1, 0) : low_column + 3] = (
            True
        )
    return cells


def test_a_black_face_has_no_gradient():
    assert Fhog()(torch.zeros(2, 112, 112, 3, dtype=torch.uint8)).abs().max() == 0


@pytest.mark.parametrize("steps", [1, 7, 30])
def test_the_running_median_is_that_of_sorted_bins(described, steps):
    success = torch.ones(30, dtype=torch.bool)
    success[[0, 4, 5, 17]] = False
    expected = oracle.medians(described.numpy(), success.numpy())
    median = RunningMedian(torch.device("cpu"))
    for start in range(0, 30, steps):
        median.update(described[start : start + steps], success[start : start + steps])
        end = min(start + steps, 30) - 1
        np.testing.assert_allclose(median.median(), expected[end], atol=1e-12)
    followed = RunningMedian(torch.device("cpu")).follow(described, success)
    np.testing.assert_allclose(followed, expected, atol=1e-12)


def test_the_median_of_no_face_is_zero():
    median = RunningMedian(torch.device("cpu"))
    median.update(torch.ones(5, 4702, dtype=torch.float64), torch.zeros(5, dtype=torch.bool))
    assert float(median.median().abs().max()) == 0


@pytest.mark.parametrize("batch", [4, 30])
@pytest.mark.parametrize("limit", [3000, 11])
def test_a_video_is_that_of_a_loop(models, clip, described, monkeypatch, batch, limit):
    """`limit` 11 lets the video run past the frames that are predicted again."""
    monkeypatch.setattr(stages, "_PREDICTED_AGAIN", limit)
    landmarks, pictures = (torch.from_numpy(values) for values in clip)
    success = torch.ones(30, dtype=torch.bool)
    success[[3, 9, 10, 29]] = False
    landmarks = landmarks.clone()
    landmarks[~success] = torch.nan
    video = VideoUnits(Stage(models))
    for start in range(0, 30, batch):
        rows = slice(start, start + batch)
        video.add(pictures[rows], landmarks[rows], success[rows])
    units = video.finish()
    seen = success.numpy()
    moments = oracle.medians(described.numpy(), seen)
    again = np.cumsum(seen) <= limit
    medians = np.where(again[:, None], moments[-1], moments)
    for kind, found in (("intensities", units.intensity), ("presences", units.presence)):
        regressors = getattr(models, kind)
        for column in range(len(regressors.names)):
            values = described.numpy() - regressors.means[:, column]
            if regressors.dynamic[column]:
                values = values - medians
            scores = values @ regressors.weights[:, column] + regressors.bias[column]
            expected = _finished(kind, scores, seen, regressors, column)
            np.testing.assert_allclose(found[:, column], expected, atol=2e-6)
    assert 0 < units.presence.mean() < 1
    assert units.intensity.std() > 0.05


def _finished(kind, scores, seen, regressors, column):
    if kind == "presences":
        classes = [regressors.negative[column], regressors.positive[column]]
        values = np.array(
            [classes[int(s > 0)] if ok else 0.0 for s, ok in zip(scores, seen, strict=True)]
        )
        return oracle.smooth(values, 7) >= 0.5
    zero, cutoff = 0.0, regressors.cutoff[column]
    if cutoff >= 0:
        zero = sorted(scores[seen])[int(seen.sum() * cutoff)]
    values = np.where(seen, np.clip(scores - zero, 0, 5), 0)
    return oracle.smooth(values, 3)


def test_a_still_image_takes_the_static_models(tmp_path, clip):
    home = oracle.write_folder(tmp_path / "home", still=True)
    static = weights.load(home, still=True, verify=False)
    assert not static.intensities.dynamic.any()
    stage = Stage(static)
    landmarks, pictures = (torch.from_numpy(values[:1]) for values in clip)
    video = VideoUnits(stage)
    video.add(pictures, landmarks, torch.ones(1, dtype=torch.bool))
    scores = stage.intensity_scores(stage(pictures, landmarks)).clamp(0, 5)
    np.testing.assert_allclose(video.finish().intensity, scores, atol=1e-6)


def test_a_video_without_a_face_has_no_action_unit(models):
    video = VideoUnits(Stage(models))
    pixels = torch.zeros(4, 20, 20, 3, dtype=torch.uint8)
    video.add(pixels, torch.full((4, 68, 2), torch.nan), torch.zeros(4, dtype=torch.bool))
    units = video.finish()
    assert units.intensity.max() == 0
    assert units.presence.max() == 0


def test_a_cutoff_is_the_zero_of_its_unit():
    scores = np.array([[0.1], [0.4], [0.2], [0.9]])
    found = intensities(scores, np.ones(4, bool), np.array([0.5]))
    zero = 0.4  # index trunc(4 x .5) of .1 .2 .4 .9
    raw = np.clip(scores[:, 0] - zero, 0, 5)
    np.testing.assert_allclose(
        found[:, 0], [raw[0], raw[:3].mean(), raw[1:].mean(), raw[3]], atol=1e-7
    )


def test_a_presence_follows_its_classes():
    scores = np.array([[1.0, 1.0]] * 8)
    found = presences(scores, np.ones(8, bool), np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert found.tolist() == [[1, 0]] * 8


@given(st.integers(1, 12), st.sampled_from([3, 7]))
def test_a_moving_average_leaves_a_constant(frames, span):
    np.testing.assert_allclose(moving_average(np.full((frames, 2), 0.7), span), 0.7)


# --- the model folder ------------------------------------------------------------------------


def test_the_models_are_read_as_written(models):
    assert len(models.intensities.names) == 17
    assert len(models.presences.names) == 18
    units = [int(name[2:4]) for name in models.intensities.names]
    expected = [oracle.DYNAMIC.get(unit, -1.0) for unit in units]
    np.testing.assert_array_equal(models.intensities.cutoff, expected)
    np.testing.assert_array_equal(models.intensities.dynamic, np.array(expected) >= 0)
    assert set(models.presences.positive + models.presences.negative) == {1.0}
    assert models.shape.components.shape == (204, 34)


def test_foreign_models_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"is not the file of OpenFace 2\.2"):
        weights.load(oracle.write_folder(tmp_path / "home"))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "svr_combined/AU_4.dat").unlink(), "AU_4.dat is missing: the OpenFace"),
        (lambda f: (f / "AU_all_best.txt").unlink(), "AU_all_best.txt is missing"),
        (lambda f: (f / "svr_combined/AU_4.dat").write_bytes(b"\0\0\0\0nothing"), "AU04_r is no"),
        (lambda f: (f / "In-the-wild_aligned_PDM_68.txt").write_text("# 3\n1 2"), "is no point"),
    ],
)
def test_a_broken_folder_is_told(tmp_path, spoil, message):
    home = oracle.write_folder(tmp_path / "home")
    spoil(home / "AU_predictors")
    with pytest.raises(UserError, match=message):
        weights.load(home, verify=False)


def test_a_home_is_found_or_asked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENFACE_HOME", raising=False)
    with pytest.raises(UserError, match="give --openface-home, or export OPENFACE_HOME"):
        weights.home_of(None)
    monkeypatch.setenv("OPENFACE_HOME", str(tmp_path))
    assert weights.home_of(None) == tmp_path
    with pytest.raises(UserError, match="holds no AU_predictors folder"):
        weights.load(tmp_path)
    with pytest.raises(UserError, match="no OpenFace folder at"):
        weights.home_of(tmp_path / "none")
    nested = oracle.write_folder(tmp_path / "lib" / "local" / "FaceAnalyser")
    assert weights.load(tmp_path, verify=False).sha256
    assert weights.load(nested / "AU_predictors", verify=False).sha256


# --- OpenFace's own files and output ---------------------------------------------------------


def reference(name):
    with gzip.open(SHARED / "openface-reference" / f"{name}.csv.gz", "rt") as file:
        return pd.read_csv(file, skipinitialspace=True)


def decoded(name):
    with av.open(SHARED / "videos" / f"{name}.mp4") as container:
        return [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]


@pytest.mark.openface
@pytest.mark.real_data
@pytest.mark.parametrize("name", ["single_face", "WolfgangLanger_Pexels"])
@pytest.mark.parametrize(
    ("decimals", "largest_mae", "least_agreement"), [(None, 0.001, 0.999), (1, 0.012, 0.99)]
)
def test_openfaces_own_action_units(openface_home, name, decimals, largest_mae, least_agreement):
    if not SHARED.is_dir():
        pytest.skip("no reference output beside the project")
    table, frames = reference(name), decoded(name)
    axes = [table[[f"{axis}_{point}" for point in range(68)]].to_numpy() for axis in "xy"]
    landmarks = np.stack(axes, axis=-1)
    landmarks = torch.from_numpy(landmarks if decimals is None else landmarks.round(decimals))
    success = torch.from_numpy(table["success"].to_numpy() > 0)
    models = weights.load(openface_home)
    video = VideoUnits(Stage(models))
    for start in range(0, len(frames), 32):
        rows = slice(start, start + 32)
        video.add(torch.from_numpy(np.stack(frames[rows])), landmarks[rows], success[rows])
    units = video.finish()
    expected = table[list(models.intensities.names)].to_numpy()
    assert np.abs(units.intensity - expected).mean() <= largest_mae
    agreement = (units.presence == table[list(models.presences.names)].to_numpy()).mean()
    assert agreement >= least_agreement
