"""Messages between processes through shared memory: what is sent is what comes."""

import multiprocessing
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from affect.federated.engines import channel as channels
from affect.federated.engines.channel import channel

CONTEXT = multiprocessing.get_context("forkserver")
SIZES = (0, 10, 50_000, 70_000, 150_000)
PARTS = [os.urandom(size) for size in (*SIZES, *SIZES)]


@pytest.fixture
def room(monkeypatch):
    """Memory for a few parts only."""
    monkeypatch.setattr(channels, "_ROOM_BYTES", 2**18)


@pytest.fixture
def ends():
    ends = channel()
    yield ends
    for end in ends:
        end.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, len(PARTS) - 1), max_size=6), max_size=6))
def test_whatever_follows_whatever_arrives(messages):
    there, here = channel()
    for message in messages:
        parts = [PARTS[index] for index in message]
        there.send({"parts": parts})
        assert here.receive() == {"parts": parts}
        here.send(parts)
        assert there.receive() == parts
    there.close()
    here.close()


def test_a_part_that_comes_again_is_not_copied_again(ends):
    there, here = ends
    model = os.urandom(100_000)
    received = []
    for own in (b"a", b"b"):
        there.send([model, own, model])
        first, _, second = here.receive()
        assert first is second
        received.append(first)
    assert received[0] is received[1]
    assert received[0] == model


def test_what_finds_no_room_travels_by_the_pipe(room, ends):
    there, here = ends
    parts = [os.urandom(100_000) for _ in range(3)]  # the third would end beyond the memory
    there.send(parts)
    assert here.receive() == parts


def test_a_message_that_cannot_be_sent_spoils_no_later_one(ends):
    there, here = ends
    first, second = os.urandom(100_000), os.urandom(100_000)
    there.send(first)
    assert here.receive() == first
    with pytest.raises(TypeError):
        there.send([second, (nobody for nobody in ())])
    there.send(first)
    assert here.receive() == first


def _echo(end):
    while (message := end.receive()) is not None:
        end.send(message)


def test_the_other_end_may_be_in_a_process_of_its_own(ends):
    ours, theirs = ends
    process = CONTEXT.Process(target=_echo, args=(theirs,), daemon=True)
    process.start()
    for size in (10, 100_000, 200_000):
        message = {"model": os.urandom(size)}
        ours.send(message)
        assert ours.receive() == message
    ours.send(None)
    process.join()
    assert process.exitcode == 0
