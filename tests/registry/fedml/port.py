"""A real port of FedML's gRPC: who listens, who sends, and pickles that would run."""

from __future__ import annotations

import builtins
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

import grpc
from fedml.core.distributed.communication.grpc.grpc_comm_manager_pb2 import CommRequest
from fedml.core.distributed.communication.grpc.grpc_comm_manager_pb2_grpc import (
    gRPCCommManagerStub,
)
from fedml.core.distributed.communication.message import Message

from fedclip_plugin.registry.fedml.grpc import read_addresses
from fedclip_plugin.registry.fedml.settings import bind
from fedclip_plugin.registry.fedml.transport import Transport
from fedclip_plugin.wire.message import size_limit
from tests.registry.fedml.runs import namespace, write_addresses
from tests.waiting import SECONDS


def message(sender: int = 1, receiver: int = 0, **params: Any) -> Message:
    found = Message(5, sender, receiver)
    for key, value in params.items():
        found.add_params(key, value)
    return found


class Observer:
    """A manager of FedML's as the transport sees it."""

    def __init__(self) -> None:
        self.message_handler_dict = {0: None, 5: None}
        self.got: list[Message] = []
        self.here = threading.Event()

    def receive_message(self, kind: int, found: Message) -> None:
        if kind:
            self.got.append(found)
            self.here.set()


@contextmanager
def listening(features: Path, folder: Path, rank: int, **more: Any) -> Iterator[Any]:
    """A transport whose loop runs in a thread, its observer, and its address."""
    path = folder / "ip.csv"
    if not path.exists():
        write_addresses(path, 3)
    args = namespace(features, backend="GRPC", grpc_ipconfig_path=str(path), **more)
    args.rank = rank
    args.client_id_list = "[1, 2]" if rank == 0 else f"[{rank}]"
    address = read_addresses(args)[rank].reach  # the port is free: it is tried
    limit = size_limit(bind(args).setup.fed.first)
    transport, observer = Transport(args, rank, 2, limit), Observer()
    transport.add_observer(observer)
    loop = threading.Thread(target=transport.handle_receive_message)
    loop.start()
    try:
        yield transport, observer, address
    finally:
        transport.stop_receive_message()
        loop.join(SECONDS)


def send(address: str, data: bytes) -> None:
    options = [("grpc.enable_http_proxy", 0), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        gRPCCommManagerStub(channel).sendMessage(
            CommRequest(client_id=1, message=data), timeout=SECONDS
        )


class Runs:
    """An object whose pickle calls ``call`` of ``args`` when it is loaded."""

    def __init__(self, call: Any, *args: Any) -> None:
        self.reduced = (call, args)

    def __reduce__(self) -> Any:
        return self.reduced


def attacks(marker: Path) -> dict[str, bytes]:
    """Pickles that would create ``marker``, each by another road."""
    touch = f"import os; os.system('touch {marker}')"
    hidden = message()
    hidden.add_params("model_params", Runs(os.system, f"touch {marker}"))
    nested = Runs(getattr, Runs(builtins.__import__, "os"), "system")
    old = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    return {
        "os.system": pickle.dumps(Runs(os.system, f"touch {marker}")),
        "builtins.exec": pickle.dumps(Runs(builtins.exec, touch)),
        "builtins.eval": pickle.dumps(Runs(builtins.eval, f"open('{marker}', 'w')")),
        "inside a Message of FedML's": pickle.dumps(hidden),
        "getattr of an import": pickle.dumps([nested, f"touch {marker}"]),
        "open": pickle.dumps(Runs(builtins.open, str(marker), "w")),
        "torch's own rebuild": pickle.dumps(message(w=torch.zeros(2))),
        "protocol 0": old,
    }


def worked(data: bytes) -> bool:
    """Whether the pickle does what the test says, loaded by pickle itself."""
    pickle.loads(data)
    return True
