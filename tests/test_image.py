import json
import struct
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from affect import store
from affect.cli import main
from affect.errors import UserError
from affect.extraction.image import IMAGE_SUFFIXES, Still, read_image
from affect.extraction.openface import weights
from affect.extraction.video import Video
from tests import clips
from tests import openface_models as oracle

VIDEOS = Path(__file__).parents[2] / "shared" / "videos"
CODECS = {
    ".bmp": "bmp",
    ".jp2": "jpeg2000",
    ".jpeg": "mjpeg",
    ".jpg": "mjpeg",
    ".pgm": "pgm",
    ".png": "png",
    ".ppm": "ppm",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".webp": "libwebp",
}


@pytest.mark.parametrize("name", ["a.png", "ä %03d.png", "no suffix", "a:b.png"])
def test_a_still_image_comes_back_to_the_bit(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    drawn = clips.noise(1, 33, 47)[0]
    pixels = read_image(clips.write_picture(Path(name), drawn))
    np.testing.assert_array_equal(pixels.numpy(), drawn)


def test_a_jpeg_is_read_in_its_full_range(tmp_path):
    drawn = clips.corners(32, 64)
    pixels = read_image(clips.write_picture(tmp_path / "a.jpg", drawn, "mjpeg")).numpy()
    for row, column in ((4, 4), (4, -5), (-5, 4), (-5, -5)):
        np.testing.assert_allclose(pixels[row, column], drawn[row, column], rtol=0, atol=8)


@pytest.mark.parametrize(
    ("set_up", "message"),
    [
        (lambda at: None, "no such file"),
        (lambda at: at.mkdir(), "a folder"),
        (lambda at: at.touch(), "empty"),
        (lambda at: at.write_text("no pixels"), "no image"),
        (lambda at: clips.write(at, clips.grey(3)), "a video"),
    ],
)
def test_what_is_no_image_is_said(tmp_path, set_up, message):
    path = tmp_path / "a.mkv"
    set_up(path)
    with pytest.raises(UserError, match=message):
        read_image(path)


@pytest.mark.parametrize("suffix", sorted(IMAGE_SUFFIXES))
def test_every_suffix_that_folders_are_searched_for_can_be_read(tmp_path, suffix):
    drawn = clips.corners(32, 64)
    if suffix == ".pgm":
        drawn = np.repeat(drawn[..., 2:], 3, axis=2)
    pixels = read_image(clips.write_picture(tmp_path / f"a{suffix}", drawn, CODECS[suffix])).numpy()
    np.testing.assert_allclose(pixels[4::23, 4::55], drawn[4::23, 4::55], rtol=0, atol=8)


def exif(orientation):
    """A JPEG's segment that says how the camera was held."""
    entry = struct.pack("<HHHIHH", 1, 0x112, 3, 1, orientation, 0)
    body = b"Exif\0\0II*\0" + struct.pack("<I", 8) + entry + struct.pack("<I", 0)
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


UPRIGHT = {
    1: lambda stored: stored,
    2: np.fliplr,
    3: lambda stored: np.rot90(stored, 2),
    4: np.flipud,
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: np.rot90(stored, -1),
    7: lambda stored: np.rot90(stored, 2).transpose(1, 0, 2),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_a_picture_is_upright_however_the_camera_was_held(tmp_path, orientation):
    path = clips.write_picture(tmp_path / "a.jpg", clips.corners(32, 64), "mjpeg")
    stored, content = read_image(path).numpy(), path.read_bytes()
    path.write_bytes(content[:2] + exif(orientation) + content[2:])
    np.testing.assert_array_equal(read_image(path), UPRIGHT[orientation](stored))


def test_what_a_phone_appends_to_a_jpeg_is_passed_over(tmp_path):
    path = clips.write_picture(tmp_path / "a.jpg", clips.corners(32, 64), "mjpeg")
    alone = read_image(path)
    gains = clips.write_picture(tmp_path / "gains.jpg", clips.corners(16, 32), "mjpeg")
    path.write_bytes(path.read_bytes() + gains.read_bytes())
    np.testing.assert_array_equal(read_image(path), alone)


def test_a_still_is_a_video_of_one_frame(tmp_path):
    drawn = clips.noise(1, 33, 47)[0]
    with Still(clips.write_picture(tmp_path / "a.png", drawn)) as still:
        (batch,) = still
    assert (still.frames, still.rate_hz, still.errors, still.ended_early) == (1, 1.0, 0, False)
    np.testing.assert_array_equal(batch.pixels[0], drawn)
    assert (batch.time_s.tolist(), batch.decoded.tolist()) == ([0.0], [True])


# --- the command -----------------------------------------------------------------------------


def pictured(path, seed=0, **more):
    """A picture, and the CSV that OpenFace's FaceLandmarkImg writes of it; their content."""
    landmarks, pictures = oracle.poses(1, seed)
    clips.write_picture(path, pictures[0])
    table = pd.DataFrame({"face": [0], "confidence": 0.975, **more, **oracle.columns(landmarks)})
    table.to_csv(path.with_suffix(".csv"), index=False)
    return landmarks[0], pictures[0]


def stills(cache, *arguments):
    return ["extract", *map(str, arguments), "--still", "--cache", str(cache), "--json"]


def test_a_still_has_the_action_units_of_a_loop(tmp_path, monkeypatch, capsys):
    load = weights.load
    monkeypatch.setattr(weights, "load", lambda *a, **k: load(*a, **k, verify=False))
    home = oracle.write_folder(tmp_path / "home", still=True)  # it has no models for video
    landmarks, picture = pictured(tmp_path / "Anna.png")
    openface = ("--backend", "openface", "--openface-home", home, "--device", "cpu")
    kept = ("--keep", "landmarks", "descriptors")
    assert main(stills(tmp_path / "cache", tmp_path / "Anna.png", *openface, *kept)) == 0

    path = store.path_of(tmp_path / "cache", "videos", "Anna", "Anna")
    store.verify(path)
    recording = store.read(path, identifying=True)
    assert (recording.frames, recording.rate_hz, recording.success.tolist()) == (1, 1.0, [True])
    assert recording.confidence[0] == np.float32(0.975)
    models = weights.load(home, still=True)
    assert recording.provenance.weights_sha256 == models.sha256
    assert recording.provenance.parameters == {"landmarks": "openface-csv", "still": True}
    np.testing.assert_array_equal(recording.identifying["landmarks"][0], np.float32(landmarks))

    shape = models.shape
    expected = oracle.describe(
        picture, landmarks, shape.mean.reshape(3, 68), shape.components, shape.eigenvalues
    )
    np.testing.assert_allclose(recording.identifying["descriptors"][0], expected, atol=1e-5)
    for kind, found in (("intensities", recording.intensity), ("presences", recording.presence)):
        regressors = getattr(models, kind)
        scores = [
            (expected - regressors.means[:, column]) @ regressors.weights[:, column] + bias
            for column, bias in enumerate(regressors.bias)
        ]
        classes = np.where(np.array(scores) > 0, regressors.positive, regressors.negative)
        units = np.clip(scores, 0, 5) if kind == "intensities" else classes
        np.testing.assert_allclose(found[0], units, atol=1e-4)


def test_a_folder_of_pictures_is_found_by_their_suffixes(tmp_path, capsys):
    for name in ("Anna/smile.PNG", "Anna/rest.png", "Ben/rest.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pictured(tmp_path / name)
    clips.write(tmp_path / "Ben" / "film.mkv", clips.grey(3))
    arguments = stills(tmp_path / "cache", tmp_path, "--backend", "geometry", "--jobs", 1)
    assert main(arguments) == 0
    keys = [entry.key for entry in store.entries(tmp_path / "cache")]
    assert keys == ["videos/Anna/rest", "videos/Anna/smile", "videos/Ben/rest"]
    capsys.readouterr()
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 3


def wrong_rows(path):
    table = path.with_suffix(".csv")
    pd.concat([pd.read_csv(table)] * 2).to_csv(table, index=False)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            wrong_rows,
            "a.csv: landmarks that do not fit: it has 2 rows, not one: leave a single face's row",
        ),
        (lambda path: clips.write(path, clips.grey(3)), "a.mkv: a video, not a still image: give"),
        (lambda path: path.with_suffix(".csv").unlink(), "a.mkv: no face: it shows none"),
    ],
)
def test_a_still_that_cannot_be_extracted_is_told(tmp_path, capsys, spoil, told):
    path = tmp_path / "a.mkv"
    pictured(path)
    spoil(path)
    assert main(stills(tmp_path / "cache", path, "--backend", "geometry")) == 2
    assert told in capsys.readouterr().err


def test_without_still_a_picture_is_no_video(tmp_path, capsys):
    pictured(tmp_path / "a.png")
    arguments = ["extract", str(tmp_path / "a.png"), "--cache", str(tmp_path / "cache")]
    assert main([*arguments, "--backend", "geometry"]) == 2
    assert "a single picture is no video" in capsys.readouterr().err


@pytest.mark.real_data
def test_a_videos_first_frame_as_a_still_has_the_same_landmarks(tmp_path):
    if not VIDEOS.is_dir():
        pytest.skip("no clips at ../shared/videos")
    with Video(VIDEOS / "single_face.mp4") as video:
        pixels = next(iter(video)).pixels[0].numpy()
    clips.write_picture(tmp_path / "still.png", pixels)
    cache, kept = tmp_path / "cache", ("--backend", "geometry", "--keep", "landmarks")
    assert main(stills(cache, tmp_path / "still.png", *kept)) == 0
    film = ["extract", str(VIDEOS / "single_face.mp4"), "--cache", str(cache), *kept]
    assert main(film) == 0
    first, still = (
        store.read(store.path_of(cache, "videos", name, name), identifying=True)
        for name in ("single_face", "still")
    )
    np.testing.assert_allclose(
        still.identifying["landmarks"][0], first.identifying["landmarks"][0], atol=0.01
    )


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_cut_jpeg_is_not_taken_for_whole(tmp_path, share):
    path = clips.write(
        tmp_path / "a.jpg", clips.noise(1, 64, 96), codec="mjpeg", pixel_format="yuvj420p"
    )
    read_image(path)
    with pytest.raises(UserError, match=r"a\.jpg: a damaged picture|no image"):
        read_image(clips.cut(path, share))
