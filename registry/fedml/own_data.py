"""Cross-silo with data of the clients' own: ``registry/common/server.py``'s rounds.

FedML's own managers open the data of all clients in each process.  Here its messages
carry the requests and answers that the other hosts carry.  Imports fedml: reached
through ``fedml_host``.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from fedml.core.distributed.communication.message import Message
from fedml.cross_silo.server.message_define import MyMessage

from ...config.schema import RunConfig
from ...errors import ConfigError
from ...federation.rounds import RoundResult
from ..common import messages, site
from ..common.server import PATIENCE, Server
from .grpc import check_silo, deliver, undelivered
from .log import final_lines, round_line
from .private import client_settings, server_settings, site_options
from .settings import FILE, NAME, PRIVATE
from .transport import Transport

_log = logging.getLogger("fedclip")
LIMIT = 1 << 28  # bytes of a message; what an update may have is known later
_HELLO, _ASK, _ANSWER, _END = 7601, 7602, 7603, 7604  # types of FedML's messages
_STATUS = MyMessage.MSG_TYPE_C2S_CLIENT_STATUS  # of a client that opens all the data
_CHECK = MyMessage.MSG_TYPE_S2C_CHECK_CLIENT_STATUS  # of such a server
_TASK, _NUMBER, _WHO, _WHY = (
    *("fedclip_task", "fedclip_request", "fedclip_process", "fedclip_reason"),
)
_BYTES = "fedclip_bytes"
_POLL = 0.05  # seconds
_AGAIN = 5.0  # seconds between two tries to reach a client


class _Port:
    """This process's end of gRPC, and the queue of what has come."""

    def __init__(self, args: Any, clients: int, kinds: Sequence[int]) -> None:
        self.come: queue.Queue[Message] = queue.Queue()
        self.message_handler_dict = dict.fromkeys(kinds)  # what FedML's observers have
        self.transport = Transport(args, int(args.rank), clients, LIMIT)
        self.transport.add_observer(self)
        self._loop = threading.Thread(target=self.transport.handle_receive_message)
        self._loop.start()

    def receive_message(self, kind: int, message: Message) -> None:
        """Called by the transport, in its thread."""
        self.come.put(message)

    def close(self) -> None:
        """Listen no more."""
        self.transport.stop_receive_message()
        self._loop.join()


@contextmanager
def _port(args: Any, clients: int, kinds: Sequence[int]) -> Iterator[_Port]:
    port = _Port(args, clients, kinds)
    try:
        yield port
    finally:
        port.close()


def _carrying(kind: int, sender: int, to: int, data: bytes, **plain: Any) -> Message:
    message = Message(kind, sender, to)
    tensor = torch.frombuffer(bytearray(data), dtype=torch.uint8) if data else None
    message.add_params(_BYTES, {} if tensor is None else {"data": tensor})
    for key, value in plain.items():
        message.add_params(f"fedclip_{key}", value)
    return message


def _carried(message: Message) -> bytes:
    """The bytes in a message; b"" where there are none."""
    held = message.get(_BYTES)
    tensor = held.get("data") if isinstance(held, Mapping) else None
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.uint8:
        return b""
    return bytes(tensor.numpy().tobytes())


@dataclass(frozen=True)
class _Request:
    """What a client was asked; ``number`` tells its answer from a late one."""

    number: int
    task: str
    data: bytes

    def to(self, rank: str) -> Message:
        return _carrying(
            _ASK, 0, int(rank), self.data, task=self.task, request=self.number
        )


class Ranks:
    """The clients of a run by their ranks, over FedML's gRPC."""

    def __init__(self, port: _Port, clients: int) -> None:
        self._port = port
        self._names = [str(rank) for rank in range(1, clients + 1)]
        self._pool = ThreadPoolExecutor(max_workers=min(32, clients + 1))
        self._open: dict[str, _Request] = {}  # without an answer so far
        self._posted: set[str] = set()  # those of them that nobody waits for
        self._came: dict[str, bytes] = {}
        self._processes: dict[str, Any] = {}
        self._anew: list[str] = []
        self._tried: dict[str, float] = {}  # when a message did not reach a client
        self._number = 0

    def names(self) -> list[str]:
        """All that have an address."""
        return list(self._names)

    def ask(
        self,
        task: str,
        data: bytes,
        sites: Sequence[str],
        seconds: float,
        take: Callable[[str, bytes], None],
    ) -> None:
        """Hand over what comes within ``seconds``; the log names who is missing."""
        request = self._request(task, data)
        for rank in sites:
            self._posted.discard(rank)
            self._send(rank, request)
        begun = told = time.monotonic()
        waiting = set(sites)
        while waiting and (now := time.monotonic()) - begun < seconds:
            if now - told > PATIENCE:
                told, missing = now, ", ".join(sorted(waiting, key=int))
                _log.warning("waiting for rank %s since %.0f s", missing, now - begun)
            self._take(_POLL)
            for rank in sorted(waiting & self._came.keys()):
                take(rank, self._came.pop(rank))
                waiting.discard(rank)
        for rank in waiting:
            self._open.pop(rank, None)

    def post(self, task: str, data: bytes, site: str) -> None:
        """Ask without waiting."""
        self._posted.add(site)
        self._send(site, self._request(task, data))

    def come(self) -> dict[str, bytes]:
        """Answers to what was posted."""
        self._take(0.0)
        found = {rank: self._came.pop(rank) for rank in sorted(self._came)}
        self._posted -= found.keys()
        return found

    def pause(self, seconds: float) -> None:
        """Wait; what comes meanwhile is taken in."""
        self._take(seconds)

    def anew(self) -> list[str]:
        """Clients that were started again, or late."""
        self._take(0.0)
        found, self._anew = self._anew, []
        return found

    def refuse(self, site: str, reason: str) -> None:
        """The client ends with the line."""
        self._pool.submit(self._deliver, site, _ending(site, reason))

    def end(self) -> None:
        """The run is over: all clients end."""
        for rank in self._names:
            self._pool.submit(self._deliver, rank, _ending(rank, ""))
        self.close()

    def close(self) -> None:
        """Wait for what is being sent."""
        self._pool.shutdown(wait=True, cancel_futures=False)

    def _request(self, task: str, data: bytes) -> _Request:
        self._number += 1
        return _Request(self._number, task, data)

    def _send(self, rank: str, request: _Request) -> None:
        self._open[rank] = request
        self._pool.submit(self._deliver, rank, request.to(rank))

    def _deliver(self, rank: str, message: Message) -> None:
        """In a thread of the pool."""
        try:
            self._port.transport.send_message(message)
        except Exception as error:
            if not undelivered(error):
                _log.exception("a message to rank %s", rank)
                return
            if message.get_type() == _ASK:
                self._tried[rank] = time.monotonic()
        else:
            self._tried.pop(rank, None)

    def _take(self, seconds: float) -> None:
        """Take in what has come, waiting for the first of it at most ``seconds``."""
        until = time.monotonic() + seconds
        while True:
            try:
                message = self._port.come.get(
                    timeout=max(0.0, until - time.monotonic()) or 1e-4
                )
            except queue.Empty:
                break
            until = 0.0
            self._heard(str(message.get_sender_id()), message)
        now = time.monotonic()
        for rank, last in [*self._tried.items()]:
            if now - last > _AGAIN and rank in self._open:
                self._tried[rank] = now
                self._pool.submit(self._deliver, rank, self._open[rank].to(rank))

    def _heard(self, rank: str, message: Message) -> None:
        if message.get_type() == _STATUS:
            line = (
                f"{FILE}: each client of this run has data of its own, and this "
                f"process opens all of them: set {PRIVATE}: true there"
            )
            _log.error("rank %s refused: %s", rank, line)
            self.refuse(rank, line)
        elif message.get_type() == _HELLO:
            self._greeted(rank, message.get(_WHO))
        elif (request := self._open.get(rank)) is None or request.number != message.get(
            _NUMBER
        ):
            _log.warning("late answer of rank %s left out", rank)
        else:
            del self._open[rank]
            self._came[rank] = _carried(message)

    def _greeted(self, rank: str, process: Any) -> None:
        before = self._processes.get(rank)
        self._processes[rank] = process
        if process == before:
            return
        if before is not None:
            _log.warning("rank %s is back", rank)
        if rank in self._open:  # it was asked before it could hear
            self._pool.submit(self._deliver, rank, self._open[rank].to(rank))
        else:
            self._anew.append(rank)


def _ending(rank: str, reason: str) -> Message:
    return _carrying(_END, 0, int(rank), b"", reason=reason)


class _Federation(Server):
    """With FedML's lines in the log, and its server's own held-out domain."""

    word = "rank"
    alone = True

    def closed(self, result: RoundResult) -> None:
        """FedML's line of a round."""
        logging.info(round_line(result, self.config.train.rounds))

    def concluded(self, summary: Mapping[str, Any], directory: Path | None) -> None:
        """The table at the end."""
        for line in final_lines(summary):
            logging.info(line)


def serve(args: Any, server_aggregator: Any = None) -> None:
    """All rounds over the clients of ``args``; raises FedClipError."""
    _refuse_own(server_aggregator, "server_aggregator")
    config, out, sampling = server_settings(args)
    check_silo(args)
    count = args.client_num_in_total
    with _port(args, count, (_HELLO, _ANSWER, _STATUS)) as port:
        ranks = Ranks(port, count)
        try:
            _Federation(config, out, sampling, ranks, logging.log).play()
            ranks.end()
        finally:
            ranks.close()


class _Silo(site.Site):
    """A client; ``own`` names its data."""

    no_place = f"no place: set {NAME}"

    def settings(self, shared: str) -> tuple[RunConfig, bool]:
        """The server's configuration, over data that nobody else has."""
        return client_settings(shared, dict(self.own)), True


def join(args: Any, model_trainer: Any = None) -> None:
    """Answer the server until the run is over; raises FedClipError."""
    _refuse_own(model_trainer, "client_trainer")
    rank = int(args.rank)
    silo, kept, asked = _Silo(str(rank), site_options(args)), b"", 0
    check_silo(args)
    with _port(args, 1, (_ASK, _END, _CHECK)) as port:
        send = port.transport.send_message
        who = uuid.uuid4().hex
        deliver(send, _carrying(_HELLO, rank, 0, b"", process=who), args)
        while True:
            message = port.come.get()
            while not port.come.empty():  # what was asked before is late now
                message = port.come.get()
            if message.get_type() != _ASK:
                _check_end(message)
                return
            task, asked = str(message.get(_TASK)), message.get(_NUMBER)
            answer, kept = silo.answer(task, _carried(message), kept)
            logging.info(f"FedCLIP rank {rank} answered: {task}")
            sent = _carrying(_ANSWER, rank, 0, answer, request=asked)
            deliver(send, sent, args)
            line = messages.failure_in(answer, "this client")
            if line and task == messages.INTRODUCE:
                raise ConfigError(line)
            if line:
                logging.error(f"fedclip: {line}")


def _check_end(message: Message) -> None:
    if message.get_type() == _CHECK:
        raise ConfigError(
            f"the server opens the data of all clients, this one has data of its own: "
            f"set {PRIVATE}: true in the {FILE} of all, or give it the data of all"
        )
    if reason := message.get(_WHY):
        said = ascii(messages.shown(str(reason)))[1:-1]
        raise ConfigError(f"the server refuses this client: {said}")


def _refuse_own(role: Any, name: str) -> None:
    if role is not None:
        raise ConfigError(
            f"{name}: a role of your own works where all processes open one data set; "
            f"with clients' own data ({PRIVATE}) leave it out"
        )
