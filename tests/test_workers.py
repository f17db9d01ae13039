"""Messages answered by worker processes: in order, whatever happens to a worker."""

import os
import signal
import time
from multiprocessing import active_children

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from affect.config import FederationConfig
from affect.errors import UserError
from affect.federated.engines import choice
from affect.federated.engines.inprocess import InProcessGrid
from affect.federated.engines.workers import Team


def make_app(number):
    """An app that does what its message says."""

    def app(message, context):
        told = message.content["told"]
        if told["do"] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if told["do"] == "hang":
            time.sleep(60)
        if told["do"] == "raise":
            raise ValueError("no such recording")
        time.sleep(told["seconds"])
        reply = ConfigRecord({"node": context.node_id, "worker": number, "pid": os.getpid()})
        return Message(RecordDict({"said": reply}), reply_to=message)

    return app


class Together:
    """An app that says of whom it was asked at once, or hangs where one of them does."""

    def __init__(self, number):
        self._alone = make_app(number)

    def __call__(self, message, context):
        return self._alone(message, context)

    def together(self, messages):
        if any(message.content["told"]["do"] == "hang" for message in messages):
            time.sleep(60)
        nodes = [message.metadata.dst_node_id for message in messages]
        said = RecordDict({"said": ConfigRecord({"nodes": nodes})})
        return [Message(said, reply_to=message) for message in messages]


def told(do="work", seconds=0.0):
    return RecordDict({"told": ConfigRecord({"do": do, "seconds": seconds})})


@pytest.fixture(scope="module")
def team():
    team = Team(make_app, 2, timeout_s=5.0)
    yield team
    team.stop()


def answers(team, contents):
    grid = InProcessGrid(team.replies, len(contents))
    messages = [Message(item, node, "train") for node, item in enumerate(contents, 1)]
    return list(grid.send_and_receive(messages))


def test_answers_come_in_the_order_of_the_messages(team):
    contents = [told(seconds=0.3), *[told(seconds=0.01 * (7 - i)) for i in range(7)]]
    said = [reply.content["said"] for reply in answers(team, contents)]
    assert [item["node"] for item in said] == list(range(1, 9))
    assert {item["worker"] for item in said} == {0, 1}


@pytest.mark.parametrize(
    ("do", "reason"),
    [
        ("die", "its process was killed by signal 9"),
        ("hang", "it did not answer within 5 s"),
        ("raise", "ValueError: no such recording"),
    ],
)
def test_a_worker_that_fails_costs_one_client(team, do, reason):
    replies = answers(team, [told(), told(do), told(), told()])
    assert [reply.has_error() for reply in replies] == [False, True, False, False]
    assert replies[1].error.reason == reason
    assert replies[1].metadata.src_node_id == 2
    assert not any(reply.has_error() for reply in answers(team, [told()] * 3))


def slow_to_start(number):
    time.sleep(1.0)
    return make_app(number)


def test_the_start_of_a_worker_is_not_its_clients_time():
    team = Team(slow_to_start, 1, timeout_s=0.5)
    try:
        found = answers(team, [told(), told("hang"), told()])
    finally:
        team.stop()
    assert [reply.has_error() for reply in found] == [False, True, False]


def test_a_cohort_is_answered_by_one_worker_and_lost_with_it():
    team = Team(Together, 2, timeout_s=2.0, cohort=2)
    try:
        found = answers(team, [told(), told(), told("hang"), told(), told()])
    finally:
        team.stop()
    assert [reply.has_error() for reply in found] == [False, False, True, True, False]
    assert list(found[0].content["said"]["nodes"]) == [1, 2]
    assert found[3].error.reason == "it did not answer within 2 s"
    assert found[3].metadata.src_node_id == 4


def test_no_more_workers_start_than_there_are_clients_or_cores_for_them():
    asked = FederationConfig(workers=100_000)
    before = set(active_children())
    with choice.engine(make_app, 2, asked) as grid:
        assert len(set(active_children()) - before) == 2
        messages = [Message(told(), node, "train") for node in (1, 2)]
        assert not any(reply.has_error() for reply in grid.send_and_receive(messages))
    cores = len(os.sched_getaffinity(0))
    with pytest.raises(UserError, match=f"federation.workers is 100000, and there are {cores} cor"):
        choice.engine(make_app, 200_000, asked)


def test_few_messages_are_taken_ahead_of_the_first_unanswered(team):
    taken = []

    def tasks():
        for node in range(30):
            taken.append(node)
            message = Message(told(seconds=0.5 if node == 0 else 0.0), node + 1, "train")
            yield message, Context(1, node + 1, {}, RecordDict(), {})

    coming = team.replies(tasks())
    next(coming)
    assert len(taken) <= 8
    assert len(list(coming)) == 29


def test_no_process_stays(team):
    other = Team(make_app, 1, timeout_s=None)
    (reply,) = answers(other, [told()])
    pid = reply.content["said"]["pid"]
    other.stop()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
