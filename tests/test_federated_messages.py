"""What a message may carry, and what is refused."""

import dataclasses

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from affect.federated.messages import (
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
    broken = dataclasses.replace(TRAINED, parameters=np.full(5, np.nan, np.float32))
    with pytest.raises(MessageError, match="its parameters are not finite"):
        broken.refuse_unfit(TRAIN)
    longer = dataclasses.replace(TRAINED, parameters=np.zeros(6, np.float32))
    with pytest.raises(MessageError, match=r"have shape \(6,\), not \(5,\)"):
        longer.refuse_unfit(TRAIN)
    TRAINED.refuse_unfit(TRAIN)


def test_a_survey_may_leave_moments_out():
    survey = Surveyed(["AU01_r"], 25.0, 10, 10, None, None, np.zeros((3, 2)))
    assert Surveyed.decode(survey.encode()).features is None
    records = survey.encode()
    records["words"] = ConfigRecord({"names": "AU01_r"})
    with pytest.raises(MessageError, match="names is of type str"):
        Surveyed.decode(records)
