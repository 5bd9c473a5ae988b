"""One process's end of FedML's gRPC: the same RPC, without FedML's pickles.

FedML's own loads whatever arrives, asks its queue without pause, knows no TLS, and
takes messages of a gigabyte.  Imports fedml: reached through ``fedml_host``.
"""

from __future__ import annotations

import json
import logging
import queue
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc  # type: ignore[import-untyped]
from fedml.core.distributed.communication.base_com_manager import (
    BaseCommunicationManager,
)
from fedml.core.distributed.communication.constants import CommunicationConstants
from fedml.core.distributed.communication.grpc.grpc_comm_manager_pb2 import (
    CommRequest,
    CommResponse,
)
from fedml.core.distributed.communication.grpc.grpc_comm_manager_pb2_grpc import (
    add_gRPCCommManagerServicer_to_server,
    gRPCCommManagerStub,
)
from fedml.core.distributed.communication.message import Message

from ...errors import UpdateError
from ...wire.message import MARGIN, size_limit
from .grpc import read_addresses, read_tls
from .messages import decode_message, encode_message
from .settings import bind

_log = logging.getLogger("fedclip")
_POLL = 0.05  # seconds
_WAITING = 4  # messages of each client
_READY = CommunicationConstants.MSG_TYPE_CONNECTION_IS_READY


class Transport(BaseCommunicationManager):  # type: ignore[misc]
    """Receives for this rank and sends to the others, by ``grpc_ipconfig_path``.

    ``idle`` is called whenever no message came for a while.  ``received`` and ``sent``
    are the bytes of the last message, ``limit`` the most of one.  What cannot be read
    is refused with a line in the log, and to its sender as INVALID_ARGUMENT.
    """

    def __init__(self, args: Any, rank: int, clients: int, limit: int) -> None:
        self.rank = rank
        self.idle: Callable[[], None] = lambda: None
        self.received = self.sent = 0
        self._senders = set(json.loads(args.client_id_list)) if rank == 0 else {0}
        self._addresses = read_addresses(args)
        self._tls = read_tls(args)
        self._limit = limit
        self._options = [
            ("grpc.max_send_message_length", -1),
            ("grpc.max_receive_message_length", self._limit + MARGIN),
            ("grpc.enable_http_proxy", 0),
            ("grpc.so_reuseport", 0),
        ]
        self._observers: list[Any] = []
        self._inbox: queue.Queue[tuple[Message, int]] = queue.Queue(_WAITING * clients)
        self._running = True
        self._server = self._serve(clients)

    def _serve(self, clients: int) -> Any:
        server = grpc.server(
            ThreadPoolExecutor(max_workers=clients + 1),
            options=self._options,
            maximum_concurrent_rpcs=_WAITING * (clients + 1),
        )
        add_gRPCCommManagerServicer_to_server(self, server)
        own = self._addresses[self.rank].listen
        if self._tls is None:
            server.add_insecure_port(own)
        else:
            credentials = grpc.ssl_server_credentials(
                [(self._tls.key, self._tls.certificate)],
                root_certificates=self._tls.authority,
                require_client_auth=True,
            )
            server.add_secure_port(own, credentials)
        server.start()
        return server

    # ------------------------------------------------------------------ the RPC

    def sendMessage(self, request: Any, context: Any) -> Any:  # noqa: N802 (FedML's)
        """Take a message in, if it is one; runs in a thread of gRPC's."""
        data, where = request.message, f"message from {context.peer()}"
        try:
            message = decode_message(data, where, self.rank, self._senders, self._limit)
            if self._tls is not None:
                _check_name(message.get_sender_id(), context, where)
        except UpdateError as error:
            _log.warning("%s: refused", error)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        try:
            self._inbox.put_nowait((message, len(data)))
        except queue.Full:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many messages wait")
        return CommResponse()

    def handleReceiveMessage(self, request: Any, context: Any) -> Any:  # noqa: N802
        """FedML's second RPC, which nobody calls."""
        return CommResponse()

    # ------------------------------------------------------------------ FedML's side

    def add_observer(self, observer: Any) -> None:
        """Deliver messages to ``observer``, a manager of FedML's."""
        self._observers.append(observer)

    def remove_observer(self, observer: Any) -> None:
        """Deliver no more to ``observer``."""
        self._observers.remove(observer)

    def send_message(self, msg: Message) -> None:
        """Send to the receiver's address; raises grpc.RpcError if it is not there."""
        data = encode_message(msg)
        url = self._addresses[int(msg.get_receiver_id())].reach
        with self._channel(url) as channel:
            request = CommRequest(client_id=self.rank, message=data)
            gRPCCommManagerStub(channel).sendMessage(request)
        self.sent = len(data)

    def _channel(self, url: str) -> Any:
        if self._tls is None:
            return grpc.insecure_channel(url, options=self._options)
        credentials = grpc.ssl_channel_credentials(
            self._tls.authority, self._tls.key, self._tls.certificate
        )
        return grpc.secure_channel(url, credentials, options=self._options)

    def handle_receive_message(self) -> None:
        """Deliver what comes, until :meth:`stop_receive_message`."""
        self._deliver(Message(_READY, self.rank, self.rank))
        while self._running:
            try:
                message, self.received = self._inbox.get(timeout=_POLL)
            except queue.Empty:
                self.idle()
            else:
                self._deliver(message)

    def stop_receive_message(self) -> None:
        """Close the port, and end the loop."""
        self._server.stop(None)
        self._running = False

    def _deliver(self, message: Message) -> None:
        kind = message.get_type()
        own = message.get_sender_id() == self.rank
        for observer in self._observers:
            if kind in observer.message_handler_dict and (own or kind != _READY):
                observer.receive_message(kind, message)
            else:
                sender = message.get_sender_id()
                _log.warning("message of rank %d: type %d is refused", sender, kind)


def _check_name(sender: int, context: Any, where: str) -> None:
    """Whether the certificate that a message came with is the sender's own."""
    names = context.auth_context().get("x509_common_name", [])
    if f"rank-{sender}".encode() not in names:
        raise UpdateError(
            f"{where}: says that it is rank {sender}, its certificate is of {names}"
        )


class OverGrpc:
    """For FedML's managers: gRPC by a transport that loads no pickle."""

    args: Any
    rank: int
    size: int
    backend: str
    com_manager: Any

    def _init_manager(self) -> None:
        if self.backend == "GRPC":
            limit = size_limit(bind(self.args).setup.fed.first)
            self.com_manager = Transport(self.args, self.rank, self.size, limit)
            self.com_manager.add_observer(self)
        else:
            super()._init_manager()  # type: ignore[misc]

    @property
    def transport(self) -> Transport | None:
        """The transport over gRPC; None for another backend."""
        return self.com_manager if self.backend == "GRPC" else None
