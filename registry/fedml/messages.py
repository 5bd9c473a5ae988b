"""FedML's messages as bytes without pickle: safetensors, JSON, and a checksum.

FedML itself pickles them, so that whoever reaches its port can run code there.  Tensors
of any dtype and name pass, and plain values.  Imports fedml: reached through
``fedml_host``.
"""

from __future__ import annotations

import pickletools
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Any

from fedml.core.distributed.communication.message import Message
from torch import Tensor

from ...errors import ConfigError, UpdateError
from ...wire.message import pack, unpack

_KINDS = (str, int, float, bool, type(None))
_SHOWN = 6  # names of a pickle in a line of the log


def encode_message(message: Message) -> bytes:
    """Bytes of a message; raises ConfigError for what is neither plain nor tensors."""
    plain: dict[str, object] = {}
    states: dict[str, list[str]] = {}
    tensors: dict[str, Tensor] = {}
    for key, value in message.get_params().items():
        if isinstance(value, Mapping) and all(
            isinstance(name, str) and isinstance(tensor, Tensor)
            for name, tensor in value.items()
        ):
            states[key] = list(value)
            tensors |= {f"{key}/{name}": tensor for name, tensor in value.items()}
        elif isinstance(value, _KINDS):
            plain[key] = value
        else:
            raise ConfigError(
                f"{key} of a FedML message is a {type(value).__name__}: FedCLIP sends "
                "plain values, and dicts of tensors"
            )
    try:
        return pack(tensors, {"values": plain, "states": states})
    except (ValueError, RuntimeError) as error:  # infinite, or tensors that overlap
        raise ConfigError(f"a FedML message cannot be sent: {error}") from error


def decode_message(
    data: bytes, where: str, receiver: int, senders: Collection[int], limit: int
) -> Message:
    """The message in ``data`` to ``receiver`` from one of ``senders``.

    Raises UpdateError, with ``where`` it came from, for anything else; nothing in
    ``data`` is run, and beyond ``limit`` bytes nothing is read.
    """
    try:
        tensors, fields = unpack(data, where, limit)
    except UpdateError as error:
        names = _pickled_names(data[:limit])
        if not names:
            raise
        raise UpdateError(
            f"{where}: a pickle of {', '.join(map(ascii, names))}, which fedclip never "
            "loads; start every process by `fedclip fedml`"
        ) from error
    values, states = fields.get("values"), fields.get("states")
    if fields.keys() != {"values", "states"} or not _are_plain(values):
        raise UpdateError(f"{where}: not a message of fedclip's")
    if not isinstance(states, dict) or not all(map(_are_names, states.values())):
        raise UpdateError(f"{where}: its tensors have no names")
    params: dict[str, Any] = dict(values or {})
    for key, names in states.items():
        entries = [(name, tensors.pop(f"{key}/{name}", None)) for name in names]
        if any(tensor is None for _, tensor in entries):
            raise UpdateError(f"{where}: a tensor of {key} is missing")
        params[key] = OrderedDict(entries)
    if tensors:
        raise UpdateError(f"{where}: tensors that belong nowhere")
    return _addressed(params, where, receiver, senders)


def _addressed(
    params: dict[str, Any], where: str, receiver: int, senders: Collection[int]
) -> Message:
    kind, sender, to = (
        params.get(key)
        for key in (
            Message.MSG_ARG_KEY_TYPE,
            Message.MSG_ARG_KEY_SENDER,
            Message.MSG_ARG_KEY_RECEIVER,
        )
    )
    if type(kind) is not int or type(sender) is not int or to != receiver:
        raise UpdateError(f"{where}: no type, no sender, or for another process")
    if sender not in senders:
        raise UpdateError(f"{where}: rank {sender} sends nothing to rank {receiver}")
    message = Message(kind, sender, receiver)
    message.init(params)
    return message


def _are_plain(values: object) -> bool:
    return isinstance(values, dict) and all(
        isinstance(value, _KINDS) for value in values.values()
    )


def _are_names(names: object) -> bool:
    return isinstance(names, list) and all(isinstance(name, str) for name in names)


def _pickled_names(data: bytes) -> list[str]:
    """What a pickle would have called, by name; read without running any of it."""
    names: list[str] = []
    if data[:1] != b"\x80":
        return names
    texts: list[str] = []  # as they come on the stack
    memo: list[str] = []
    try:
        for code, value, _ in pickletools.genops(data):
            if code.name == "GLOBAL":
                names.append(str(value).replace(" ", "."))
            elif code.name == "STACK_GLOBAL":
                names.append(".".join(texts[-2:]))
            elif code.name == "MEMOIZE":
                memo.append(texts[-1] if texts else "")
            elif code.name in ("BINGET", "LONG_BINGET"):
                texts.append(memo[int(str(value))])
            elif isinstance(value, str):
                texts.append(value)
            if len(names) == _SHOWN:
                break
    except Exception:  # torn: what was read so far is all that there is to tell
        return names
    return names
