"""gRPC under FedML's cross-silo mode: addresses, ports and certificates, checked."""

from __future__ import annotations

import csv
import errno
import functools
import logging
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ...config.fields import PATH, parse
from ...config.paths import read_text
from ...errors import ConfigError, one_line
from .settings import FILE, PICKLE, TLS, value

_log = logging.getLogger("fedclip")
_IP_HEAD = "eid,rank,grpc_server_ip,grpc_server_port"
SERVER_SECONDS = 120.0  # for which a client waits for its server
_RETRY = 0.5  # seconds
_ANYWHERE = ("0.0.0.0", "::")
KNOWN_WITHIN = 20.0  # seconds, for the names of hosts that start together


@dataclass(frozen=True)
class Address:
    """Where a process listens, and where the others reach it, as ``host:port``."""

    listen: str
    reach: str


@dataclass(frozen=True)
class Tls:
    """PEM texts: who signs, and the own certificate (``CN=rank-<rank>``) and key."""

    authority: bytes
    certificate: bytes
    key: bytes


def undelivered(error: Exception) -> bool:
    """Whether a message could not be delivered; grpc may not be installed."""
    return type(error).__module__.partition(".")[0] == "grpc"


def refusal(error: Any) -> str | None:
    """Why the receiver refused a message; None where it was another failure."""
    code = getattr(error, "code", lambda: None)()
    refused = getattr(code, "name", None) == "INVALID_ARGUMENT"
    return str(error.details()) if refused else None


def deliver(send: Callable[[Any], None], message: Any, args: Any) -> None:
    """Send to a server, which may not be up yet; raises ConfigError."""
    until = time.monotonic() + SERVER_SECONDS
    while True:
        try:
            send(message)
            return
        except Exception as error:
            if not undelivered(error):
                raise
            if reason := refusal(error):
                raise ConfigError(f"the server refused a message: {reason}") from error
            if time.monotonic() > until:
                raise ConfigError(
                    f"the server (rank 0 of {args.grpc_ipconfig_path}) could not "
                    f"be reached for {SERVER_SECONDS:.0f} s: is it running?"
                ) from error
        time.sleep(_RETRY)


def count_processes(args: Any) -> int:
    """Lines of the CSV with the addresses: the server's and each client's."""
    return len(_rows(args)[1])


def check_silo(args: Any) -> None:
    """Raise ConfigError where scenario, addresses or the own port cannot be used."""
    if args.scenario != "horizontal":
        raise ConfigError(
            f"{FILE}: scenario: {args.scenario}: FedCLIP runs with horizontal"
        )
    if args.backend != "GRPC":
        if any(getattr(args, key, None) for key in TLS):
            raise ConfigError(f"{FILE}: {TLS[0]} works with backend: GRPC")
        if getattr(args, PICKLE, None) is not True:
            raise ConfigError(
                f"{FILE}: backend: {args.backend}: its messages are pickles, which can "
                "run code where they are read: use backend: GRPC, or set "
                f"{PICKLE}: true where nobody else can write to it"
            )
        return
    path, addresses = _rows(args)
    workers = value(args, "worker_num")  # of a run with fewer keys known later
    for place in {int(args.rank), *range(workers + 1 if workers else 0)}:
        if place not in addresses:
            raise ConfigError(f"{path}: no line for rank {place}")
    read_tls(args)  # whose files are named by the rank
    _listening(path, *addresses[int(args.rank)][:2])


def read_addresses(args: Any) -> dict[int, Address]:
    """The addresses of all processes, by rank; raises ConfigError."""
    path, rows = _rows(args)
    addresses = {}
    for rank, (host, port, outside) in rows.items():
        own = _listening(path, host, port) if rank == int(args.rank) else host
        if own != host:
            _log.warning("%s is not an address of this machine: listening on all", host)
        if outside in _ANYWHERE:
            _log.warning(
                "%s: rank %d: %s is where it listens, which leads others to their own "
                "machine: a column ingress_ip says where they reach it",
                *(path, rank, outside),
            )
        addresses[rank] = Address(_joined(own, port), _joined(outside, port))
    return addresses


def _joined(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _rows(args: Any) -> tuple[Path, dict[int, tuple[str, int, str]]]:
    """The CSV's path, and rank -> (own host, port, host where others reach it)."""
    text = getattr(args, "grpc_ipconfig_path", None)
    path = value(args, "grpc_ipconfig_path", PATH)
    if path is None or not Path(path).is_file():
        raise ConfigError(
            f"{FILE}: grpc_ipconfig_path: {text}: no such file; expected a CSV with "
            f"the head {_IP_HEAD}, a line for the server (0) and for each client"
        )
    try:
        lines = read_text(path).splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path}: {one_line(error)}") from error
    lines = [line for line in lines if line.strip(" ,;")]
    comma = ";" if lines and ";" in lines[0] else ","  # as a spreadsheet saves it
    head, *rows = (
        [c.strip() for c in row] for row in csv.reader(lines or [""], delimiter=comma)
    )
    if not rows or not set(_IP_HEAD.split(",")) <= set(head):
        raise ConfigError(f"{path}: expected lines under the head {_IP_HEAD}")
    addresses: dict[int, tuple[str, int, str]] = {}
    for cells in rows:
        row = dict(zip_longest(head, cells[: len(head)], fillvalue=""))
        where = f"{path}: {comma.join(cells)}"
        rank = _whole(row["eid"], f"{where}: eid", 0, sys.maxsize)
        port = _whole(row["grpc_server_port"], f"{where}: grpc_server_port", 1, 65535)
        host = row["grpc_server_ip"].strip("[]")
        outside = row.get("ingress_ip", "").strip("[]") or host
        if rank in addresses:
            raise ConfigError(f"{where}: a second line for rank {rank}; take one out")
        if (outside, port) in [(o, p) for _, p, o in addresses.values()]:
            raise ConfigError(
                f"{where}: another line has this address: each process needs its own"
            )
        addresses[rank] = host, port, outside
        for each in {host, outside}:
            _check_host(each, where)
    return Path(path), addresses


def _whole(text: str, where: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
        to = f"{low} to {high}" if high < sys.maxsize else f">= {low}"
        raise ConfigError(f"{where}: {text!r}: expected a whole number {to}")
    return int(text)


@functools.cache  # the lines are read twice
def _check_host(host: str, where: str) -> None:
    """Raise ConfigError for what is neither an address nor the name of a known host.

    A name may be known a little later, where all processes start at once.
    """
    end = time.monotonic() + KNOWN_WITHIN
    while True:
        try:
            if not host or host != "".join(host.split()):
                raise OSError(None, "expected a host")
            socket.getaddrinfo(host, None)
            return
        except (OSError, UnicodeError) as error:
            if host and time.monotonic() < end and isinstance(error, socket.gaierror):
                time.sleep(1.0)
                continue
            reason = getattr(error, "strerror", None) or one_line(error)
            raise ConfigError(f"{where}: host {host!r}: {reason}") from error


def read_tls(args: Any) -> Tls | None:
    """The certificates of a run with TLS; None where no key asks for it.

    ``{rank}`` in a path stands for the own rank.  Raises ConfigError for a missing key
    or file.
    """
    files = {key: getattr(args, key, None) for key in TLS}
    if not any(files.values()):
        return None
    texts = []
    for key, name in files.items():
        if not name:
            raise ConfigError(f"{FILE}: {key} is missing: TLS needs {', '.join(TLS)}")
        text = str(name).replace("{rank}", str(args.rank))
        path = Path(parse(PATH, text, f"{FILE}: {key}: {name}"))
        try:
            texts.append(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{FILE}: {key}: {path}: {error.strerror}") from error
        if b"-----BEGIN " not in texts[-1]:
            raise ConfigError(f"{FILE}: {key}: {path} is not a PEM file")
    return Tls(*texts)


def _listening(path: Path, host: str, port: int) -> str:
    """Where a process whose line says ``host`` listens: there, else on all addresses.

    The address by which others know a machine is often not its own (clouds, NAT).
    Raises ConfigError for a port in use: gRPC would share that of a process left
    behind, and lose messages.
    """
    anywhere = "::" if ":" in host else "0.0.0.0"
    for place in (host, anywhere):
        family, kind, _, _, address = socket.getaddrinfo(
            place, port, type=socket.SOCK_STREAM
        )[0]
        try:
            with socket.socket(family, kind) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
            return place
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL and place == host:
                continue
            reason = (
                "is in use: stop the process that holds it, or name another port"
                if error.errno == errno.EADDRINUSE
                else f"cannot be listened on: {error.strerror}"
            )
            raise ConfigError(f"{path}: {_joined(place, port)} {reason}") from error
    raise AssertionError  # one of the two returned or raised
