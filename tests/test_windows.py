import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from affect import store
from affect.config import DataConfig
from affect.data.preparation import SeriesCache, prepare
from affect.data.windows import Window, WindowDataset, collate, window_count
from tests import builders


def dataset(folder, frames, window_frames, hop_frames=None):
    cache = folder / "cache"
    for index, count in enumerate(frames):
        store.write(builders.recording(f"P{index}", frames=count), cache)
    entries = store.entries(cache)
    series = SeriesCache(prepare({"train": entries}, DataConfig()), 2**20)
    return WindowDataset(entries, series, window_frames, hop_frames), series


def starts_by_loop(frames, window, hop):
    """The plainest reading of the rule: go on until a window reaches the end."""
    starts = [0]
    while starts[-1] + window < frames:
        starts.append(starts[-1] + hop)
    return starts


@settings(deadline=None)
@given(frames=st.integers(1, 200), window=st.integers(1, 60), hop=st.integers(1, 60))
def test_windows_cover_a_recording_up_to_its_end(frames, window, hop):
    assert window_count(frames, window, hop) == len(starts_by_loop(frames, window, hop))


def test_each_window_is_the_right_slice(tmp_path):
    frames, window, hop = [70, 20, 61], 30, 20
    windows, series = dataset(tmp_path, frames, window, hop)
    expected = [
        (recording, start)
        for recording, count in enumerate(frames)
        for start in starts_by_loop(count, window, hop)
    ]
    assert [(w.recording, w.start) for w in windows] == expected
    for item in windows:
        whole = series[windows.entries[item.recording]]
        stop = item.start + window
        np.testing.assert_array_equal(item.features, whole.features[item.start : stop])
        np.testing.assert_array_equal(item.labels, whole.labels[item.start : stop])


def test_without_a_length_a_window_is_the_whole_recording(tmp_path):
    windows, _ = dataset(tmp_path, [70, 20], None)
    assert [len(item.features) for item in windows] == [70, 20]


def test_a_batch_is_padded_at_the_ends_and_masked():
    short = Window(torch.ones(2, 3), torch.ones(2, 1), recording=4, start=10)
    long = Window(torch.ones(5, 3), torch.ones(5, 1), recording=5, start=0)
    batch = collate([short, long])
    assert batch.features.shape == (2, 5, 3)
    assert batch.mask.tolist() == [[True, True, False, False, False], [True] * 5]
    assert batch.features[0, 2:].eq(0).all()
    assert batch.labels[0, 2:].isnan().all()
    assert batch.recording.tolist() == [4, 5]
    assert batch.start.tolist() == [10, 0]


def test_a_batch_moves_as_a_whole():
    batch = collate([Window(torch.ones(2, 3), torch.ones(2, 1), 0, 0)]).to("meta")
    assert {batch.features.device.type, batch.labels.device.type, batch.mask.device.type} == {
        "meta"
    }


def test_a_dataset_travels_to_workers_without_what_it_has_read(tmp_path):
    windows, _ = dataset(tmp_path, [5000], 30)
    fresh = len(pickle.dumps(windows))
    first = windows[0]
    assert len(pickle.dumps(windows)) == fresh
    travelled = pickle.loads(pickle.dumps(windows))
    torch.testing.assert_close(travelled[0].features, first.features)


def test_memory_is_bounded(tmp_path):
    windows, _ = dataset(tmp_path, [400] * 6, None)
    one = windows[0].features.nbytes
    small = SeriesCache(windows._series.preparation, 5 * one)
    for entry in windows.entries:
        small[entry]
    assert small._kept.currsize <= 5 * one
    assert 0 < len(small._kept) < len(windows.entries)


def test_too_large_an_index_ends_the_iteration(tmp_path):
    windows, _ = dataset(tmp_path, [40], 30)
    with pytest.raises(IndexError):
        windows[len(windows)]
