"""A video is in a cache once: what is there under other options is told, or replaced by force."""

from dataclasses import replace

import pytest

from affect import store
from affect.data.timeline import Place
from affect.extraction import cached, pipeline
from affect.extraction.backends.choice import Options, make
from affect.recording import Provenance
from tests import clips, openface_models
from tests.builders import recording
from tests.test_extraction import CentreNet, SquareDetector, film

PLACE = Place("c", "s", "two")
FRAMES = 12


def shown(path, faces):
    """A film of so many faces."""
    squares = [[(10 + 50 * n, 20, 30, 200 - 50 * n) for n in range(faces)]] * FRAMES
    return clips.write(path, list(film(squares)))


@pytest.fixture
def video(tmp_path):
    return shown(tmp_path / "two.mkv", 2)


@pytest.fixture
def extract(video, tmp_path):
    """Extracts the video with `--faces`; without its cause of failure there was none."""

    def extracted(faces, force=False, place=PLACE):
        backend = make(Options("geometry", "cpu", faces=faces))
        backend._detector, backend._network = SquareDetector(), CentreNet()
        return pipeline.extract_one(place, video, tmp_path / "cache", backend, force=force)

    return extracted


@pytest.fixture
def held(tmp_path):
    return lambda: store.names(tmp_path / "cache", "c", "s")


FACES = ["two-face0", "two-face1"]


@pytest.mark.parametrize(
    ("first", "there", "then", "wanted"),
    [("largest", ["two"], "all", FACES), ("all", FACES, "largest", ["two"])],
)
def test_other_faces_are_told_and_replaced_by_force(
    extract, held, video, first, there, then, wanted
):
    assert not extract(first).error
    assert held() == there
    told = extract(then)
    assert told.error == (
        f"{video}: in the cache from --faces {first}: give another --cache or --corpus, or "
        f"--force to replace {', '.join(there)}"
    )
    assert told.cause == f"in the cache from --faces {first}"
    assert held() == there
    assert extract(first).skipped
    assert not extract(then, force=True).error
    assert held() == wanted
    assert extract(then).skipped


def test_what_is_replaced_goes_once_the_new_is_there(extract, held, video, monkeypatch):
    extract("largest")
    remove, seen = store.remove, []
    monkeypatch.setattr(store, "remove", lambda path: (seen.append(held()), remove(path)))
    extract("all", force=True)
    assert seen == [["two", *FACES]]
    shown(video, 0)
    assert extract("largest", force=True).cause == "no face"
    assert held() == FACES


def test_what_lay_side_by_side_before_is_told(extract, held, tmp_path):
    extract("all")
    faces = [store.read(store.path_of(tmp_path / "cache", "c", "s", name)) for name in FACES]
    extract("largest", force=True)
    for face in faces:
        store.write(face, tmp_path / "cache")
    assert extract("largest").cause == "in the cache from --faces all"
    assert not extract("largest", force=True).error
    assert held() == ["two"]


def test_faces_that_a_new_version_of_the_video_does_not_show_go(extract, held, video):
    extract("all")
    shown(video, 1)
    assert extract("all").keys == ["c/s/two-face0"]
    assert held() == ["two-face0"]


def test_what_a_killed_run_left_is_completed(extract, held, tmp_path):
    extract("all")
    store.remove(store.path_of(tmp_path / "cache", "c", "s", "two-face0"))
    assert not extract("all").skipped
    assert held() == FACES


def test_one_face_of_a_csv_bears_the_videos_name(extract, held, video, tmp_path):
    extract("all")
    clips.lay_landmarks(video, openface_models.poses(FRAMES)[0])
    assert extract("all").cause == "in the cache from --faces all"
    assert not extract("all", force=True).error
    assert held() == ["two"]
    assert extract("largest").skipped
    path = store.path_of(tmp_path / "cache", *PLACE)
    store.write(replace(store.read(path), name="two-face0"), tmp_path / "cache")
    for there in (["two", "two-face0"], ["two-face0"]):  # as it was called once
        assert held() == there
        assert extract("all").keys == ["c/s/two"]
        assert held() == ["two"]
        path.rename(store.path_of(tmp_path / "cache", "c", "s", "two-face0"))


def test_another_video_that_is_called_like_a_face_is_left(extract, held, tmp_path):
    other = recording(
        "s", corpus="c", name="two-face7", provenance=Provenance("geometry", "1", "f")
    )
    path = store.write(other, tmp_path / "cache")
    before = path.read_bytes()
    for faces in ("largest", "all"):
        assert not extract(faces, force=faces == "all").error
    assert held() == [*FACES, "two-face7"]
    assert path.read_bytes() == before


def test_a_message_names_some_of_many(extract, video, tmp_path):
    shown(video, 3)
    extract("all")
    face = store.read(store.path_of(tmp_path / "cache", "c", "s", "two-face0"))
    for number in (3, 4):
        store.write(replace(face, name=f"two-face{number}"), tmp_path / "cache")
    assert extract("largest").error.endswith("two-face0, two-face1, two-face2 and 2 more")


def test_a_folder_is_listed_once_for_all_its_videos(tmp_path, monkeypatch):
    files = {}
    for number in range(5):
        for subject in "ab":
            path = clips.face(tmp_path / f"{subject}{number}.mkv", clips.grey(2))
            files[Place("c", subject, path.stem)] = path
    names, listed = store.names, []
    monkeypatch.setattr(store, "names", lambda *place: (listed.append(place), names(*place))[1])
    backend = make(Options("geometry", "cpu"))
    for skipped in (False, True):
        listed.clear()
        done = list(pipeline.extract(files, tmp_path / "cache", backend))
        assert [outcome.skipped for outcome in done] == [skipped] * 10
        assert len(listed) == 2
    assert cached.Cached(tmp_path / "none").of(PLACE, Provenance("b", "1", "0")) == []
