"""What a message may carry, and what is refused."""

import copy
import dataclasses

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from affect.federated.messages import (
    Delayed,
    MessageError,
    Surveyed,
    Train,
    Trained,
    addressed,
    size_of,
)

TRAIN = Train("experiment", "run", 3, "train", "{}", 2, np.arange(5, dtype=np.float32))
TRAINED = Trained(
    parameters=np.arange(5, dtype=np.float32),
    control=None,
    moments=np.zeros((2, 6)),
    losses=np.zeros(2),
    batches=3,
    steps=2,
    frames=100,
    seconds=0.5,
)


@given(
    arrays(np.float32, st.integers(1, 40)),
    arrays(np.float64, st.just((2, 6))),
)
def test_what_is_sent_arrives(parameters, moments):
    sent = dataclasses.replace(TRAINED, parameters=parameters, moments=moments)
    arrived = Trained.decode(sent.encode())
    for field in dataclasses.fields(Trained):
        np.testing.assert_array_equal(getattr(arrived, field.name), getattr(sent, field.name))


def test_flower_reads_the_arrays_that_are_packed_here_and_the_other_way_round():
    records = TRAINED.encode()
    np.testing.assert_array_equal(records["arrays"]["parameters"].numpy(), TRAINED.parameters)
    records["arrays"]["parameters"] = Array(TRAINED.parameters * 2)
    np.testing.assert_array_equal(Trained.decode(records).parameters, TRAINED.parameters * 2)


def test_a_request_is_addressed_without_copying_what_clients_share():
    records = TRAIN.encode()
    other = addressed(records, 7, "train")
    assert Train.decode(other).client == 7
    assert Train.decode(records).client == 3
    assert other["arrays"]["parameters"] is records["arrays"]["parameters"]
    assert size_of(other) == size_of(records) > 5 * 4


def with_records(**changes):
    return RecordDict({**TRAINED.encode(), **changes})


def edited(record, **changes):
    records = TRAINED.encode()
    for name, value in changes.items():
        if value is None:
            del records[record][name]
        else:
            records[record][name] = value
    return records


@pytest.mark.parametrize(
    ("records", "said"),
    [
        (with_records(frames=ArrayRecord()), "has the records arrays, frames, numbers, words"),
        (edited("arrays", video=Array(np.zeros((2, 2)))), "undeclared field 'video'"),
        (edited("words", note="my name"), "undeclared field 'note'"),
        (edited("arrays", parameters=None), "Trained.parameters is missing"),
        (edited("arrays", parameters=Array(np.zeros(5))), "an array of float64 and 1 dimensions"),
        (
            edited("arrays", parameters=Array(np.zeros((5, 1), np.float32))),
            "an array of float32 and 2 dimensions",
        ),
        (edited("numbers", steps=0.5), "Trained.steps is of type float"),
        (
            edited("arrays", losses=Array("float64", (2,), "numpy.ndarray", b"no array")),
            "an array cannot be read",
        ),
    ],
)
def test_anything_else_is_refused(records, said):
    with pytest.raises(MessageError, match=said):
        Trained.decode(records)


def test_numbers_that_are_not_finite_and_other_shapes_are_refused():
    TRAINED.refuse_unfit(TRAIN, {"D": 2})
    largest = np.full(5, np.finfo(np.float32).max)  # whose sum is not finite
    dataclasses.replace(TRAINED, parameters=largest).refuse_unfit(TRAIN, {"D": 2})


def changed(content, change):
    """The content with other values, unchecked as outside the tests."""
    found = copy.copy(content)
    for name, value in change.items():
        object.__setattr__(found, name, value)
    return found


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"parameters": np.full(5, np.nan, np.float32)}, "its parameters are not finite"),
        ({"parameters": np.zeros(6, np.float32)}, r"parameters have shape \(6,\), not \(5,\)"),
        ({"moments": np.zeros((3, 6))}, r"moments have shape \(3, 6\), not \(2, 6\)"),
        ({"moments": np.zeros((2, 5))}, r"moments have shape \(2, 5\), not \(2, 6\)"),
        ({"losses": np.zeros(5)}, r"losses have shape \(5,\), not \(2,\)"),
        ({"control": np.zeros(5, np.float32)}, "its control is unasked"),
        ({"frames": -1400}, "its frames is -1400"),
        ({"frames": 2**62}, f"its frames is {2**62}"),
        ({"batches": 0}, "its batches is 0"),
        ({"seconds": float("nan")}, "its seconds is nan"),
    ],
)
def test_an_answer_that_fits_no_such_request_is_refused(change, said):
    with pytest.raises(MessageError, match=said):
        changed(TRAINED, change).refuse_unfit(TRAIN, {"D": 2})


def test_a_control_variate_that_is_asked_for_may_not_be_missing():
    asked = dataclasses.replace(TRAIN, control=np.zeros(5, np.float32))
    with pytest.raises(MessageError, match="its control is missing"):
        TRAINED.refuse_unfit(asked, {"D": 2})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": np.zeros((3, 5))}, r"labels have shape \(3, 5\), not \(3, 2\)"),
        ({"features": np.zeros((3, 2))}, r"features have shape \(3, 2\), not \(3, 1\)"),
        ({"longest": -1}, "its longest is -1"),
        ({"rate_hz": float("inf")}, "its rate_hz is inf"),
    ],
)
def test_a_survey_of_other_action_units_than_it_names_is_refused(change, said):
    survey = Surveyed(["AU01_r"], 25.0, 10, 10, np.zeros((3, 1)), None, np.zeros((3, 2)))
    survey.refuse_unfit(TRAIN, {"D": 2})
    with pytest.raises(MessageError, match=said):
        changed(survey, change).refuse_unfit(TRAIN, {"D": 2})


def test_moments_for_a_delay_come_together_or_not_at_all():
    sizes = {"D": 1, "F": 2, "L": 3}
    whole = Delayed(np.zeros((2, 2)), np.zeros((1, 2, 3)), np.zeros((1, 3)))
    whole.refuse_unfit(TRAIN, sizes)
    Delayed().refuse_unfit(TRAIN, sizes)
    with pytest.raises(MessageError, match="some moments without the others"):
        dataclasses.replace(whole, labels=None).refuse_unfit(TRAIN, sizes)
    with pytest.raises(MessageError, match=r"have shape \(2, 2\), not \(4, 4\)"):
        whole.refuse_unfit(TRAIN, {**sizes, "F": 4})


def test_a_survey_may_leave_moments_out():
    survey = Surveyed(["AU01_r"], 25.0, 10, 10, None, None, np.zeros((3, 2)))
    assert Surveyed.decode(survey.encode()).features is None
    records = survey.encode()
    records["words"] = ConfigRecord({"names": "AU01_r"})
    with pytest.raises(MessageError, match="names is of type str"):
        Surveyed.decode(records)
