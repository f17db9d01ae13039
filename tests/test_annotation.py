"""The gold standard against a plain loop, the laws of shifting, and delays that are known."""

from __future__ import annotations

from math import isnan, nan, prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import Ridge

from affect.data import annotation
from affect.errors import UserError

levels = st.integers(-8, 8).map(lambda step: np.float32(step / 8))
present = arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 12)), elements=levels)
gappy = arrays(
    np.float32,
    st.tuples(st.integers(1, 5), st.integers(1, 12)),
    elements=st.one_of(levels, st.just(np.float32(np.nan))),
)
quick = settings(deadline=None, max_examples=60)


def lin(x, y):
    pairs = [(float(a), float(b)) for a, b in zip(x, y, strict=True) if not isnan(a + b)]
    if not pairs:
        return 0.0
    n = len(pairs)
    mean_x, mean_y = sum(a for a, _ in pairs) / n, sum(b for _, b in pairs) / n
    var_x = sum((a - mean_x) ** 2 for a, _ in pairs) / n
    var_y = sum((b - mean_y) ** 2 for _, b in pairs) / n
    cov = sum((a - mean_x) * (b - mean_y) for a, b in pairs) / n
    if min(var_x, var_y) < 1e-20:
        return 0.0
    return 2 * cov / (var_x + var_y + (mean_x - mean_y) ** 2)


def avec_by_loop(ratings):
    rows = [row for row in ratings.tolist() if not all(map(isnan, row))]
    known = [[v for v in row if not isnan(v)] for row in rows]
    means = [sum(values) / len(values) for values in known]
    if len(rows) > 1:
        weights = [
            sum(lin(row, other) for j, other in enumerate(rows) if j != i) / (len(rows) - 1)
            for i, row in enumerate(rows)
        ]
        weights = [max(weight, 0.0) for weight in weights]
        if sum(weights) == 0:
            weights = [1.0] * len(rows)
        level = sum(w * m for w, m in zip(weights, means, strict=True)) / sum(weights)
        rows = [[v - m + level for v in row] for row, m in zip(rows, means, strict=True)]
    frames = []
    for t in range(ratings.shape[1]):
        given_now = [row[t] for row in rows if not isnan(row[t])]
        frames.append(sum(given_now) / len(given_now) if given_now else nan)
    return np.array(frames)


def well_weighted(ratings):
    """Whether the weights are far enough from 0 for rounding not to decide."""
    rows = ratings[~np.isnan(ratings).all(axis=1)]
    return len(rows) < 2 or abs(annotation.agreement(rows).max()) > 1e-3


def correlated_ratings(raters=6, frames=400, seed=3):
    rng = np.random.default_rng(seed)
    shared = np.cumsum(rng.normal(0, 0.05, frames))
    noise = rng.normal(0, 0.1, (raters, frames)) + rng.normal(0, 0.2, (raters, 1))
    return (shared + noise).astype(np.float32)


def test_gold_standard_equals_the_loop_on_six_raters_with_gaps():
    ratings = correlated_ratings()
    ratings[1, 50:90] = np.nan
    ratings[4] = np.nan
    ratings[:, 120:123] = np.nan
    gold = annotation.gold_standard(ratings)
    assert gold.dtype == np.float32
    np.testing.assert_allclose(gold, avec_by_loop(ratings), atol=2e-7, rtol=0)
    assert np.isnan(gold[120:123]).all() and np.isfinite(np.delete(gold, [120, 121, 122])).all()


@quick
@given(gappy)
def test_gold_standard_equals_the_loop(ratings):
    if well_weighted(ratings):
        expected = avec_by_loop(ratings)
        np.testing.assert_allclose(
            annotation.gold_standard(ratings), expected, atol=1e-4, rtol=1e-5
        )


def test_the_level_stays_within_raters_who_disagree():
    time = np.linspace(0, 6, 200)
    alike, against = np.sin(time), -0.6 * np.sin(time) + 0.5
    ratings = np.stack([alike, alike + 0.1, against]).astype(np.float32)
    level = annotation.gold_standard(ratings).mean()
    means = ratings.mean(axis=1)
    assert means.min() <= level <= means.max()


def test_gold_standard_of_hand_computed_raters():
    # CCC of rows 0 and 1: means 1 and 2, variances 2/3, covariance 2/3: (4/3) / (4/3 + 1) = 4/7;
    # row 2 is constant, so the weights are 2/7, 2/7 and 0, and the level is 1.5.
    ratings = np.array([[0, 1, 2], [1, 2, 3], [5, 5, 5]], dtype=np.float32)
    np.testing.assert_allclose(annotation.agreement(ratings), [2 / 7, 2 / 7, 0], atol=1e-12)
    np.testing.assert_allclose(
        annotation.gold_standard(ratings), [1.5 - 2 / 3, 1.5, 1.5 + 2 / 3], atol=1e-6
    )
    np.testing.assert_allclose(annotation.gold_standard(ratings, "mean"), [2, 8 / 3, 10 / 3])


def test_raters_who_contradict_each_other_weigh_the_same():
    ratings = np.array([[0, 1, 2], [6, 4, 2]], dtype=np.float32)
    np.testing.assert_allclose(annotation.gold_standard(ratings), [3, 2.5, 2], atol=1e-6)


@pytest.mark.parametrize("method", ["avec", "mean"])
def test_one_rater_is_returned_as_is_and_none_gives_nan(method):
    lone = np.full((3, 5), np.nan, dtype=np.float32)
    assert np.isnan(annotation.gold_standard(lone, method)).all()
    lone[1] = [0.1, 0.2, np.nan, 0.4, 0.5]
    np.testing.assert_array_equal(annotation.gold_standard(lone, method), lone[1])


def test_equal_constant_raters_do_not_agree():
    assert annotation.concordance(np.full(7, 0.1), np.full(7, 0.1)) == 0.0


@quick
@given(present, st.randoms(use_true_random=False))
def test_the_order_of_raters_does_not_matter(ratings, random):
    if well_weighted(ratings):
        shuffled = random.sample(range(len(ratings)), len(ratings))
        np.testing.assert_allclose(
            annotation.gold_standard(ratings[shuffled]),
            annotation.gold_standard(ratings),
            atol=1e-5,
        )


@quick
@given(present, st.integers(0, 4), levels)
def test_a_constant_on_one_rater_moves_the_gold_standard_without_bending_it(
    ratings, which, constant
):
    moved = ratings.copy()
    moved[which % len(ratings)] += constant
    if well_weighted(ratings) and well_weighted(moved):
        bent = annotation.gold_standard(moved) - annotation.gold_standard(ratings)
        assert np.ptp(bent) < 1e-3


@quick
@given(present, levels)
def test_a_constant_on_all_raters_is_added_to_the_gold_standard(ratings, constant):
    if well_weighted(ratings):
        np.testing.assert_allclose(
            annotation.gold_standard(ratings + constant),
            annotation.gold_standard(ratings) + constant,
            atol=1e-3,
        )


@quick
@given(
    st.integers(1, 30),
    st.integers(0, 40),
    st.sampled_from([(), (2,), (2, 3)]),
)
def test_shifting_forward_undoes_shifting_back_except_at_the_edges(frames, lag, rest):
    labels = np.arange(frames * prod(rest), dtype=np.float32).reshape(frames, *rest)
    back = annotation.shift_back(labels, lag / 25, 25.0)
    expected = np.concatenate([labels[lag:], np.repeat(labels[-1:], min(lag, frames), axis=0)])
    np.testing.assert_array_equal(back, expected)
    again = annotation.shift_forward(back, lag / 25, 25.0)
    np.testing.assert_array_equal(again[lag:], labels[lag:])
    np.testing.assert_array_equal(again[:lag], np.repeat(back[:1], min(lag, frames), axis=0))


def test_a_delay_is_rounded_to_whole_frames():
    labels = np.arange(6)
    np.testing.assert_array_equal(annotation.shift_back(labels, 0.09, 25.0), [2, 3, 4, 5, 5, 5])
    np.testing.assert_array_equal(annotation.shift_forward(labels, 0.07, 25.0), [0, 0, 0, 1, 2, 3])
    np.testing.assert_array_equal(annotation.shift_back(labels, 0.0, 25.0), labels)


def slow_signal(rng, frames):
    return np.convolve(rng.standard_normal(frames + 200), np.hanning(201), mode="valid") / 8


def delayed_corpus(delay_frames, recordings=4, frames=1500):
    rng = np.random.default_rng(7)
    features, labels = [], []
    for _ in range(recordings):
        signal = slow_signal(rng, frames + delay_frames)
        noise = rng.standard_normal((frames, 3))
        features.append((signal[delay_frames:, None] * [1.0, -0.5, 0.0] + noise).astype("f4"))
        labels.append((signal[:frames] + rng.normal(0, 0.2, frames)).astype("f4"))
    return features, labels


@pytest.mark.parametrize("delay_frames", [0, 33, 72, 110])
def test_a_known_delay_is_found(delay_frames):
    features, labels = delayed_corpus(delay_frames)
    features[0][100:160] = np.nan
    labels[1][300:340] = np.nan
    estimate = annotation.estimate_delay(features, labels, 25.0)
    assert estimate == pytest.approx(delay_frames / 25, abs=0.1)


def test_features_that_never_change_do_no_harm():
    features, labels = delayed_corpus(60)
    still = [np.concatenate([x, np.full((len(x), 1), 0.3, "f4")], axis=1) for x in features]
    estimate = annotation.estimate_delay(still, labels, 25.0)
    assert estimate == pytest.approx(annotation.estimate_delay(features, labels, 25.0), abs=1e-3)


def test_held_out_correlation_equals_scikit_learns():
    rng = np.random.default_rng(1)
    xs = [rng.standard_normal((40, 3)) for _ in range(4)]
    xs = [x - x.mean(axis=0) for x in xs]
    ys = [x @ [1.0, 0.5, 0.0] + rng.standard_normal(40) for x in xs]
    ys = [y - y.mean() for y in ys]
    penalty = annotation._RIDGE * sum((x**2).sum() for x in xs) / 3
    predicted = []
    for held in range(4):
        rest = [i for i in range(4) if i != held]
        model = Ridge(alpha=penalty, fit_intercept=False)
        model.fit(np.concatenate([xs[i] for i in rest]), np.concatenate([ys[i] for i in rest]))
        predicted.append(model.predict(xs[held]))
    expected = np.corrcoef(np.concatenate(predicted), np.concatenate(ys))[0, 1]
    correlation = annotation._held_out_correlation(
        np.stack([x.T @ x for x in xs]),
        np.stack([(x.T @ y)[:, None] for x, y in zip(xs, ys, strict=True)]),
        np.stack([[y @ y] for y in ys]),
    )
    assert correlation == pytest.approx([expected], abs=1e-9)


def test_delays_that_cannot_be_estimated_say_why():
    features, labels = delayed_corpus(10, recordings=2)
    with pytest.raises(UserError, match="two or more"):
        annotation.estimate_delay(features[:1], labels[:1], 25.0)
    with pytest.raises(UserError, match="differ in length"):
        annotation.estimate_delay(features, [trace[:-1] for trace in labels], 25.0)
    with pytest.raises(UserError, match="up to 200 frames on a recording of 150"):
        annotation.estimate_delay(
            [x[:150] for x in features], [trace[:150] for trace in labels], 25.0
        )
    with pytest.raises(UserError, match="never change"):
        annotation.estimate_delay(features, [np.zeros_like(trace) for trace in labels], 25.0)
