"""Clients on this machine: a Flower Grid without Ray, sockets or start-up.

One worker is this process itself; several are processes of their own. Messages are the same as in a
deployment, down to their bytes; replies come one at a time and in the order of the requests, so
that the server can aggregate them without holding them all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from uuid import uuid4

from flwr.app import Context, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from affect.federated.answering import Answers


class InProcessGrid(Grid):
    """Runs a ClientApp for each message when its reply is asked for.

    Args:
        answers: makes replies of messages and their nodes' contexts, in their order.
        nodes: how many there are; their ids are 1, 2, ...
    """

    def __init__(self, answers: Answers, nodes: int) -> None:
        self._run = Run.create_empty(run_id=1)
        # what Flower's Message asks for the ids of the run and of the server
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, SUPERLINK_NODE_ID, 1
        self._answers = answers
        self._contexts = {
            node: Context(
                1, node, {"partition-id": node - 1, "num-partitions": nodes}, RecordDict(), {}
            )
            for node in range(1, nodes + 1)
        }
        self._pending: dict[str, Message] = {}

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """The nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in; each is handled when its reply is pulled."""
        ids = []
        for message in messages:
            ids.append(str(uuid4()))
            self._pending[ids[-1]] = message
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """The replies to messages that were pushed."""
        return self.send_and_receive(self._pending.pop(name) for name in message_ids)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """The replies, in the order of the messages; a client that fails answers with an error."""
        return self._answers((item, self._contexts[item.metadata.dst_node_id]) for item in messages)
