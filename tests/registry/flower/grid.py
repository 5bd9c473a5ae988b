"""A Flower grid in this process, and ClientApps that fail in a chosen way.

Every message is really serialized, goes to the ClientApp of its node and back: what the
tests of the strategy need, without a minute of processes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.features.feature_set import FeatureSet, load_features
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.registry import flower_host
from fedclip_plugin.wire.update import State
from tests.registry import contract

Answer = Callable[[Message, Context], Message]
Fault = Callable[[Message, Context, Answer], Message | None]


@dataclass
class LocalGrid(Grid):
    """Nodes as node id -> node config; ``faults`` wrap a node's ClientApp.

    A fault that returns None stands for a node that does not answer in time.
    ``traffic`` holds (message type, bytes down, bytes up) of each exchange, ``states``
    what Flower keeps for each node.
    """

    nodes: dict[int, dict[str, Any]]
    run_config: Mapping[str, Any] = field(default_factory=dict)
    faults: dict[int, Fault] = field(default_factory=dict)
    offline: set[int] = field(default_factory=set)
    traffic: list[tuple[str, int, int]] = field(default_factory=list)
    states: dict[int, RecordDict] = field(default_factory=dict)
    reverse: bool = False
    waiting: dict[str, Message] = field(default_factory=dict)
    pulled: int = 0

    def __post_init__(self) -> None:
        self._ids = itertools.count(1)
        TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self.nodes if node not in self.offline]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        replies = [reply for m in messages if (reply := self._deliver(m)) is not None]
        return replies[::-1] if self.reverse else replies

    def _deliver(self, message: Message) -> Message | None:
        message.metadata.__dict__["_message_id"] = f"m{next(self._ids)}"
        down = message_to_proto(message)
        node = message.metadata.dst_node_id
        context = Context(
            run_id=1,
            node_id=node,
            node_config=dict(self.nodes[node]),
            state=self.states.setdefault(node, RecordDict()),
            run_config=dict(self.run_config),
        )
        fault = self.faults.get(node, lambda m, c, app: app(m, c))
        try:
            reply = fault(message_from_proto(down), context, flower_host.client_app)
        except Exception as error:  # as Flower does: an error reply, not a stop
            reply = Message(Error(2, f"{type(error)}:<'{error}'>"), reply_to=message)
        up = message_to_proto(reply) if reply is not None else None
        kind = message.metadata.message_type
        self.traffic.append((kind, down.ByteSize(), up.ByteSize() if up else 0))
        return message_from_proto(up) if up else None

    # What the strategy must not need.
    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    # Only where the replies are too many for the memory.
    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        replies = self.send_and_receive(sent)
        for reply in replies:
            self.waiting[reply.metadata.reply_to_message_id] = reply
        return [message.metadata.message_id for message in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = [m for i in message_ids if (m := self.waiting.pop(i, None))]
        self.pulled += len(found)
        return found


def in_training(
    change: Callable[[Message], Message | None], round_number: int
) -> Fault:
    """A fault in one training round; ``change`` gets the honest reply."""

    def fault(message: Message, context: Context, app: Answer) -> Message | None:
        reply = app(message, context)
        kind = message.metadata.message_type
        if kind != "train" or message.content["config"]["server-round"] != round_number:
            return reply
        return change(reply)

    return fault


def with_arrays(change: Callable[[dict[str, np.ndarray]], Any]) -> Any:
    """The honest reply with its arrays changed in place."""

    def changed(reply: Message) -> Message:
        arrays = {k: v.numpy().copy() for k, v in reply.content["arrays"].items()}
        change(arrays)
        reply.content["arrays"] = ArrayRecord({k: Array(v) for k, v in arrays.items()})
        return reply

    return changed


def no_arrays(reply: Message) -> Message:
    del reply.content["arrays"]
    return reply


def no_metrics(reply: Message) -> Message:
    del reply.content["metrics"]
    return reply


def nan_rows(reply: Message) -> Message:
    reply.content["metrics"]["num-examples"] = float("nan")
    return reply


def torn_bytes(reply: Message) -> Message:
    reply.content["arrays"] = ArrayRecord(
        {k: Array(v.dtype, v.shape, v.stype, v.data[:40])
         for k, v in reply.content["arrays"].items()}
    )  # fmt: skip
    return reply


def no_answer(reply: Message) -> None:
    return None


def crash(reply: Message) -> Message:
    raise RuntimeError("out of memory")


def options(toy: Path | None, **more: Any) -> dict[str, Any]:
    named = {key.replace("_", "-"): value for key, value in more.items()}
    shared = {"features": str(toy)} if toy else {}
    return {**shared, "num-server-rounds": 2, "lr": 0.01, **named}


def partitions(count: int = 3) -> dict[int, dict[str, Any]]:
    """Node ids in another order than the partitions, as a grid has them."""
    return {100 - i: {"partition-id": i} for i in range(count)}


def grid_of(run_config: dict[str, Any], **kwargs: Any) -> LocalGrid:
    return LocalGrid(partitions(), run_config, **kwargs)


def embedded(strategy: Any, toy: Path, target: str | None = None) -> Any:
    """The last standing of the embedded engine with the strategy's configuration."""
    fed = build_federation(load_features(toy), strategy.config, target, 0)
    *_, last = federate(fed)
    return last


def equal(a: State, b: State) -> bool:
    return set(a) == set(b) and all(torch.equal(a[k], b[k]) for k in a)


def without(
    config: RunConfig, features: FeatureSet, absent: str, round_number: int
) -> State:
    """The last state of the embedded engine where one update of one client is lost."""
    return with_absences(config, features, {(absent, round_number)})


def with_absences(
    config: RunConfig, features: FeatureSet, absences: set[tuple[str, int]]
) -> State:
    """The same where the updates of (client, round) are lost."""
    fed = build_federation(features, config, None, config.seeds[0])
    return contract.with_absences(fed, absences).state
