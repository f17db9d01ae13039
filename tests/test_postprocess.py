import json

import numpy as np
import pytest

from affect.training import postprocess
from affect.training.postprocess import Postprocessing, Trace

RATE_HZ = 25.0


def ccc(x, y):
    """Lin 1989, over N, as plain NumPy."""
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return 2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def recordings(count=3, frames=1500, noise=0.0, bias=0.0, scale=1.0):
    """References, and predictions that are noisy, biased and too narrow versions of them."""
    rng = np.random.default_rng(0)
    time_s = np.arange(frames) / RATE_HZ
    references = [np.sin(time_s / 4 + phase)[:, None] for phase in range(count)]
    predictions = [
        (scale * r + bias + noise * rng.normal(size=r.shape)).astype(np.float32) for r in references
    ]
    return predictions, [r.astype(np.float32) for r in references]


def fitted(predictions, references, steps):
    (trace,) = postprocess.fit(predictions, references, steps, RATE_HZ).traces
    return trace


def test_bias_and_scale_undo_what_was_done():
    predictions, references = recordings(bias=0.4, scale=0.5)
    processing = postprocess.fit(predictions, references, ["bias", "scale"], RATE_HZ)
    for prediction, reference in zip(predictions, references, strict=True):
        np.testing.assert_allclose(processing(prediction), reference, atol=2e-3)


def test_the_scale_is_that_of_the_reference_about_the_mean():
    predictions, references = recordings(bias=0.4, scale=0.5, noise=0.1)
    trace = fitted(predictions, references, ["bias", "scale"])
    x, y = np.concatenate(predictions), np.concatenate(references)
    assert trace.bias == pytest.approx(y.mean() - x.mean(), abs=1e-6)
    assert trace.scale == pytest.approx(y.std() / x.std(), rel=1e-5)
    assert trace.centre == pytest.approx(y.mean(), abs=1e-6)


def test_a_step_that_does_not_help_is_left_out():
    predictions, references = recordings()
    assert fitted(predictions, references, ["median", "bias", "scale"]) == Trace()


def test_the_median_filter_is_chosen_by_ccc():
    predictions, references = recordings(noise=0.5)
    trace = fitted(predictions, references, ["median"])
    scores = {}
    for frames in {1, *(2 * int(RATE_HZ * s / 2) + 1 for s in postprocess.MEDIAN_CANDIDATES_S)}:
        smooth = [_median_by_loop(p[:, 0], frames) for p in predictions]
        scores[frames] = ccc(np.concatenate(smooth), np.concatenate(references)[:, 0])
    assert trace.median_frames == max(scores, key=scores.get)
    assert trace.median_frames > 1


def _median_by_loop(values, frames):
    half = frames // 2
    padded = np.pad(values, half, mode="edge")
    return np.array([np.median(padded[i : i + frames]) for i in range(len(values))])


def test_the_median_never_crosses_recordings():
    predictions, references = recordings(count=2)
    processing = Postprocessing((Trace(median_frames=101),))
    alone = [processing(p) for p in predictions]
    assert not np.allclose(np.concatenate(alone), processing(np.concatenate(predictions)))
    assert [len(p) for p in alone] == [len(r) for r in references]


def test_post_processing_never_lowers_the_ccc_it_was_fitted_on():
    predictions, references = recordings(noise=0.3, bias=-0.2, scale=0.3)
    processing = postprocess.fit(predictions, references, ["median", "bias", "scale"], RATE_HZ)
    before = ccc(np.concatenate(predictions), np.concatenate(references))
    after = ccc(np.concatenate([processing(p) for p in predictions]), np.concatenate(references))
    assert after > before + 0.1


def test_cross_fitting_never_sees_a_subjects_own_labels():
    predictions, references = recordings(count=4, bias=0.4, scale=0.5)
    subjects = ["a", "a", "b", "c"]
    steps = ["median", "bias", "scale"]
    fitted = postprocess.cross_fit(predictions, references, subjects, steps, RATE_HZ)
    assert fitted[0] == fitted[1]
    assert fitted[2] == postprocess.fit(
        [predictions[i] for i in (0, 1, 3)], [references[i] for i in (0, 1, 3)], steps, RATE_HZ
    )
    changed = [references[0], references[1], -5 * references[2], references[3]]
    again = postprocess.cross_fit(predictions, changed, subjects, steps, RATE_HZ)
    assert again[2] == fitted[2]
    assert again[0] != fitted[0]


def test_many_subjects_are_cross_fitted_in_five_groups():
    predictions, references = recordings(count=12, frames=200, bias=0.4)
    subjects = [f"P{index}" for index in range(12)]
    fitted = postprocess.cross_fit(predictions, references, subjects, ["bias"], RATE_HZ)
    assert [fitted.index(item) for item in fitted] == [index % 5 for index in range(12)]


def test_a_single_subject_cannot_be_cross_fitted():
    predictions, references = recordings(bias=0.4)
    fitted = postprocess.cross_fit(predictions, references, ["a"] * 3, ["bias"], RATE_HZ)
    assert fitted == [Postprocessing((Trace(),))] * 3


def test_missing_labels_are_left_out():
    predictions, references = recordings(bias=0.4, scale=0.5)
    holes = [r.copy() for r in references]
    for reference in holes:
        reference[::3] = np.nan
    processing = postprocess.fit(predictions, holes, ["bias", "scale"], RATE_HZ)
    np.testing.assert_allclose(processing(predictions[0]), references[0], atol=0.02)


def test_without_any_label_nothing_is_done():
    predictions, references = recordings()
    unknown = [np.full_like(r, np.nan) for r in references]
    assert fitted(predictions, unknown, ["median", "bias", "scale"]) == Trace()


def test_constant_predictions_survive():
    predictions, references = recordings()
    constant = [np.zeros_like(p) for p in predictions]
    assert np.isfinite(postprocess.fit(constant, references, ["scale"], RATE_HZ)(constant[0])).all()


def test_dimensions_are_processed_apart_and_survive_json():
    processing = Postprocessing((Trace(), Trace(3, 0.1, 2.0, 0.5)))
    again = Postprocessing.from_json(json.loads(json.dumps(processing.to_json())))
    assert again == processing
    values = np.random.default_rng(0).random((9, 2)).astype(np.float32)
    np.testing.assert_array_equal(processing(values)[:, 0], values[:, 0])
    assert not np.allclose(processing(values)[:, 1], values[:, 1])
