"""The clients' features as FedML's data set, the adapter as its model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ...algorithms import Client, Samples
from ...errors import ConfigError
from .private import is_private
from .settings import Binding, bind

Params = OrderedDict[str, Tensor]
"""A state as FedML passes it on."""


class ClientLoader(DataLoader[tuple[Tensor, ...]]):
    """Batches of features (B, D) and labels (B,) of one split of one client.

    ``client`` is None for the rows of all clients; ``samples`` are the split's rows.
    """

    def __init__(self, samples: Samples, client: Client | None, batch: int) -> None:
        super().__init__(TensorDataset(samples.x, samples.y), batch_size=batch)
        self.samples = samples
        self.client = client


def load(args: Any) -> tuple[list[Any], int]:
    """FedML's data set of eight parts, and the number of classes.

    Features are encoded once (cached) and opened once a process; where the clients'
    data are their own, they are opened later, and the parts are empty.  Raises
    FedClipError.
    """
    if is_private(args):
        return [0, 0, None, None, {}, {}, {}, 0], 0
    binding = bind(args)
    fed, batch = binding.setup.fed, binding.setup.config.train.batch_size
    clients = dict(enumerate(fed.clients))
    train_all = _joined([c.train for c in fed.clients])
    test_all = fed.target or _joined([c.test for c in fed.clients])
    count = len(fed.task.text)
    parts = [
        len(train_all),
        len(test_all),
        ClientLoader(train_all, None, batch),
        ClientLoader(test_all, None, batch),
        {i: len(c.train) for i, c in clients.items()},
        {i: ClientLoader(c.train, c, batch) for i, c in clients.items()},
        {i: ClientLoader(c.test, c, batch) for i, c in clients.items()},
        count,
    ]
    return parts, count


def _joined(parts: Sequence[Samples]) -> Samples:
    return Samples(torch.cat([p.x for p in parts]), torch.cat([p.y for p in parts]))


def create_model(args: Any) -> nn.Module:
    """What travels alone, an adapter for fedclip, as the first round sends it out."""
    if is_private(args):
        return nn.Identity()  # the server makes it of what the clients say they are
    fed = bind(args).setup.fed
    if not fed.algorithm.communicates:
        raise ConfigError(
            f"fedclip_alg: {fed.algorithm.name} sends nothing to a server: use "
            "`fedclip run`"
        )
    return fed.algorithm.module(fed.algorithm.init(fed.task), fed.task)


def parameters(model: nn.Module) -> OrderedDict[str, Tensor]:
    """What FedML sends: the adapter on the CPU, not shared with the model.

    An OrderedDict: a plain dict stands for a model per client in FedML.
    """
    state = model.state_dict().items()
    return OrderedDict((key, value.detach().cpu().clone()) for key, value in state)


def client_of(loader: object) -> Client:
    """The client whose data FedML hands to the trainer."""
    client = getattr(loader, "client", None)
    if not isinstance(client, Client):
        raise ConfigError(
            f"FedCLIP trains on the data of fedml_host.load(args), got {loader!r}"
        )
    return client


def asked(binding: Binding, args: Any) -> list[Client]:
    """The clients that FedML sampled for the round ``args.round_idx``, in its order.

    FedML's aggregators get updates without names.  Its draw is NumPy's choice after a
    seed: the round's index in simulations, that of the round before in cross-silo.
    """
    clients = binding.setup.fed.clients
    total, chosen = args.client_num_in_total, args.client_num_per_round
    if total == chosen:
        return list(clients)
    number = getattr(args, "round_idx", 0)
    if getattr(args, "training_type", None) == "cross_silo":
        number = max(0, number - 1)
    draw = np.random.RandomState(number).choice(range(total), chosen, replace=False)
    return [clients[i] for i in draw]
