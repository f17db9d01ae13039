import dataclasses

import numpy as np
import pytest

from affect.errors import UserError
from affect.prediction import Prediction
from affect.report.errors import error_parts, to_table


def prediction(subject, x, y, split="test", name="1"):
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    return Prediction(
        corpus="toy",
        subject=subject,
        name=name,
        split=split,
        fold=0,
        time_s=np.arange(len(x)) / 25,
        dimensions=("valence",),
        prediction=x[:, None],
        reference=y[:, None],
    )


def random(subjects=12, frames=40):
    rng = np.random.default_rng(0)
    made = []
    for index in range(subjects):
        y = rng.normal(size=frames)
        x = 0.6 * y + rng.normal(0.3, 0.4) + rng.normal(0, 0.3, frames)
        made.append(prediction(f"P{index}", x, y))
    return made


def lin(x, y):
    covariance = ((x - x.mean()) * (y - y.mean())).mean()
    return 2 * covariance / (x.var() + y.var() + (x.mean() - y.mean()) ** 2)


def test_the_shares_are_those_of_a_loop_and_sum_to_one():
    predictions = random()
    parts = error_parts(predictions, "test")["valence"]
    errors = [(p.prediction - p.reference)[:, 0].astype(float) for p in predictions]
    pooled = np.concatenate(errors)
    mse = (pooled**2).mean()
    between = sum(len(e) * (e.mean() - pooled.mean()) ** 2 for e in errors) / len(pooled)
    within = sum(((e - e.mean()) ** 2).sum() for e in errors) / len(pooled)
    assert parts["mse"] == pytest.approx(mse)
    assert parts["global_share"] == pytest.approx(pooled.mean() ** 2 / mse)
    assert parts["subject_share"] == pytest.approx(between / mse)
    assert parts["within_share"] == pytest.approx(within / mse)
    assert parts["global_share"] + parts["subject_share"] + parts["within_share"] == pytest.approx(
        1
    )
    worst = max((e**2).sum() for e in errors) / (pooled**2).sum()
    assert parts["worst_subjects_share"] == pytest.approx(worst)
    hard = np.sort(pooled**2)[-48:].sum() / (pooled**2).sum()
    assert parts["worst_frames_share"] == pytest.approx(hard)


def test_what_knowing_a_subject_would_gain():
    predictions = random()
    parts = error_parts(predictions, "test")["valence"]
    traces = [
        (p.prediction[:, 0].astype(float), p.reference[:, 0].astype(float)) for p in predictions
    ]
    y = np.concatenate([y for _, y in traces])
    moved = np.concatenate([x - x.mean() + y.mean() for x, y in traces])
    scaled = np.concatenate([(x - x.mean()) * y.std() / x.std() + y.mean() for x, y in traces])
    assert parts["ccc_mean_known"] == pytest.approx(lin(moved, y))
    assert parts["ccc_scale_known"] == pytest.approx(lin(scaled, y))
    alone = [lin(x, y) for x, y in traces]
    assert parts["subject_ccc_50"] == pytest.approx(np.median(alone))


def test_recordings_of_a_subject_are_taken_together():
    one = [prediction("P1", [1, 2, 3, 4], [1, 1, 1, 5]), prediction("P2", [0, 1], [1, 1])]
    parts = [
        prediction("P1", [1, 2], [1, 1]),
        prediction("P1", [3, 4], [1, 5], name="2"),
        one[1],
    ]
    apart, together = error_parts(parts, "test"), error_parts(one, "test")
    assert apart["valence"] == pytest.approx(together["valence"])


def test_missing_references_and_other_splits_are_left_out():
    kept = random()
    nan = [dataclasses.replace(p, subject="X", reference=p.reference * np.nan) for p in kept[:2]]
    other = [dataclasses.replace(p, split="val") for p in kept[:3]]
    assert error_parts([*kept, *nan, *other], "test") == error_parts(kept, "test")
    with pytest.raises(UserError, match="no val prediction has a reference"):
        error_parts(kept, "val")


def test_a_dimension_without_a_reference_is_left_out():
    two = [
        dataclasses.replace(
            p,
            dimensions=("valence", "arousal"),
            prediction=np.repeat(p.prediction, 2, axis=1),
            reference=np.concatenate([p.reference, p.reference * np.nan], axis=1),
        )
        for p in random()
    ]
    assert list(error_parts(two, "test")) == ["valence"]


def test_the_table_has_a_column_a_dimension():
    table = to_table(error_parts(random(), "test"))
    assert [column.header for column in table.columns] == ["", "valence"]
    assert table.row_count == 12
