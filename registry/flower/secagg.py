"""SecAgg+ under Flower: the server learns the sum of the adapters, and no more.

The protocol is Flower's own (Bell et al. 2020, "Secure Single-Server Aggregation with
(Poly)Logarithmic Overhead", ACM CCS), which speaks the messages of Flower's former API;
here they are put into those of ``flower_client`` and back.  An app names
``fedclip_plugin.registry.flower.secagg:server_app`` and ``:client_app``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.client.mod import secaggplus_mod
from flwr.common import (
    Code,
    FitIns,
    FitRes,
    Parameters,
    Status,
    ndarrays_to_parameters,
    parameters_to_ndarrays,
)
from flwr.compat.common.recorddict_compat import fitres_to_recorddict
from flwr.server import LegacyContext
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import (
    MAIN_CONFIGS_RECORD,
    MAIN_PARAMS_RECORD,
    Key,
)
from flwr.serverapp import Grid, ServerApp

from ...errors import ConfigError, UpdateError
from ...wire.update import ClientUpdate, State
from . import records
from .client import make_client_app
from .strategy import FedClip, serve

_log = logging.getLogger("flwr")
_NAMES = "fedclip-names"  # of the arrays, which Flower's former API does not carry
_WEIGHTING = "fedclip-weighting"
LARGEST = 8.0  # of an adapter's values; what is beyond is not sent
_MODULUS_BITS = 32
_MOST_BITS = 26  # of a quantised value
_SHARES = 1.0  # of the clients get a share of each other's key
_THRESHOLD = 0.67  # of the shares are needed, so that a third may drop out


def quantisation(clients: int) -> int:
    """Steps of a value in ``-LARGEST..LARGEST``, so that a sum does not overflow."""
    room = _MODULUS_BITS - 1 - max(1, clients).bit_length()
    return int(2 ** min(_MOST_BITS, room))


class SecureFedClip(FedClip):
    """:class:`FedClip` over SecAgg+: one sum a round, unmasked by the clients' shares.

    The server cannot screen what it cannot read: a client leaves itself out where its
    adapter is not finite.  Robust rules, compression and the server's own clipping are
    refused for the same reason.
    """

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Runs the protocol with the clients of the round; nothing is left to send."""
        server, wire = self.config.server, self.config.wire
        plain = wire.compress == wire.compress_down == "none"
        private = self.config.private
        algorithm = self._run.fed.algorithm
        if not algorithm.averages:
            raise ConfigError(
                f"--alg {algorithm.name} needs the single updates, which SecAgg+ hides"
            )
        gap = server.weighting == "gap"
        if server.aggregation != "mean" or gap or not plain or private:
            raise ConfigError(
                "SecAgg+ hides the single updates: use --aggregation mean, --weighting "
                "uniform or examples, --compress none, --compress-down none, and no "
                "differential privacy on the server"
            )
        messages = list(super().configure_train(server_round, arrays, config, grid))
        self._spool = None  # the server gets a sum
        rows = [card.rows[0] for card in self.nodes.roster.cards.values()]
        uniform = server.weighting == "uniform"
        talk = _Talk(self._opened.sent.seen, messages, server.weighting)
        line = _Line(grid, self.nodes.timeout)
        workflow = SecAggPlusWorkflow(
            num_shares=_SHARES,
            reconstruction_threshold=_THRESHOLD,
            max_weight=1.0 if uniform else float(max(rows, default=1)),
            clipping_range=LARGEST,
            quantization_range=quantisation(len(messages)),
            timeout=self.nodes.timeout,
        )
        workflow(line, talk.context(server_round))
        self._phase.bytes_down, self._phase.bytes_up = line.down, line.up
        self._sum = talk.answer
        return []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """The mean out of the sum; the former adapter where there was none."""
        arrays, _ = self._aggregate([] if self._sum is None else [self._sum])
        phase = self._phase
        metrics = {"bytes-up": phase.bytes_up, "bytes-down": phase.bytes_down}
        return arrays, records.to_metrics(metrics)


class _Line:
    """The grid as the protocol uses it: counts, and names those who do not answer."""

    def __init__(self, grid: Grid, timeout: float) -> None:
        self.grid, self.timeout = grid, timeout
        self.up = self.down = 0

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        sent = list(messages)
        self.down += records.count_bytes(sent)
        replies = list(
            self.grid.send_and_receive(sent, timeout=timeout or self.timeout)
        )
        self.up += records.count_bytes(replies)
        answered = {reply.metadata.src_node_id for reply in replies}
        for message in sent:
            node = message.metadata.dst_node_id
            if node not in answered:
                _log.error("node %d left out of secure aggregation: no answer", node)
        for reply in replies:
            if reply.has_error():
                node, reason = reply.metadata.src_node_id, _end(reply.error.reason)
                _log.error("node %d left out of secure aggregation: %s", node, reason)
        return replies


def _end(reason: object) -> str:
    """The last line of a traceback, which says what it was."""
    lines = str(reason).strip().splitlines() or [""]
    return lines[-1][-300:]


@dataclass(frozen=True)
class _Node:
    """What the protocol asks of a client: its node."""

    node_id: int


@dataclass
class _Talk:
    """A round as a strategy and a client manager of Flower's former API."""

    state: State
    messages: Sequence[Message]
    weighting: str
    answer: ClientUpdate | None = field(default=None, init=False)

    def context(self, number: int) -> LegacyContext:
        """What the protocol takes its round from."""
        plain = Context(0, 0, {}, RecordDict(), {})
        context = LegacyContext(plain, strategy=self, client_manager=self)
        context.state[MAIN_CONFIGS_RECORD] = ConfigRecord({Key.CURRENT_ROUND: number})
        context.state[MAIN_PARAMS_RECORD] = ArrayRecord()
        return context

    def num_available(self) -> int:
        """How many clients there are, for a line in the log."""
        return len(self.messages)

    def configure_fit(self, *_: Any) -> list[tuple[_Node, FitIns]]:
        """The adapter for each client, and the configuration of our message."""
        names = list(self.state)
        arrays = [self.state[name].cpu().numpy() for name in names]
        more = {_NAMES: json.dumps(names), _WEIGHTING: self.weighting}
        return [
            (
                _Node(message.metadata.dst_node_id),
                FitIns(
                    ndarrays_to_parameters(arrays),
                    {**message.content[records.CONFIG], **more},
                ),
            )
            for message in self.messages
        ]

    def aggregate_fit(
        self, _: int, results: Sequence[tuple[_Node, FitRes]], *__: Any
    ) -> tuple[None, dict[str, Any]]:
        """Takes the mean, which stands for every client's own."""
        weight = sum(result.num_examples for _, result in results)
        if weight:
            arrays = parameters_to_ndarrays(results[0][1].parameters)
            mean = {
                name: torch.from_numpy(np.array(mean)).to(old.device, old.dtype)
                for (name, old), mean in zip(self.state.items(), arrays)
            }
            self.answer = ClientUpdate("sum", mean, weight)
        elif results:  # a mean of no weight is NaN
            self.answer = ClientUpdate("sum", dict(self.state), 0)
        return None, {}


# ----------------------------------------------------------------------- the client


def in_former_words(message: Message, context: Context, call_next: Any) -> Message:
    """A mod: the protocol's training message as ours, and our answer as its own.

    Raises UpdateError, which Flower sends to the server, for an adapter that cannot be
    summed: the round goes on without this client.
    """
    if message.metadata.message_type != MessageType.TRAIN:
        reply: Message = call_next(message, context)
        return reply
    config = message.content.config_records["fitins.config"]
    names = json.loads(str(config[_NAMES]))
    sent = message.content.array_records["fitins.parameters"].values()
    arrays = ArrayRecord({n: Array(a.numpy()) for n, a in zip(names, sent)})
    message.content = RecordDict({records.ARRAYS: arrays, records.CONFIG: config})
    reply = call_next(message, context)
    if reply.has_error():
        raise UpdateError(reply.error.reason)
    arrays_back = reply.content[records.ARRAYS]
    count = int(reply.content[records.METRICS][records.ROWS])
    result = FitRes(
        Status(Code.OK, ""),
        _in_order(arrays_back, names),
        min(count, 1) if config[_WEIGHTING] == "uniform" else count,
        {},
    )
    return Message(fitres_to_recorddict(result, True), reply_to=message)


def _in_order(record: ArrayRecord, names: Sequence[str]) -> Parameters:
    """The arrays in the order of ``names``, in double precision for their rounding."""
    arrays = [record[name].numpy().astype(np.float64) for name in names]
    for name, array in zip(names, arrays):
        if not (np.abs(array) <= LARGEST).all():
            raise UpdateError(f"{name} holds NaN, or values beyond {LARGEST:g}")
    return ndarrays_to_parameters(arrays)


client_app = make_client_app(mods=[secaggplus_mod, in_former_words])
server_app = ServerApp()


def _main(grid: Grid, context: Context) -> None:
    serve(SecureFedClip, grid, context)


server_app.main()(_main)
