import numpy as np
import pytest

from affect import store
from affect.errors import RecordingError
from affect.prediction import Prediction


def prediction(subject="P1", frames=5):
    rng = np.random.default_rng(frames)
    return Prediction(
        corpus="toy",
        subject=subject,
        name="1",
        split="test",
        fold=3,
        time_s=np.arange(frames) / 25,
        dimensions=("valence", "arousal"),
        prediction=rng.random((frames, 2)).astype(np.float32),
        reference=np.full((frames, 2), np.nan, np.float32),
    )


def test_predictions_come_back_in_order(tmp_path):
    written = [prediction(f"P{index}", frames=index + 1) for index in range(12)]
    store.write_predictions(tmp_path / "predictions.h5", written)
    read = store.read_predictions(tmp_path / "predictions.h5")
    assert [item.key for item in read] == [item.key for item in written]
    for one, other in zip(read, written, strict=True):
        assert (one.split, one.fold, one.dimensions) == ("test", 3, ("valence", "arousal"))
        np.testing.assert_array_equal(one.prediction, other.prediction)
        np.testing.assert_array_equal(one.reference, other.reference)
        np.testing.assert_array_equal(one.time_s, other.time_s)


def test_a_missing_or_foreign_file_is_told(tmp_path):
    with pytest.raises(RecordingError, match="no predictions at"):
        store.read_predictions(tmp_path / "predictions.h5")
    (tmp_path / "predictions.h5").write_text("x")
    with pytest.raises(RecordingError, match="truncated or foreign"):
        store.read_predictions(tmp_path / "predictions.h5")
