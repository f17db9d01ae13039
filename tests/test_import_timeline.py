from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import affect.data.timeline as tl
from affect.errors import UserError
from affect.recording import Provenance, check

HERE = Path("somewhere.csv")
PLACE = tl.Place("corpus", "subject", "name")
PROVENANCE = Provenance("test", "0", "")


def track(time_s, **fields):
    time_s = np.asarray(time_s, float)
    intensity = np.arange(2.0 * len(time_s)).reshape(-1, 2)
    given = {"intensity": intensity, "intensity_names": ("a", "b"), **fields}
    return tl.Track(source=HERE, time_s=time_s, **given)


def labels(time_s, values):
    return tl.Annotation(HERE, np.asarray(time_s, float), np.asarray(values, float))


def test_equal_times_keep_the_files_first_row():
    assert tl.in_order(np.array([0.2, 0.0, 0.2, 0.1, 0.0]), HERE).tolist() == [1, 3, 0]


def test_a_clock_may_stammer_but_not_begin_again():
    once = np.arange(20) / 25
    stammered = np.concatenate([once, once[[3, 4, 5, 9, 11]]])
    assert tl.in_order(stammered, HERE).tolist() == list(range(20))
    with pytest.raises(UserError, match=r"times repeat from 0\.12 s on: .* the schema's key rec"):
        tl.in_order(np.concatenate([once, once[3:7]]), HERE)


def test_a_second_session_of_labels_is_refused():
    given = labels([0, 1, 2, 3, 4, 5] * 2, range(12))
    with pytest.raises(UserError, match="times repeat from 0 s on"):
        tl.assemble(PLACE, track(range(6)), {"v": given}, PROVENANCE)


@pytest.mark.parametrize("fps", [23.976, 24, 25, 29.97, 30, 50, 59.94])
def test_rate_survives_times_rounded_to_milliseconds(fps):
    time_s = np.round(np.arange(3000) / fps, 3)
    assert tl.rate_of(time_s) == pytest.approx(fps, rel=1e-4)


def test_rate_ignores_gaps():
    time_s = np.concatenate([np.arange(100), np.arange(500, 600)]) * 0.04
    assert tl.rate_of(time_s) == 25


@pytest.mark.parametrize(
    ("time_s", "rate_hz"), [([0, 1, 100], 1), ([0, 0.04, 4], 25), ([0, 99, 100], 1)]
)
def test_rate_of_two_unlike_steps_is_that_of_the_shorter(time_s, rate_hz):
    assert tl.rate_of(np.array(time_s, float)) == rate_hz


def test_labels_at_irregular_times_reach_the_frames_beside_them():
    given = {"v": labels([0, 1, 100], [1, 2, 3])}
    recording = tl.assemble(PLACE, track(range(300)), given, PROVENANCE)
    found = recording.annotations["v"]
    assert np.flatnonzero(np.isfinite(found)).tolist() == [0, 1, 2, 99, 100, 101]
    assert found[[0, 1, 100]].tolist() == [1, 2, 3]


def test_features_at_irregular_times_are_filled_with_frames_without_a_face():
    recording = tl.assemble(PLACE, track([0, 0.04, 4]), {}, PROVENANCE)
    check(recording)
    assert recording.frames == 101
    assert np.flatnonzero(recording.success).tolist() == [0, 1, 100]


@pytest.mark.parametrize(
    ("labelled", "frames"),
    [
        ((0, 5), (0, 60)),
        ((30, 35), (0, 60)),
        ((0, 60), (0, 5)),
        ((0, 60), (55, 60)),
        ((-2, 3), (0, 60)),
    ],
)
def test_labels_of_a_part_and_of_more_than_the_features_are_taken(labelled, frames):
    label_s, clock_s = np.arange(*labelled, 0.5), np.arange(*frames, 0.25)
    given = {"v": labels(label_s, label_s)}
    found = tl.assemble(PLACE, track(clock_s), given, PROVENANCE).annotations["v"]
    inside = (clock_s >= label_s[0]) & (clock_s <= label_s[-1])
    assert inside.any()
    np.testing.assert_allclose(found[inside], clock_s[inside], atol=1e-6)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=40), st.integers(1, 200))
@settings(deadline=None)
def test_interpolation_equals_numpys_within_the_span(values, frames):
    time_s = np.arange(len(values)) * 0.04
    clock_s = np.linspace(0, time_s[-1], frames)
    found = tl.resample(np.array(values), time_s, clock_s, 0.04)
    np.testing.assert_allclose(found, np.interp(clock_s, time_s, values), atol=3e-6)


@given(st.lists(st.one_of(st.floats(-1, 1), st.just(np.nan)), min_size=1, max_size=40))
@settings(deadline=None)
def test_labels_on_the_clock_are_copied_even_beside_gaps_and_rounding(values):
    time_s = np.arange(len(values)) * 0.04
    found = tl.resample(np.array(values), time_s, np.round(time_s, 9) + 1e-10, 0.04)
    np.testing.assert_array_equal(found, values)


def test_a_missing_neighbour_makes_a_frame_missing():
    found = tl.resample(
        np.array([1.0, 2, np.nan, 4, 5]), np.arange(5.0), np.array([0.5, 1, 1.5, 2.5, 3, 3.5]), 1.0
    )
    np.testing.assert_array_equal(found, [1.5, 2, np.nan, np.nan, 4, 4.5])


def test_edges_hold_for_one_period_and_no_longer():
    clock_s = np.array([-1.01, -1, -0.5, 0, 2, 2.5, 3, 3.01])
    found = tl.resample(np.array([[1.0, 2, 3], [4, 5, 6]]), np.arange(3.0), clock_s, 1.0)
    nan = np.nan
    np.testing.assert_array_equal(
        found, [[nan, 1, 1, 1, 3, 3, 3, nan], [nan, 4, 4, 4, 6, 6, 6, nan]]
    )


def test_removed_label_rows_leave_a_gap_and_are_not_bridged():
    time_s = np.array([0.0, 1, 2, 7, 8])
    found = tl.resample(np.arange(5.0), time_s, np.arange(9.0), 1.0)
    np.testing.assert_array_equal(np.isnan(found), [0, 0, 0, 0, 1, 1, 0, 0, 0])


@pytest.mark.parametrize(("frames", "rows"), [(7500, 7501), (7501, 7500), (7500, 7500)])
def test_one_row_more_or_less_leaves_no_frame_without_a_label(frames, rows):
    values = np.sin(np.arange(rows) / 50)
    annotations = {"valence": labels(np.arange(rows) * 0.04, values)}
    found = tl.assemble(PLACE, track(np.arange(frames) * 0.04), annotations, PROVENANCE)
    shared = min(frames, rows)
    np.testing.assert_allclose(found.annotations["valence"][:shared], values[:shared], rtol=1e-6)
    assert np.isfinite(found.annotations["valence"]).all()


@given(st.permutations(range(12)))
@settings(deadline=None)
def test_the_order_of_rows_does_not_matter(order):
    order = np.array(order)
    time_s, values = np.arange(12) * 0.04, np.arange(12.0) ** 2
    rows = {
        "intensity": np.arange(24.0).reshape(-1, 2),
        "success": np.arange(12) % 3 > 0,
        "confidence": np.arange(12) / 12,
        "presence": np.arange(12, dtype=np.uint8).reshape(-1, 1) % 2,
    }
    straight_track = track(time_s, **rows, presence_names=("c",))
    straight = tl.assemble(PLACE, straight_track, {"v": labels(time_s, values)}, PROVENANCE)
    mixed_rows = {name: values[order] for name, values in rows.items()}
    mixed_track = track(time_s[order], **mixed_rows, presence_names=("c",))
    mixed_labels = labels(time_s[order[::-1]], values[order[::-1]])
    mixed = tl.assemble(PLACE, mixed_track, {"v": mixed_labels}, PROVENANCE)
    for name in ("time_s", *rows):
        np.testing.assert_array_equal(getattr(mixed, name), getattr(straight, name))
    np.testing.assert_array_equal(straight.success, rows["success"])
    np.testing.assert_array_equal(mixed.annotations["v"], straight.annotations["v"])


def test_lost_frames_carry_nothing():
    intensity = np.array([[1.0, 2], [3, 4], [np.nan, np.nan], [7, np.nan]])
    recording = tl.assemble(
        PLACE,
        track(
            range(4),
            intensity=intensity,
            success=np.array([True, False, True, True]),
            presence=np.ones((4, 1), np.uint8),
            presence_names=("c",),
        ),
        {},
        PROVENANCE,
    )
    check(recording)
    assert recording.success.tolist() == [True, False, False, True]
    assert np.isnan(recording.intensity[1:3]).all()
    np.testing.assert_array_equal(recording.intensity[[0, 3]], [[1, 2], [7, np.nan]])
    assert recording.presence[:, 0].tolist() == [1, 0, 0, 1]
    assert recording.confidence.tolist() == [1, 0, 0, 1]


@pytest.mark.parametrize(
    ("given", "annotations", "message"),
    [
        (track(range(3), success=np.zeros(3, bool)), {}, "no frame with a face"),
        (track(range(3), intensity=np.full((3, 2), np.nan)), {}, "no frame with a face"),
        (track([5]), {}, "two frames"),
        (track([5, 5]), {}, "two frames"),
        (track(range(3)), {"v": labels([100, 101], [0, 1])}, "v labels from 100 to 101 s do"),
        (track(range(50, 60)), {"v": labels([1, 2], [0, 1])}, "not fit the features' time, 50 to"),
        (track(range(30)), {"v": labels(np.arange(30) * 1e3, range(30))}, "clock, in seconds"),
        (track(range(30)), {"v": labels(np.arange(30) * 1e9, range(30))}, "clock, in seconds"),
        (track(range(30)), {"v": labels(np.arange(20, 50), range(30))}, "do not fit"),
        (
            track(range(10)),
            {"v": labels(np.arange(11) - 0.5, [np.nan, 1] * 5 + [np.nan])},
            "no frame lies near a label of v",
        ),
        (track(np.arange(2000) * 40), {}, r"0\.025 frames a second: give times in seconds"),
        (track(np.arange(2000) * 1e9), {}, "give times in seconds"),
    ],
)
def test_what_cannot_be_assembled_names_the_file(given, annotations, message):
    with pytest.raises(UserError, match=message) as error:
        tl.assemble(PLACE, given, annotations, PROVENANCE)
    assert str(HERE) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_given_rate_allows_a_single_frame():
    found = tl.assemble(PLACE, track([0]), {"v": labels([0], [0.5])}, PROVENANCE, rate_hz=1.0)
    assert (found.rate_hz, found.annotations["v"].tolist()) == (1.0, [0.5])


def test_frames_that_a_file_leaves_out_stand_without_a_face():
    rows, clock = tl.without_gaps(np.array([0.0, 0.2, 0.4, 1.2, 1.4]), 5.0)
    assert rows.tolist() == [0, 1, 2, 2, 2, 2, 3, 4]
    np.testing.assert_allclose(clock, np.arange(8) / 5)
    track = tl.Track(
        source=Path("x.csv"),
        time_s=np.array([0.0, 0.2, 0.4, 1.2, 1.4]),
        intensity=np.arange(5.0)[:, None],
        intensity_names=("AU01_r",),
    )
    place = tl.Place("c", "s", "r")
    recording = tl.assemble(place, track, {}, Provenance("b", "1", "x"), rate_hz=5.0)
    check(recording)
    nan = np.nan
    np.testing.assert_array_equal(recording.intensity[:, 0], [0, 1, 2, nan, nan, nan, 3, 4])
    assert recording.success.tolist() == [True, True, True, False, False, False, True, True]
    assert recording.confidence.tolist() == [1, 1, 1, 0, 0, 0, 1, 1]


def test_a_clock_without_gaps_stays_as_it_is():
    time_s = np.sort(np.arange(50) / 25 + np.random.default_rng(0).uniform(-0.01, 0.01, 50))
    rows, clock = tl.without_gaps(time_s, 25.0)
    assert rows.tolist() == list(range(50))
    np.testing.assert_array_equal(clock, time_s)


@pytest.mark.parametrize(("step_s", "frames"), [(1, 100_000), (10, 10_000), (60, 720), (3600, 8)])
def test_slow_recordings_are_no_mistake(step_s, frames):
    found = tl.assemble(PLACE, track(np.arange(frames) * step_s), {}, PROVENANCE)
    assert found.rate_hz == pytest.approx(1 / step_s, abs=1e-6)
