"""CCC, its moments, the loss and the metric, against NumPy, SciPy and hand-computed values."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy import stats
from torch.multiprocessing.spawn import spawn
from torchmetrics.regression import ConcordanceCorrCoef

from affect import metrics
from affect.errors import UserError
from affect.metrics import AffectMetrics, affect_loss, ccc_loss, mse_loss

VALUES = st.floats(-5, 5, width=32)


def lin(x, y):
    """Lin's formula in NumPy float64, every moment divided by N."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    covariance = np.mean((x - x.mean()) * (y - y.mean()))
    return 2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def related(*shape, seed=0, missing=0.0):
    """Prediction, reference and a mask of all frames; a share of the labels is missing."""
    rng = np.random.default_rng(seed)
    reference = rng.normal(size=shape)
    prediction = 0.6 * reference + 0.5 * rng.normal(size=shape) + 0.2
    reference[rng.random(shape) < missing] = np.nan
    mask = torch.ones(shape[:-1], dtype=torch.bool)
    return torch.from_numpy(prediction), torch.from_numpy(reference), mask


def of(x, y):
    """Moments of two one-dimensional sequences."""
    x, y = (torch.as_tensor(values, dtype=torch.float64).unsqueeze(-1) for values in (x, y))
    return metrics.moments(x, y, torch.ones(len(x), dtype=torch.bool))


def test_scores_match_numpy_and_scipy():
    prediction, reference, mask = related(4, 50, 2)
    scores = metrics.scores(metrics.moments(prediction, reference, mask))
    for d in range(2):
        x, y = prediction[..., d].numpy().ravel(), reference[..., d].numpy().ravel()
        assert scores["ccc"][d].item() == pytest.approx(lin(x, y), abs=1e-13)
        assert scores["pearson"][d].item() == pytest.approx(stats.pearsonr(x, y)[0], abs=1e-13)
        assert scores["rmse"][d].item() == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), abs=1e-13)


def test_ccc_is_lins_where_torchmetrics_mixes_two_divisors():
    prediction, reference = torch.tensor([2.5, 0.0, 2, 8]), torch.tensor([3, -0.5, 2, 7])
    assert metrics.ccc(of(prediction, reference)).item() == pytest.approx(0.9768, abs=5e-5)
    assert ConcordanceCorrCoef()(prediction, reference).item() == pytest.approx(0.9777, abs=5e-5)


def test_ccc_by_hand():
    # means 2 and 3, variances 2/3 and 2/3, covariance 2/3: (4/3) / (4/3 + 1)
    assert metrics.ccc(of([1, 2, 3], [2, 3, 4])).item() == pytest.approx(4 / 7, abs=1e-15)
    assert metrics.ccc(of([1, 2, 3], [3, 2, 1])).item() == pytest.approx(-1.0, abs=1e-15)


@given(
    npst.arrays(np.float64, st.tuples(st.integers(1, 30), st.just(2)), elements=VALUES), st.data()
)
@settings(deadline=None, max_examples=60)
def test_merging_any_partition_in_any_order_equals_pooling(pairs, data):
    order = data.draw(st.permutations(range(len(pairs))))
    cuts = data.draw(st.lists(st.integers(0, len(pairs)), max_size=4).map(sorted))
    parts = [of(*pairs[part].T) for part in np.split(np.array(order), cuts)]
    pooled = of(*pairs.T)
    merged = metrics.merge(torch.stack(parts))
    torch.testing.assert_close(merged, pooled, rtol=1e-12, atol=1e-12)
    nested = metrics.merge(torch.stack([metrics.merge(torch.stack(parts[:2])), *parts[2:]]))
    torch.testing.assert_close(nested, pooled, rtol=1e-12, atol=1e-12)


@given(
    npst.arrays(np.float64, (5, 3, 2), elements=VALUES),
    npst.arrays(np.float64, (5, 3, 2), elements=st.floats(allow_nan=True, allow_infinity=True)),
)
@settings(deadline=None, max_examples=40)
def test_what_padding_holds_changes_no_moment_and_no_loss(pairs, padding):
    real, padded = torch.from_numpy(pairs), torch.from_numpy(np.concatenate([pairs, padding], 1))
    mask = torch.arange(6).expand(5, 6) < 3
    x, y, all_real = real[..., :1], real[..., 1:], mask[:, :3]
    padded_x, padded_y = padded[..., :1], padded[..., 1:]
    torch.testing.assert_close(
        metrics.moments(padded_x, padded_y, mask), metrics.moments(x, y, all_real)
    )
    for name in ("ccc", "mse", "ccc_mse"):
        for per in ("batch", "sequence"):
            torch.testing.assert_close(
                affect_loss(padded_x, padded_y, mask, name=name, per=per),
                affect_loss(x, y, all_real, name=name, per=per),
            )


def test_large_offset_costs_no_accuracy():
    rng = np.random.default_rng(1)
    y = rng.normal(scale=1e-3, size=1000)
    x = 0.5 * y + rng.normal(scale=5e-4, size=1000)
    expected = lin(x, y)
    # what 1e6 + x can hold in float64 is the reference, so take the offset off again
    x, y = 1e6 + x, 1e6 + y
    assert lin(x - 1e6, y - 1e6) == pytest.approx(expected, abs=1e-6)
    parts = torch.stack([of(x[a : a + 100], y[a : a + 100]) for a in range(0, 1000, 100)])
    for pooled in (of(x, y), metrics.merge(parts)):
        scores = metrics.scores(pooled)
        assert scores["ccc"].item() == pytest.approx(lin(x - 1e6, y - 1e6), abs=1e-8)
        assert scores["rmse"].item() == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), rel=1e-6)


def test_rmse_of_nearly_perfect_predictions_is_a_number():
    for seed in range(20):
        y = np.random.default_rng(seed).normal(size=50)
        assert metrics.rmse(of(y + 1e-10 * y[::-1], y)).item() < 1e-7


@pytest.mark.parametrize("parts", [1, 3])
def test_constant_traces_score_zero(parts):
    rng = np.random.default_rng(2)
    constant, varying = np.full(999, 0.1), rng.normal(size=999)
    for x, y in [(constant, varying), (varying, constant), (constant, constant)]:
        groups = [of(*group) for group in zip(np.split(x, parts), np.split(y, parts), strict=True)]
        scores = metrics.scores(metrics.merge(torch.stack(groups)))
        assert scores["ccc"].item() == 0.0
        assert scores["pearson"].item() == 0.0
        assert scores["rmse"].item() == pytest.approx(np.sqrt(np.mean((x - y) ** 2)), abs=1e-12)


def test_one_sample_scores_zero_and_none_scores_nan():
    one, none = metrics.scores(of([0.3], [0.7])), metrics.scores(of([], []))
    assert one["ccc"].item() == one["pearson"].item() == 0.0
    assert one["rmse"].item() == pytest.approx(0.4)
    assert all(math.isnan(score.item()) for score in none.values())


def test_a_prediction_that_is_nan_is_never_scored_as_zero():
    scores = metrics.scores(of([0.1, math.nan, 0.3], [0.1, 0.2, 0.3]))
    assert all(math.isnan(score.item()) for score in scores.values())


def test_missing_labels_are_left_out_in_their_dimension_alone():
    prediction, reference, mask = related(60, 2, missing=0.3)
    pooled = metrics.moments(prediction, reference, mask)
    for d in range(2):
        there = ~reference[:, d].isnan()
        torch.testing.assert_close(
            pooled[d], of(prediction[there, d], reference[there, d])[0], rtol=1e-12, atol=1e-12
        )


def test_per_recording_averages_recordings_that_have_labels():
    a, b = related(40, 2, seed=3), related(70, 2, seed=4)
    unlabelled = (a[0], torch.full_like(a[1], torch.nan), a[2])
    b[1][:, 1] = torch.nan
    result = metrics.per_recording([metrics.moments(*item) for item in (a, b, unlabelled)])
    first = [lin(a[0][:, d], a[1][:, d]) for d in range(2)]
    assert result["ccc"][0].item() == pytest.approx((first[0] + lin(b[0][:, 0], b[1][:, 0])) / 2)
    assert result["ccc"][1].item() == pytest.approx(first[1])
    nothing = metrics.per_recording([metrics.moments(*unlabelled)])
    assert nothing["rmse"].isnan().all()


def test_losses_match_numpy():
    prediction, reference, mask = related(3, 20, 2, seed=5, missing=0.2)
    mask[1, 12:] = False
    valid = (mask.unsqueeze(-1) & ~reference.isnan()).numpy()
    batch = ccc_loss(prediction, reference, mask)
    sequence = ccc_loss(prediction, reference, mask, "sequence")
    squares = mse_loss(prediction, reference, mask)
    mixed = affect_loss(prediction, reference, mask, name="ccc_mse", mix=0.3)
    for d in range(2):
        x, y, v = prediction[..., d].numpy(), reference[..., d].numpy(), valid[..., d]
        assert batch[d].item() == pytest.approx(1 - lin(x[v], y[v]), abs=1e-10)
        each = [1 - lin(x[n][v[n]], y[n][v[n]]) for n in range(3)]
        assert sequence[d].item() == pytest.approx(np.mean(each), abs=1e-10)
        assert squares[d].item() == pytest.approx(np.mean((x[v] - y[v]) ** 2), abs=1e-13)
    torch.testing.assert_close(mixed, 0.3 * batch + 0.7 * squares)


@pytest.mark.parametrize("per", ["batch", "sequence"])
@pytest.mark.parametrize("name", ["ccc", "mse", "ccc_mse"])
def test_loss_gradient_matches_finite_differences(name, per):
    prediction, reference, mask = related(3, 6, 2, seed=6, missing=0.2)
    mask[0, 4:] = False
    prediction.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: affect_loss(x, reference, mask, name=name, per=per), prediction
    )


@pytest.mark.parametrize("per", ["batch", "sequence"])
@pytest.mark.parametrize("name", ["ccc", "mse", "ccc_mse"])
@pytest.mark.parametrize("case", ["labels", "nothing", "constant", "same constant", "one frame"])
def test_loss_and_gradient_stay_finite(name, per, case):
    prediction, reference, mask = (values.clone() for values in related(2, 8, 2, seed=7))
    prediction, reference = prediction.float(), reference.float()
    if case == "labels":
        reference[0, 2:5] = torch.nan
    elif case == "nothing":
        reference[:] = torch.nan
    elif case == "one frame":
        mask[:, 1:] = False
    else:
        prediction[:] = 0.1
        reference[:] = 0.1 if case == "same constant" else reference
    prediction.requires_grad_()
    loss = affect_loss(prediction, reference, mask, name=name, per=per)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert prediction.grad.isfinite().all()
    assert (prediction.grad[reference.isnan()] == 0).all()
    if case == "nothing":
        assert (loss == 0).all()


def test_sequences_with_fewer_than_two_frames_do_not_count_as_sequences():
    prediction, reference, mask = related(3, 8, 2, seed=8)
    mask[1, 1:] = False
    mask[2] = False
    alone = ccc_loss(prediction[:1], reference[:1], mask[:1], "sequence")
    torch.testing.assert_close(ccc_loss(prediction, reference, mask, "sequence"), alone)


def test_loss_computes_in_float32_under_half_precision():
    prediction, reference, mask = related(2, 400, 2, seed=9)
    half = prediction.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = affect_loss(half, reference.float(), mask, name="ccc_mse")
    assert loss.dtype == torch.float32
    expected = affect_loss(half.double(), reference, mask, name="ccc_mse")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)


def test_unknown_loss_is_told():
    with pytest.raises(UserError, match="unknown loss 'cc': choose ccc, mse or ccc_mse"):
        metrics.affect_loss.__wrapped__(*related(1, 4, 1), name="cc")


def test_metric_equals_pooling_over_batches_one_sample_and_a_half():
    prediction, reference, mask = related(30, 2, seed=10, missing=0.1)
    prediction = prediction.half()
    metric = AffectMetrics(2).half()
    for part in (slice(0, 1), slice(1, 14), slice(14, 30)):
        metric.update(prediction[part], reference[part].half(), mask[part])
    pooled = metrics.moments(prediction, reference.half(), mask)
    assert metric.moments.dtype == torch.float64
    torch.testing.assert_close(metric.compute(), metrics.scores(pooled), rtol=1e-12, atol=1e-12)


def test_metric_forward_returns_the_batch_and_keeps_the_whole():
    a, b = related(5, 2, seed=11), related(9, 2, seed=12)
    metric = AffectMetrics(2)
    metric(*a)
    torch.testing.assert_close(metric(*b), metrics.scores(metrics.moments(*b)))
    whole = metrics.merge(torch.stack([metrics.moments(*a), metrics.moments(*b)]))
    torch.testing.assert_close(metric.compute(), metrics.scores(whole))
    metric.reset()
    assert (metric.moments == 0).all()


def test_metric_survives_pickling_copying_and_moving():
    metric = AffectMetrics(2)
    metric.update(*related(9, 2, seed=13))
    for other in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
        torch.testing.assert_close(other.compute(), metric.compute(), rtol=0, atol=0)
    assert copy.deepcopy(metric).to("meta").moments.device.type == "meta"
    torch.nn.ModuleList([metric]).to(torch.float16)
    torch.testing.assert_close(metric.moments, metrics.moments(*related(9, 2, seed=13)))
    metric.reset()
    assert metric.moments.dtype == torch.float64


def test_metric_gathers_over_two_processes(tmp_path):
    other = spawn(_update_on_a_rank, args=(str(tmp_path),), join=False)
    data = related(6, 7, 2, seed=14, missing=0.2)
    _update_on_a_rank(1, str(tmp_path))
    assert other.join(timeout=60)
    expected = metrics.scores(metrics.moments(*data))
    for rank in range(2):
        scores, own = torch.load(tmp_path / f"{rank}.pt")
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            own, metrics.moments(*(v[:4] if rank == 0 else v[4:] for v in data))
        )


def _update_on_a_rank(rank, folder):
    """Rank 0, a process of its own, sees four sequences in two batches; rank 1 the last two."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    data = related(6, 7, 2, seed=14, missing=0.2)
    metric = AffectMetrics(2)
    for part in ((slice(0, 3), slice(3, 4)), (slice(4, 6),))[rank]:
        metric.update(*(values[part] for values in data))
    torch.save((metric.compute(), metric.moments), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()
