import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from affect import store
from affect.cli import main
from affect.data.timeline import Place
from affect.errors import UserError
from affect.extraction import command, geometry, pipeline
from affect.extraction.backends import choice
from affect.extraction.backends.choice import Options
from affect.extraction.faces.detector import Detections, FaceDetector
from affect.extraction.faces.landmark_csv import CsvLandmarks, csv_beside
from affect.extraction.faces.landmarks import LandmarkNet
from affect.extraction.faces.tracker import FaceTracker
from affect.extraction.openface import weights
from affect.extraction.openface.stage import Stage, VideoUnits
from affect.extraction.ticks import ticks_of
from affect.extraction.video import FrameBatch, Video
from tests import clips, openface_models
from tests.watching import written_by

VIDEOS = Path(__file__).parents[2] / "shared" / "videos"


# --- tracking: faces are squares of one grey each, whose value is the detector's score --------


class SquareDetector(FaceDetector):
    """Finds uniform squares; counts the frames that it looked at."""

    def __init__(self):
        nn.Module.__init__(self)
        self.register_buffer("mean", torch.zeros(3))
        self.looked = 0

    def forward(self, pixels, every_size=False):
        self.looked += len(pixels)
        found = []
        for index, frame in enumerate(pixels[..., 0]):
            for grey in frame.unique().tolist():
                if grey:
                    y, x = (frame == grey).nonzero(as_tuple=True)
                    box = torch.stack([x.min(), y.min(), x.max() + 1, y.max() + 1]).float()
                    found.append((index, grey / 255, box))
        found.sort(key=lambda item: (item[0], -item[1]))
        boxes = [box for _, _, box in found]
        return Detections(
            torch.stack(boxes) if boxes else torch.zeros(0, 4),
            torch.tensor([score for _, score, _ in found]),
            torch.tensor([index for index, _, _ in found], dtype=torch.int64),
        )


class CentreNet(LandmarkNet):
    """Places the eyes left and right of the region's centre, all else on it."""

    def __init__(self):
        nn.Module.__init__(self)

    def in_regions(self, pixels, regions, frames, correction=None):
        points = torch.full((1, 68, 2), 0.5)
        points[:, 36:42, 0], points[:, 42:48, 0] = 0.3, 0.7
        return regions.to_frame(points if correction is None else points + correction)

    def both_ways(self, pixels, regions, frames):
        """The brighter the square, the further the mirror image moves the points."""
        grey = pixels[frames].amax(dim=(1, 2, 3)).float()
        correction = (grey / 1000)[:, None, None].expand(-1, 68, 2)
        return self.in_regions(pixels, regions, frames, correction), correction


SIDE = 1.3 * 0.4 * 30
"""Of the region about a square's landmarks."""


def film(places, height=90, width=160):
    """Frames with a grey square of 30 (or the given size) pixels at each named place."""
    pixels = np.zeros((len(places), height, width, 3), np.uint8)
    for frame, squares in enumerate(places):
        for x, y, size, grey in squares:
            pixels[frame, y : y + size, x : x + size] = grey
    return pixels


def batches(pixels, size=16, decoded=None):
    decoded = np.ones(len(pixels), bool) if decoded is None else decoded
    for start in range(0, len(pixels), size):
        rows = slice(start, start + size)
        time_s = np.arange(len(pixels))[rows] / 25.0
        yield FrameBatch(torch.from_numpy(pixels[rows]), time_s, decoded[rows])


def tracked(pixels, faces="largest", decoded=None, size=16):
    """Success, confidence and landmarks of each face over all batches, and the tracker."""
    tracker = FaceTracker(SquareDetector(), CentreNet(), faces, segment_frames=16)
    found = {}
    for number, batch in enumerate(batches(pixels, size, decoded)):
        for face, seen in tracker.track(batch).items():
            found.setdefault(face, {})[number] = seen
    return found, tracker


def success_of(face, frames, size=16):
    success = np.zeros(frames, bool)
    for number, seen in face.items():
        success[number * size : number * size + len(seen.success)] = seen.success
    return success


def test_a_face_that_leaves_and_returns_is_seen_to_the_frame():
    there = np.ones(64, bool)
    there[[*range(19, 30), 37]] = False
    places = [[(20 + frame, 20, 30, 200)] if there[frame] else [] for frame in range(64)]
    found, tracker = tracked(film(places))
    assert list(found) == [0]
    success = success_of(found[0], 64)
    assert (success[:37] == there[:37]).all()
    assert success[38:].all()
    assert tracker._detector.looked < 40
    for seen in found[0].values():
        assert (seen.landmarks.isnan().all(dim=(1, 2)) == ~seen.success).all()
        assert (seen.confidence[seen.success] == 200 / 255).all()
        assert (seen.confidence[~seen.success] == 0).all()


def test_a_steady_movement_is_followed_between_looks():
    places = [[(20 + frame, 20, 30, 200)] for frame in range(16)]
    (face,) = tracked(film(places))[0].values()
    centres = face[0].landmarks[:, 8] - 0.2 * SIDE
    np.testing.assert_allclose(centres[:, 0], 35 + np.arange(16), atol=1e-4)
    np.testing.assert_allclose(centres[:, 1], 35, atol=1e-4)


def test_what_the_mirror_image_corrects_moves_evenly_between_looks():
    greys = range(100, 140)
    found, tracker = tracked(film([[(20, 20, 30, grey)] for grey in greys]))
    assert tracker._detector.looked < 10
    centres = torch.cat([seen.landmarks[:, 8] for seen in found[0].values()])
    expected = 35 + SIDE * torch.tensor(greys) / 1000
    torch.testing.assert_close(centres, expected[:, None].expand(-1, 2), atol=1e-4, rtol=0)


def test_a_face_that_jumps_between_two_looks_is_read_where_it_is():
    places = [[(20 if frame < 20 else 110, 20, 30, 100)] for frame in range(48)]
    found, _ = tracked(film(places))
    assert success_of(found[0], 48).all()
    centres = torch.cat([seen.landmarks[:, 8, 0] for seen in found[0].values()]) - 0.1 * SIDE
    np.testing.assert_allclose(centres, [place[0][0] + 15 for place in places], atol=1e-4)


@pytest.mark.parametrize("blank", [range(9, 14), range(16, 17), range(30, 32)])
def test_blank_frames_between_two_looks_show_no_face(blank):
    places = [[] if frame in blank else [(40, 20, 60, 200)] for frame in range(48)]
    found, tracker = tracked(film(places))
    np.testing.assert_array_equal(np.flatnonzero(~success_of(found[0], 48)), blank)
    assert tracker._detector.looked < 24


def test_a_face_that_another_replaces_is_followed_to_the_frame():
    places = [[(10 if frame < 20 else 110, 20, 30, 200)] for frame in range(48)]
    found, _ = tracked(film(places), faces="all")
    assert (success_of(found[0], 48) == (np.arange(48) < 20)).all()
    assert (success_of(found[1], 48) == (np.arange(48) >= 20)).all()


def test_a_frame_that_was_not_decoded_has_no_face():
    decoded = np.ones(32, bool)
    decoded[[5, 16]] = False
    pixels = film([[(40, 20, 30, 200)]] * 32)
    pixels[~decoded] = 0
    found, _ = tracked(pixels, decoded=decoded)
    assert (success_of(found[0], 32) == decoded).all()


def test_the_largest_face_stays_the_one_that_was_found_first():
    places = [[(10, 20, 30, 200), (100, 20, 20 if f < 20 else 50, 100)] for f in range(48)]
    found, _ = tracked(film(places))
    assert list(found) == [0]
    assert all((seen.landmarks[:, 8, 0] < 60).all() for seen in found[0].values())


def test_all_faces_are_followed_each_under_its_number():
    places = [[(10, 20, 30, 200)] + [(100, 20, 30, 100)] * (frame >= 20) for frame in range(48)]
    found, _ = tracked(film(places), faces="all")
    assert sorted(found) == [0, 1]
    assert success_of(found[0], 48).all()
    assert (success_of(found[1], 48) == (np.arange(48) >= 20)).all()


@pytest.mark.parametrize("size", [32, 64])
def test_batches_of_several_segments_change_nothing(size):
    places = [[(20 + f, 20, 30, 200)] * (f not in range(19, 30)) for f in range(70)]

    def landmarks(size):
        (face,) = tracked(film(places), size=size)[0].values()
        rows = torch.full((70, 68, 2), torch.nan)
        for number, seen in face.items():
            rows[number * size : number * size + len(seen.landmarks)] = seen.landmarks
        return rows

    torch.testing.assert_close(landmarks(size), landmarks(16), equal_nan=True)


def test_an_empty_film_has_no_face():
    assert tracked(film([[]] * 20))[0] == {}


# --- proxies ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.floats(-3, 3), st.floats(0.2, 5), st.floats(-500, 500), st.integers(0, 1000))
def test_proxies_know_no_place_size_or_roll(angle, scale, shift, seed):
    points = torch.from_numpy(openface_models.poses(3, seed, width=20, height=20)[0])
    turn = torch.tensor([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    moved = scale * points @ turn.T.double() + shift
    torch.testing.assert_close(geometry.proxies(moved), geometry.proxies(points))


def test_a_proxy_is_the_distance_that_its_name_says():
    points = torch.from_numpy(openface_models.mean_shape()[:2].T).clone()[None]
    eyes = float(points[0, 42:48].mean(0)[0] - points[0, 36:42].mean(0)[0])
    column = list(geometry.PROXIES).index
    before = geometry.proxies(points)[0]
    points[:, 65:68, 1] += 6  # the inner lower lip drops by 6 mm
    points[:, 54, 0] += 4  # a mouth corner goes out by 4 mm
    after = geometry.proxies(points)[0] - before
    assert float(after[column("AU25_proxy")]) == pytest.approx(6 / eyes)
    assert float(after[column("AU12_proxy")]) == pytest.approx(4 / eyes, rel=0.02)
    assert float(after[column("AU01_proxy")]) == pytest.approx(0, abs=1e-9)


# --- from files to recordings ----------------------------------------------------------------


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return openface_models.write_folder(tmp_path_factory.mktemp("openface"))


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    """A lossless clip of 150 frames, and OpenFace's CSV of it beside it."""
    folder = tmp_path_factory.mktemp("film") / "Anna Müller"
    folder.mkdir()
    landmarks, pictures = openface_models.poses(150)
    path = folder / "first day.mkv"
    clips.write(path, list(pictures))
    table = pd.DataFrame({"frame": range(1, 151), "face_id": 0, "confidence": 0.98, "success": 1})
    table.loc[40:44, ["success", "confidence"]] = [0, 0.1]
    flat = np.concatenate([landmarks[..., 0], landmarks[..., 1]], axis=1)
    names = [f"{axis}_{point}" for axis in "xy" for point in range(68)]
    table = pd.concat([table, pd.DataFrame(flat, columns=names)], axis=1)
    table.to_csv(path.with_suffix(".csv"), index=False)
    return path


def test_a_recording_is_that_of_the_stage(filmed, home, unverified, tmp_path):
    backend = choice.make(Options("openface", "cpu", home))
    place = Place("mine", "Anna Müller", "first day")
    (done,) = pipeline.extract({place: filmed}, tmp_path, backend)
    assert (done.error, done.keys, done.frames) == ("", ["mine/Anna Müller/first day"], 150)
    recording = store.read(store.path_of(tmp_path, *place))
    store.verify(store.path_of(tmp_path, *place))
    assert recording.rate_hz == 25
    assert recording.intensity_names[:2] == ("AU01_r", "AU02_r")
    success = recording.success
    assert (np.flatnonzero(~success) == range(40, 45)).all()
    assert np.isnan(recording.intensity[~success]).all()
    assert recording.presence[~success].max() == 0

    video = VideoUnits(Stage(weights.load(home)))
    landmarks, pictures = openface_models.poses(150)
    video.add(torch.from_numpy(pictures), torch.from_numpy(landmarks), torch.from_numpy(success))
    expected = video.finish()
    np.testing.assert_allclose(recording.intensity[success], expected.intensity[success], atol=2e-5)
    np.testing.assert_array_equal(recording.presence[success], expected.presence[success])
    provenance = recording.provenance
    assert (provenance.backend, provenance.weights_sha256) == (
        "openface",
        weights.load(home).sha256,
    )


def test_what_is_cached_is_skipped_until_it_changes(filmed, tmp_path):
    backend = choice.make(Options("geometry", "cpu"))
    video, place = tmp_path / "a.mkv", Place("mine", "a", "a")
    video.write_bytes(filmed.read_bytes())
    table = video.with_suffix(".csv")
    table.write_bytes(filmed.with_suffix(".csv").read_bytes())

    def extracted(**options):
        return next(pipeline.extract({place: video}, tmp_path / "cache", backend, **options))

    assert not extracted().skipped
    assert extracted().skipped
    assert not extracted(force=True).skipped
    table.write_text(table.read_text().replace("0.98", "0.97"))
    assert not extracted().skipped
    assert extracted().skipped


def test_another_backends_recording_is_replaced_only_by_force(filmed, home, unverified, tmp_path):
    place = Place("mine", "a", "first")
    openface = choice.make(Options("openface", "cpu", home))
    geometry_ = choice.make(Options("geometry", "cpu"))
    pipeline.extract_one(place, filmed, tmp_path, openface)
    before = store.path_of(tmp_path, *place).read_bytes()
    done = pipeline.extract_one(place, filmed, tmp_path, geometry_)
    assert done.cause == "in the cache from openface"
    assert "--force" in done.error
    assert store.path_of(tmp_path, *place).read_bytes() == before
    assert pipeline.extract_one(place, filmed, tmp_path, openface).skipped
    assert not pipeline.extract_one(place, filmed, tmp_path, geometry_, force=True).error
    assert store.read(store.path_of(tmp_path, *place)).provenance.backend == "geometry"


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_row_that_is_no_face_is_a_lost_frame(filmed, home, unverified, tmp_path, value):
    video = tmp_path / "a.mkv"
    video.write_bytes(filmed.read_bytes())
    table = pd.read_csv(filmed.with_suffix(".csv"))
    table.loc[60, [name for name in table if name[:2] in {"x_", "y_"}]] = value
    table.to_csv(video.with_suffix(".csv"), index=False)
    place = Place("mine", "a", "a")
    backend = choice.make(Options("openface", "cpu", home))
    assert not pipeline.extract_one(place, video, tmp_path / "cache", backend).error
    recording = store.read(store.path_of(tmp_path / "cache", *place))
    assert np.flatnonzero(~recording.success).tolist() == [*range(40, 45), 60]
    assert np.isfinite(recording.intensity[recording.success]).all()


def test_failures_by_cause_stand_below_their_number():
    outcomes = [
        pipeline.Extracted(Path("a"), error="a: no face: none", cause="no face"),
        pipeline.Extracted(Path("b"), keys=["k"], frames=10, faces=4, confidence=3.0),
    ]
    lines = command.rows(command.summary("geometry", outcomes))
    assert lines[0] == ("backend", "geometry")
    where = lines.index(("failed", "1"))
    assert lines[where + 1] == ("  no face", "1")
    assert ("mean confidence", "0.75") in lines
    assert ("mean confidence", "-") in command.rows(command.summary("geometry", outcomes[:1]))


def test_a_broken_video_stops_no_other(filmed, tmp_path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"nothing")
    backend = choice.make(Options("geometry", "cpu"))
    videos = {Place("c", "a", "1"): broken, Place("c", "b", "1"): filmed}
    first, second = pipeline.extract(videos, tmp_path / "cache", backend)
    assert "broken.mp4" in first.error
    assert second.keys == ["c/b/1"]


@given(st.lists(st.integers(), max_size=30), st.integers(1, 8))
def test_shards_take_each_video_once(videos, count):
    parts = [pipeline.shard(videos, index, count) for index in range(1, count + 1)]
    assert sorted(video for part in parts for video in part) == sorted(videos)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize("index", [0, 4])
def test_a_shard_beyond_the_count_is_refused(index):
    with pytest.raises(UserError, match=f"shard {index}/3"):
        pipeline.shard([1, 2], index, 3)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda table: table.iloc[:100], "has 100 rows, its video 150 frames"),
        (lambda table: table.drop(columns="y_7"), "has no column 'y_7'"),
        (lambda table: table.assign(face_id=[0, 1] * 75), "holds several faces"),
        (lambda table: table.iloc[::-1], "not in the order of their frames"),
    ],
)
def test_a_csv_that_does_not_fit_is_told(filmed, tmp_path, spoil, message):
    path = tmp_path / "table.csv"
    spoil(pd.read_csv(filmed.with_suffix(".csv"))).to_csv(path, index=False)
    with pytest.raises(UserError, match=message), Video(filmed) as video:
        source = CsvLandmarks(path, ticks_of(filmed))
        for batch in video:
            source.track(batch)


def test_rows_stand_where_their_frames_do(tmp_path):
    """OpenFace writes a row a frame; here the ninth one stays for five ticks."""
    times_ms = [40 * index + (160 if index >= 9 else 0) for index in range(20)]
    points = np.arange(20.0)[:, None, None].repeat(68, 1).repeat(2, 2)
    video = clips.write(tmp_path / "a.mkv", clips.grey(20), times_ms=times_ms)
    source = CsvLandmarks(clips.lay_landmarks(video, points).with_suffix(".csv"), ticks_of(video))
    with Video(video) as opened:
        found = torch.cat([source.track(batch)[0].landmarks[:, 0, 0] for batch in opened])
    assert found.tolist() == [*range(9), *[8] * 4, *range(9, 20)]


def test_a_csv_without_landmarks_is_passed_over(tmp_path):
    video = tmp_path / "clip.mp4"
    assert csv_beside(video) is None
    (tmp_path / "clip.csv").write_text("time,valence\n0,1\n")
    assert csv_beside(video) is None


def test_the_openface_backend_asks_for_its_folder(monkeypatch, tmp_path):
    monkeypatch.delenv("OPENFACE_HOME", raising=False)
    assert choice.make(Options()).name == "geometry"
    with pytest.raises(UserError, match="export OPENFACE_HOME"):
        choice.make(Options("openface"))
    with pytest.raises(UserError, match="unknown backend 'openfac': did you mean 'openface'"):
        choice.make(Options("openfac"))


def test_the_command_extracts_a_folder(filmed, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("OPENFACE_HOME", raising=False)
    cache = tmp_path / "cache"
    arguments = ["extract", str(filmed.parent.parent), "--cache", str(cache), "--json"]
    assert main(arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["recordings"], summary["frames"], summary["frames_with_a_face"]) == (
        1,
        150,
        145,
    )
    (entry,) = store.entries(cache)
    assert entry.key == "videos/Anna Müller/first day"
    assert main([*arguments, "--shard", "3/2"]) == 2
    assert main([*arguments, "--shard", "half"]) == 2
    assert "--shard takes I/N" in capsys.readouterr().err
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["skipped"] == 1


def test_nothing_but_recordings_is_written(filmed, tmp_path):
    cache = tmp_path / "cache"
    written, left = written_by(["extract", filmed, "--cache", cache], tmp_path)
    inside = {path for path in written if path.is_relative_to(cache)}
    assert any(path.suffix == ".tmp" for path in inside)  # the recording, before it is renamed
    assert written - inside <= {Path(os.devnull)}
    assert [path.suffix for path in cache.rglob("*") if path.is_file()] == [".h5"]
    assert not left


@pytest.mark.real_data
def test_real_clips_are_extracted(tmp_path, capsys, monkeypatch):
    if not VIDEOS.is_dir():
        pytest.skip("no clips at ../shared/videos")
    monkeypatch.delenv("OPENFACE_HOME", raising=False)
    names = ("single_face.mp4", "no_face.mp4")
    status = main(["extract", *(str(VIDEOS / n) for n in names), "--cache", str(tmp_path / "c")])
    told = capsys.readouterr().err
    assert status == 2
    assert "no_face.mp4: no face: none of its 95 frames shows one" in told
    assert "1 of 2 files failed" in told
    (entry,) = store.entries(tmp_path / "c")
    assert (entry.key, entry.frames, entry.faces) == ("videos/single_face/single_face", 72, 1.0)
