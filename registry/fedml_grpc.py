"""gRPC under FedML's cross-silo mode: addresses, ports, and the queue of messages.

FedML's receive loop asks its queue without pause and keeps a core busy; here it waits.
"""

from __future__ import annotations

import csv
import errno
import queue
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .fedml_settings import FILE

_POLL = 0.05  # seconds
_IP_HEAD = "eid,rank,grpc_server_ip,grpc_server_port"


class Inbox(queue.Queue):  # type: ignore[type-arg]
    """FedML's queue of received bytes: counts them, and waits where FedML spins."""

    def watch(self, idle: Callable[[], None]) -> None:
        """Call ``idle`` whenever no message came for a while."""
        self.received = 0
        self._idle = idle

    def qsize(self) -> int:
        """How many messages there are, after a short wait where there is none."""
        with self.not_empty:
            if not self._qsize():
                self.not_empty.wait(_POLL)
            size = self._qsize()
        if not size:
            self._idle()
        return size

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """The next message; its size is in ``received``."""
        item = super().get(block, timeout)
        self.received = len(item)
        return item


def watch_inbox(manager: Any, idle: Callable[[], None]) -> Inbox | None:
    """Make an inbox of the queue in use: a message may be in it already."""
    servicer = getattr(manager.com_manager, "grpc_servicer", None)
    if servicer is None:
        return None
    inbox: Any = servicer.message_q
    inbox.__class__ = Inbox
    inbox.watch(idle)
    return inbox  # type: ignore[no-any-return]


def undelivered(error: Exception) -> bool:
    """Whether a message could not be delivered; grpc may not be installed."""
    return type(error).__module__.partition(".")[0] == "grpc"


def check_silo(args: Any) -> None:
    """Raise ConfigError where scenario, addresses or the own port cannot be used."""
    if args.scenario != "horizontal":
        raise ConfigError(
            f"{FILE}: scenario: {args.scenario}: FedCLIP runs with horizontal"
        )
    if args.backend != "GRPC":
        return
    path = Path(str(getattr(args, "grpc_ipconfig_path", None)))
    if not path.is_file():
        raise ConfigError(
            f"{FILE}: grpc_ipconfig_path: {path}: no such file; expected a CSV with "
            f"the head {_IP_HEAD}, a line for the server (0) and for each client"
        )
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not rows or not set(_IP_HEAD.split(",")) <= set(rows[0]):
        raise ConfigError(f"{path}: expected lines under the head {_IP_HEAD}")
    known = {row["eid"]: row for row in rows}
    for place in range(args.worker_num + 1):
        if str(place) not in known:
            raise ConfigError(f"{path}: no line for rank {place}")
    own = known[str(args.rank)]
    _check_port(path, own["grpc_server_ip"], own["grpc_server_port"])


def _check_port(path: Path, host: str, port: str) -> None:
    """gRPC would share the port of a process left behind, and lose messages."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except ValueError as error:
        raise ConfigError(f"{path}: grpc_server_port: {port!r} is no port") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{path}: {host}:{port} is in use: stop the process that holds it, "
                "or name another port"
            ) from error
