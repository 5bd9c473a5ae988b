"""States and updates between FedML's hands and ours: no role of its own.

Imports fedml: reached through ``fedml_host``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from fedml.core.dp.fedml_differential_privacy import FedMLDifferentialPrivacy
from fedml.core.security.fedml_attacker import FedMLAttacker
from fedml.core.security.fedml_defender import FedMLDefender
from torch import Tensor

from .. import downlink
from ..update import ClientUpdate, State, on_device
from .fedml_settings import Binding

Params = OrderedDict[str, Tensor]


def packed(binding: Binding, whole: Mapping[str, Tensor]) -> Params:
    """The server's adapter as it goes down, ``fedclip_compress_down``; on the CPU."""
    fed = binding.setup.fed
    sent = downlink.payload(fed, on_device(whole, fed.task.text.device))
    return OrderedDict(on_device(sent, "cpu"))


def unpacked(binding: Binding, sent: Mapping[str, Tensor]) -> Params:
    """The adapter that a client makes of :func:`packed`, on the CPU.

    Raises UpdateError for one that cannot be read.
    """
    fed = binding.setup.fed
    state = downlink.received(fed, on_device(sent, fed.task.text.device))
    return OrderedDict(on_device(state, "cpu"))


def hooked() -> bool:
    """Whether FedML's security or privacy looks at the single updates."""
    return bool(
        FedMLDefender.get_instance().is_defense_enabled()
        or FedMLDifferentialPrivacy.get_instance().is_dp_enabled()
        or FedMLAttacker.get_instance().is_attack_enabled()
    )


def fits(update: ClientUpdate, like: State) -> bool:
    """Whether a plain update has the keys, shapes and dtypes of ``like``, and rows."""
    state = update.state
    return (
        update.num_examples > 0
        and update.codec == "none"
        and state.keys() == like.keys()
        and all(
            state[k].shape == v.shape and state[k].dtype == v.dtype
            for k, v in like.items()
        )
    )


def finite(state: State) -> bool:
    """Whether all values are numbers."""
    return all(bool(torch.isfinite(value).all()) for value in state.values())


@contextmanager
def named_fedavg(args: Any) -> Iterator[None]:
    """FedML's average knows its own optimizers by name, and fails for another."""
    name, args.federated_optimizer = args.federated_optimizer, "FedAvg"
    try:
        yield
    finally:
        args.federated_optimizer = name


def like(state: Mapping[str, Tensor], model: State) -> Params:
    """``state`` in the dtypes and on the device of ``model``."""
    return OrderedDict((k, state[k].to(v.device, v.dtype)) for k, v in model.items())
