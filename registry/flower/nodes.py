"""The nodes of a Flower grid: who is connected, what they are, who trains."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from ...config.schema import RunConfig
from ...errors import RunError, UpdateError
from ...federation.build import participants
from ...server.privacy import drawing_seed
from ...wire.spool import Spool
from ...wire.update import ClientUpdate
from ..common.options import shared_text
from ..common.roster import Card, Roster, draw, read_card
from . import records
from .options import Sampling

_log = logging.getLogger("flwr")
MOST_ASKED = 1_000  # connected nodes that are all asked what they are
_PAUSE = 1.0  # seconds between two looks for nodes
_END = 200  # characters
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass
class Phase:
    """The messages of one phase of a round, each with the client that it went to."""

    name: str = ""
    sent: list[tuple[Message, str]] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0
    updates: dict[str, ClientUpdate] = field(default_factory=dict)  # put on the disk

    @property
    def clients(self) -> list[str]:
        """Names of the clients that were asked."""
        return [name for _, name in self.sent]

    def put_away(
        self,
        reply: Message,
        read: Callable[[str, RecordDict], ClientUpdate],
        spool: Spool,
    ) -> None:
        """Keep the update of a reply in ``spool``, and leave the reply without it."""
        name = self._names.get(reply.metadata.reply_to_message_id)
        if name is None or reply.has_error():
            return
        self.bytes_up += records.count_bytes([reply])
        (self.updates[name],) = spool.keep([read(name, reply.content)])
        for key in list(reply.content.array_records):
            del reply.content[key]

    @cached_property
    def _names(self) -> dict[str, str]:
        """Message -> client; once the messages are sent, and so have ids."""
        return {m.metadata.message_id: name for m, name in self.sent}

    def sound(
        self, replies: Iterable[Message], timeout: float
    ) -> Iterator[tuple[str, RecordDict]]:
        """Client and content of every reply; the log names those who gave none."""
        answers = {reply.metadata.reply_to_message_id: reply for reply in replies}
        for message, name in self.sent:
            reply = answers.get(message.metadata.message_id)
            if reply is None:
                reason = f"no answer within {timeout:g} s"
            elif reply.has_error():
                reason = one_line(reply)
            else:
                if name not in self.updates:
                    self.bytes_up += records.count_bytes([reply])
                yield name, reply.content
                continue
            _log.error("client %s left out of %s: %s", name, self.name, reason)


def one_line(reply: Message) -> str:
    """Why a reply holds nothing: of a long traceback its two ends."""
    text = " ".join(_COLOURS.sub("", str(reply.error.reason)).split())
    if len(text) > 2 * _END:
        text = f"{text[:_END]} ... {text[-_END:]}"
    return f"{text} (Flower's error code {reply.error.code})"


class Nodes:
    """The connected nodes of a run, asked once each what they are."""

    def __init__(self, config: RunConfig, sampling: Sampling) -> None:
        self.config = config
        self.sampling = sampling
        self.timeout = sampling.round_timeout  # seconds
        self.roster: Roster[int] = Roster(_log)
        self._begun = False
        self.drawn_from = 0  # clients, or nodes, that the last draw was from
        self.asks_all = True

    @property
    def _patience(self) -> float:
        return self.timeout if self._begun else self.sampling.start_timeout

    def first(self, grid: Grid, share: float, least: int) -> dict[int, Card]:
        """Node -> card of those who are asked before the first round.

        All that are connected; of more than :data:`MOST_ASKED` those that it draws.
        Raises RunError where a first round cannot begin.
        """
        nodes = self._connected(grid)
        self.asks_all = {"all": True, "drawn": False}.get(
            self.sampling.ask_nodes, len(nodes) <= MOST_ASKED
        )
        if self.asks_all:
            cards = self._clients(grid, nodes)
            self.drawn_from = len(cards)
            return cards
        _log.info(
            "fedclip: %d nodes are connected: each round asks those that it draws",
            len(nodes),
        )
        return self._drawn(grid, nodes, share, 1, least)

    def _clients(self, grid: Grid, nodes: list[int]) -> dict[int, Card]:
        """Node -> card of the accepted clients among ``nodes``, in client order.

        Raises RunError where a first round cannot begin.
        """
        strangers = self.roster.strangers(nodes)
        if strangers:
            self._ask(grid, strangers)
        accepted = self.roster.clients(nodes)
        if not (accepted or self._begun):
            why = "; ".join(self.roster.refusals()) or "no node answered"
            raise RunError(f"no client can take part: {why}")
        self._begun = True
        return accepted

    def draw(
        self, grid: Grid, share: float, round_number: int, least: int = 1
    ) -> dict[int, str]:
        """Node -> name of a ``share`` of the clients: the same for the same seed."""
        nodes = self._connected(grid)
        if not self.asks_all:
            cards = self._drawn(grid, nodes, share, round_number, least)
            return {node: card.name for node, card in cards.items()}
        cards = self._clients(grid, nodes)
        if cards:
            self.drawn_from = len(cards)
        return draw(cards, self.config, share, round_number, least)

    def _drawn(
        self, grid: Grid, nodes: list[int], share: float, round_number: int, least: int
    ) -> dict[int, Card]:
        """Node -> card of a ``share`` of ``nodes``, of whom no other is asked.

        The same for the same seed and nodes; who is refused is missing in the round.
        """
        if not nodes:
            return {}
        self.drawn_from = len(nodes)
        share = min(1.0, max(share, least / len(nodes)))
        seed = drawing_seed(self.config.privacy, self.config.seeds[0])
        chosen = participants(sorted(nodes), share, seed, round_number)
        return self._clients(grid, chosen)

    def address(
        self,
        kind: str,
        arrays: ArrayRecord,
        config: Mapping[str, Any],
        round_number: int,
        clients: Mapping[int, str],
    ) -> Phase:
        """The messages that carry ``arrays`` to ``clients``."""
        content = RecordDict(
            {records.ARRAYS: arrays, records.CONFIG: self._config(config, round_number)}
        )
        sent = [(Message(content, node, kind), name) for node, name in clients.items()]
        down = records.count_bytes(message for message, _ in sent)
        name = "round" if kind == MessageType.TRAIN else "the evaluation of round"
        return Phase(f"{name} {round_number}", sent, down)

    def _config(self, config: Mapping[str, Any], number: int) -> ConfigRecord:
        ours = {records.ROUND: number, records.SHARED: shared_text(self.config)}
        return ConfigRecord({**config, **ours})

    def _connected(self, grid: Grid) -> list[int]:
        least, reported = self.sampling.min_available_nodes, -1
        patience = self._patience
        end = time.monotonic() + patience
        while len(nodes := list(grid.get_node_ids())) < least:
            if time.monotonic() > end:
                line = (
                    f"{len(nodes)} of {least} nodes connected in {self._patience:g} s"
                )
                if not self._begun:
                    raise RunError(f"{line}: start more SuperNodes")
                _log.warning("fedclip: %s: going on", line)
                break
            if len(nodes) != reported:
                reported = len(nodes)
                _log.info(
                    "fedclip: waiting for nodes: %d of %d connected (a simulation: "
                    "--federation-config 'num-supernodes=%d')",
                    reported, least, least,
                )  # fmt: skip
            time.sleep(_PAUSE)
        return nodes

    def _ask(self, grid: Grid, nodes: list[int]) -> None:
        content = RecordDict({records.CONFIG: self._config({}, 0)})
        queries = [Message(content, node, MessageType.QUERY) for node in nodes]
        replies = grid.send_and_receive(queries, timeout=self._patience)
        answers = {reply.metadata.reply_to_message_id: reply for reply in replies}
        for message, node in zip(queries, nodes):
            reply = answers.get(message.metadata.message_id)
            if reply is None:
                _log.warning("node %d did not say what it is: asked again later", node)
            elif reply.has_error():
                self.roster.refuse(node, one_line(reply))
            else:
                try:
                    self.roster.add(node, read_card(reply.content[records.CONFIG]))
                except (UpdateError, KeyError) as error:
                    self.roster.refuse(node, str(error))
