"""Pieces handed to workers: answered in order, by preference where the same client was before."""

from hypothesis import given
from hypothesis import strategies as st

from affect.federated.engines.pool import Pool, Worker


class Clerk(Worker):
    """Answers with its number and the client."""

    def __init__(self, number):
        self.number, self.alive, self.since_s = number, True, 0.0

    def take(self, index, piece, /):
        self.index, self.answer = index, (self.number, piece)

    def hear(self):
        pass

    def give_up(self, reason):
        raise AssertionError(reason)

    def kill(self):
        pass


class Desk(Pool):
    """Clerks, of whom a choice says who is ready next."""

    def __init__(self, workers, choose):
        super().__init__(workers, None)
        self._choose = choose

    def _hired(self, number):
        return Clerk(number)

    def _client(self, piece):
        return piece

    def _ready(self, busy, limit_s):
        return [busy[self._choose(len(busy))]]


def in_turns(count):
    return 0


def test_a_client_returns_to_the_worker_that_had_it():
    desk = Desk(3, in_turns)
    first = {client: worker for worker, client in desk.answers(range(21))}
    again = {client: worker for worker, client in desk.answers(reversed(range(21)))}
    assert set(first.values()) == {0, 1, 2}
    assert again == first


def test_nobody_idles_for_a_client_of_another():
    desk = Desk(2, in_turns)
    assert {worker for worker, _ in desk.answers(["a"] * 10)} == {0, 1}


@given(st.integers(1, 4), st.lists(st.integers(0, 5), max_size=40), st.data())
def test_answers_come_in_order_whoever_is_first(workers, clients, data):
    desk = Desk(workers, lambda count: data.draw(st.integers(0, count - 1)))
    for _ in range(2):
        assert [client for _, client in desk.answers(iter(clients))] == clients
