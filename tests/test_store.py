import dataclasses
import errno
import json
import multiprocessing
import os

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from affect import files, store
from affect.data import contents
from affect.errors import RecordingError, UserError
from affect.recording import IDENTIFYING, Kind, Provenance, check
from tests.builders import NAMES, recording


def full_recording():
    frames = 40
    rng = np.random.default_rng(0)
    success = rng.random(frames) > 0.2
    intensity = rng.random((frames, len(NAMES))).astype(np.float32)
    intensity[~success] = np.nan
    return recording(
        subject="ä b/c",
        frames=frames,
        intensity=intensity,
        success=success,
        presence=(rng.random((frames, 2)) > 0.5).astype(np.uint8),
        presence_names=("AU01_c", "AU45_c"),
        annotations={
            "valence": rng.random((2, frames)).astype(np.float32),
            "arousal": rng.random(frames).astype(np.float32),
        },
        raters=("FM1", "FF1"),
        truth={"delay_s": np.array([2.0, 4.0])},
        provenance=Provenance("openface", "2.2", "ab", "cd", {"mode": "video", "hop": 3}),
    )


def assert_same(one, other):
    for field in dataclasses.fields(one):
        left, right = getattr(one, field.name), getattr(other, field.name)
        if isinstance(left, dict):
            assert left.keys() == right.keys()
            for key in left:
                np.testing.assert_array_equal(left[key], right[key])
        elif isinstance(left, np.ndarray):
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        else:
            assert left == right, field.name


def test_a_recording_comes_back_as_it_was_written(tmp_path):
    written = full_recording()
    path = store.write(written, tmp_path)
    assert path == tmp_path / "toy" / "ä b%2Fc" / "1.h5"
    assert_same(store.read(path), written)
    store.verify(path)


def test_the_format_is_the_documented_one_for_any_hdf5_reader(tmp_path):
    with h5py.File(store.write(full_recording(), tmp_path)) as file:
        assert file["au/intensity"].dtype == np.float32
        assert list(file["au/intensity"].attrs["names"]) == list(NAMES)
        assert list(file["au/presence"].attrs["names"]) == ["AU01_c", "AU45_c"]
        assert file["annotation/valence"].shape == (2, 40)
        assert file["success"].dtype == bool
        assert file.attrs["schema_version"] == 1
        assert file.attrs["corpus"] == "toy"
        assert json.loads(file.attrs["parameters"]) == {"mode": "video", "hop": 3}
        assert len(file.attrs["checksum"]) == 64


@st.composite
def identifying(draw, frames):
    """Some of what identifies people, of some shape."""
    shape = st.lists(st.integers(1, 4), min_size=1, max_size=2).map(lambda sizes: (frames, *sizes))
    numbers = st.floats(width=32, allow_infinity=False)
    names = draw(st.sets(st.sampled_from(IDENTIFYING)))
    return {name: draw(arrays.arrays(np.float32, shape, elements=numbers)) for name in names}


@settings(deadline=None, max_examples=25)
@given(kept=identifying(frames=40))
def test_what_identifies_people_comes_back_where_it_is_asked_for(tmp_path_factory, kept):
    cache = tmp_path_factory.mktemp("cache")
    plain = full_recording()
    written = dataclasses.replace(plain, identifying=kept)
    path = store.write(written, cache)
    store.verify(path)
    assert_same(store.read(path, identifying=True), written)
    assert_same(store.read(path), plain)
    (entry,) = store.entries(cache)
    assert entry.identifying == tuple(sorted(kept))
    with h5py.File(path) as file:
        assert set(file.get("identifying", ())) == set(kept)


def test_without_identifying_data_a_file_is_what_it_was_before_there_were_any(tmp_path):
    path = store.write(recording(), tmp_path)
    with h5py.File(path) as file:
        assert "identifying" not in file
    assert b"identifying" not in path.read_bytes()[:512]
    store.verify(path)


names = st.text(min_size=1, max_size=30).filter(str.isprintable)


@settings(deadline=None, max_examples=25)
@given(subject=names, name=names)
def test_any_name_becomes_one_file_below_its_corpus(tmp_path_factory, subject, name):
    cache = tmp_path_factory.mktemp("cache")
    path = store.write(recording(subject=subject, name=name, frames=3), cache)
    assert path.parent.parent == cache / "toy"
    (entry,) = store.entries(cache)
    assert (entry.subject, entry.name) == (subject, name)


def test_two_names_never_share_a_file(tmp_path):
    hostile = ["a/b", "a%2Fb", "a:b", "..", ".", ".hidden", "%2E.", "a\\b", "con", "a b"]
    paths = {store.path_of(tmp_path, "c", name, name) for name in hostile}
    assert len(paths) == len(hostile)
    assert all(len(path.relative_to(tmp_path).parts) == 3 for path in paths)


def test_entries_say_what_the_recordings_hold(tmp_path):
    store.write(full_recording(), tmp_path)
    (entry,) = store.entries(tmp_path)
    assert entry.key == "toy/ä b/c/1"
    assert (entry.frames, entry.rate_hz) == (40, 5.0)
    assert entry.faces == pytest.approx(full_recording().success.mean(), abs=1e-6)
    assert entry.identity == full_recording().provenance.identity


def test_identity_follows_source_backend_weights_and_parameters_alone():
    base = Provenance("b", "1", "s", "w", {"a": 1, "z": 2})
    assert base.identity == Provenance("b", "1", "s", "w", {"z": 2, "a": 1}).identity
    others = [
        Provenance("c", "1", "s", "w", {"a": 1, "z": 2}),
        Provenance("b", "2", "s", "w", {"a": 1, "z": 2}),
        Provenance("b", "1", "t", "w", {"a": 1, "z": 2}),
        Provenance("b", "1", "s", "x", {"a": 1, "z": 2}),
        Provenance("b", "1", "s", "w", {"a": 1, "z": 3}),
    ]
    assert len({base.identity, *(other.identity for other in others)}) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": ""}, "its subject '' is empty or not printable"),
        ({"name": "a\n"}, "its name .* is empty or not printable"),
        ({"rate_hz": 0.0}, "rate_hz is 0.0, not above 0"),
        ({"rate_hz": float("nan")}, "rate_hz is nan, not above 0"),
        ({"time_s": np.zeros(60)}, "time_s does not increase strictly"),
        ({"time_s": np.r_[0:30, 31:61] / 5.0}, "frames are missing after 5.8 s"),
        ({"intensity_names": ("AU01_r", "AU01_r", "AU12_r")}, "two action units share a name"),
        ({"intensity": np.full((60, 3), np.inf, np.float32)}, "intensities are infinite"),
        ({"identifying": {"landmarks": np.zeros((59, 68, 2), np.float32)}}, "'landmarks' is"),
        ({"identifying": {"descriptors": np.full((60, 9), np.inf, np.float32)}}, "has infinite"),
        ({"annotations": {"valence": np.zeros((2, 60), np.float32)}}, "annotation 'valence' is"),
        ({"annotations": {"valence": np.zeros(59, np.float32)}}, "annotation 'valence' is"),
    ],
)
def test_a_broken_recording_is_refused_and_nothing_is_written(tmp_path, changes, message):
    broken = recording(**changes)
    with pytest.raises(RecordingError, match=message):
        check(broken)
    with pytest.raises(RecordingError, match="recording toy/"):
        store.write(broken, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_one_flipped_value_is_found(tmp_path):
    path = store.write(recording(), tmp_path)
    with h5py.File(path, "r+") as file:
        file["annotation/valence"][7] += 0.25
    with pytest.raises(RecordingError, match="does not match its checksum"):
        store.verify(path)


def test_one_flipped_landmark_is_found(tmp_path):
    landmarks = np.random.default_rng(0).random((60, 68, 2)).astype(np.float32)
    path = store.write(recording(identifying={"landmarks": landmarks}), tmp_path)
    with h5py.File(path, "r+") as file:
        landmarks[7, 3, 1] += 0.25
        file["identifying/landmarks"][:] = landmarks
    with pytest.raises(RecordingError, match="does not match its checksum"):
        store.verify(path)


def test_a_file_in_another_place_is_found(tmp_path):
    path = store.write(recording("P1"), tmp_path)
    moved = path.parent.parent / "P99"
    path.parent.rename(moved)
    with pytest.raises(RecordingError, match="it holds toy/P1/1; move it back"):
        store.verify(moved / path.name)


def test_a_header_that_belongs_to_another_recording_is_found(tmp_path):
    path = store.write(recording(), tmp_path)
    content = path.read_bytes()
    assert b'"rate_hz": 5.0' in content[:512]
    path.write_bytes(content.replace(b'"rate_hz": 5.0', b'"rate_hz": 6.0', 1))
    with pytest.raises(RecordingError, match="header does not match"):
        store.verify(path)


def test_a_kind_is_told_without_reading_a_column(tmp_path):
    written = full_recording()
    path = store.write(written, tmp_path)
    kind = store.kind_of(path)
    assert kind == written.kind
    assert kind == Kind("openface", NAMES, ("AU01_c", "AU45_c"), ("arousal", "valence"))
    assert store.entry(path).kind == kind.digest


@pytest.mark.parametrize("field", [item.name for item in dataclasses.fields(Kind)])
def test_other_kinds_have_other_marks(field):
    kind = Kind("a", ("b",), ("c",), ("d",))
    other = "x" if field == "backend" else ("x",)
    assert dataclasses.replace(kind, **{field: other}).digest != kind.digest
    assert len(kind.digest) == 16


def test_a_file_from_before_headers_told_the_kind_is_whole(tmp_path):
    path = _before_kinds(store.write(full_recording(), tmp_path))
    assert store.entry(path).kind == ""
    store.verify(path)
    assert contents.by_kind(store.entries(tmp_path)) == {
        full_recording().kind: store.entries(tmp_path)
    }


def _before_kinds(path):
    """A file whose header does not tell its kind."""
    content = path.read_bytes()
    header = json.loads(content[:512].rstrip(b"\0"))
    del header["kind"]
    path.write_bytes(json.dumps(header).encode().ljust(512, b"\0") + content[512:])
    return path


def test_the_longest_header_fits_its_block():
    identifying = {name: np.zeros((60, 1), np.float32) for name in IDENTIFYING}
    held = recording(identifying=identifying, rate_hz=30000 / 1001)
    assert len(json.dumps(store._summary(held, 10**15))) < 512


def _truncated(path):
    path.write_bytes(path.read_bytes()[:2000])


def _flipped(path):
    path.write_bytes(path.read_bytes().replace(b'"faces"', b'"fbces"', 1))


def _foreign(path):
    path.unlink()
    with h5py.File(path, "w") as file:
        file["x"] = 1


def _older(path):
    path.write_bytes(path.read_bytes().replace(b'"affect": 1', b'"affect": 0', 1))


def _empty(path):
    path.write_bytes(b"")


def _text(path):
    path.write_text("not HDF5\n")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncated, "is truncated or damaged: remove it and import it again"),
        (_flipped, "is truncated or damaged"),
        (_foreign, "is not a recording of affect"),
        (_older, "has schema version 0, not 1: remove it and import"),
        (_empty, "is not a recording of affect"),
        (_text, "is not a recording of affect"),
    ],
)
def test_a_damaged_file_is_told_by_its_path(tmp_path, damage, message):
    path = store.write(recording(), tmp_path)
    damage(path)
    with pytest.raises(RecordingError, match=message) as caught:
        store.verify(path)
    assert str(path) in str(caught.value)
    assert store.find(tmp_path, "toy", "P1", "1") is None or damage is _truncated


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = store.write(recording(), tmp_path)
    before = path.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        store.write(recording(seed=1), tmp_path)
    assert path.read_bytes() == before
    assert [item.name for item in path.parent.iterdir()] == ["1.h5"]


def test_a_folder_that_is_a_file_is_told(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*cache"):
        store.write(recording(), tmp_path / "cache")


def _write_many(arguments):
    cache, worker = arguments
    for index in range(10):
        store.write(recording(f"P{index}", name=str(worker)), cache)


def test_many_processes_write_different_recordings_at_once(tmp_path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        pool.map(_write_many, [(tmp_path, worker) for worker in range(3)])
    paths = store.recording_paths(tmp_path)
    assert len(paths) == 30
    for path in paths:
        store.verify(path)


def test_listing_opens_no_hdf5(tmp_path, monkeypatch):
    store.write(recording(), tmp_path)
    monkeypatch.setattr(store.h5py, "File", None)
    assert [entry.key for entry in store.entries(tmp_path)] == ["toy/P1/1"]


def test_a_missing_cache_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match="make one with `affect extract`"):
        store.entries(tmp_path / "none")


def test_a_subjects_recordings_are_named_without_reading_them(tmp_path):
    for name in ("b/1", "a"):
        path = store.write(recording(name=name), tmp_path)
    path.write_bytes(b"nothing")
    (path.parent / ".b.h5").touch()
    (path.parent / "notes.txt").touch()
    assert store.names(tmp_path, "toy", "P1") == ["a", "b/1"]
    assert store.names(tmp_path, "toy", "P2") == []


def test_provenance_is_read_alone(tmp_path):
    written = full_recording()
    assert store.provenance(store.write(written, tmp_path)) == written.provenance


def test_what_cannot_be_removed_is_told(tmp_path):
    path = store.write(recording(), tmp_path)
    store.remove(path)
    store.remove(path)
    assert not path.exists()
    with pytest.raises(UserError, match=r"cannot remove .*P1"):
        store.remove(path.parent)
