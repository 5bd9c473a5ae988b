"""gRPC under FedML's cross-silo mode: addresses, ports and certificates, checked."""

from __future__ import annotations

import csv
import errno
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...config.fields import as_path
from ...errors import ConfigError
from .settings import FILE, PICKLE, TLS

_IP_HEAD = "eid,rank,grpc_server_ip,grpc_server_port"


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
    read_tls(args)
    path, known = _rows(args)
    for place in range(args.worker_num + 1):
        if place not in known:
            raise ConfigError(f"{path}: no line for rank {place}")
    own = known[int(args.rank)]
    _check_port(path, own["grpc_server_ip"], own["grpc_server_port"])


def read_addresses(args: Any) -> dict[int, Address]:
    """The addresses of all processes, by rank; raises ConfigError."""
    _, rows = _rows(args)
    found = {}
    for rank, row in rows.items():
        host, port = row["grpc_server_ip"], row["grpc_server_port"]
        outside = row.get("ingress_ip") or host
        found[rank] = Address(f"{host}:{port}", f"{outside}:{port}")
    return found


def _rows(args: Any) -> tuple[Path, dict[int, dict[str, str]]]:
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
    try:
        return path, {int(row["eid"]): row for row in rows}
    except ValueError as error:
        raise ConfigError(f"{path}: eid must be a whole number ({error})") from error


def read_tls(args: Any) -> Tls | None:
    """The certificates of a run with TLS; None where no key asks for it.

    ``{rank}`` in a path stands for the own rank.  Raises ConfigError for a missing key
    or file.
    """
    given = {key: getattr(args, key, None) for key in TLS}
    if not any(given.values()):
        return None
    texts = []
    for key, name in given.items():
        if not name:
            raise ConfigError(f"{FILE}: {key} is missing: TLS needs {', '.join(TLS)}")
        path = as_path(str(name).replace("{rank}", str(args.rank)))
        try:
            texts.append(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{FILE}: {key}: {path}: {error.strerror}") from error
        if b"-----BEGIN " not in texts[-1]:
            raise ConfigError(f"{FILE}: {key}: {path} is not a PEM file")
    return Tls(*texts)


def _check_port(path: Path, host: str, port: str) -> None:
    """gRPC would share the port of a process left behind, and lose messages."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
    except ValueError as error:
        raise ConfigError(
            f"{path}: grpc_server_port: {port!r} is not a port"
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"{path}: {host}:{port} is in use: stop the process that holds it, "
                "or name another port"
            ) from error
