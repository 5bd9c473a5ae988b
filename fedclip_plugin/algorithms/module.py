"""Local training of any adapter module, by autograd: what has no kernel of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapter import ADAPTERS, contrastive_loss
from ..update import ClientUpdate, State
from .base import Client, Task, sample_order


def train_module(
    state: State, client: Client, task: Task, round_number: int
) -> ClientUpdate:
    """FedCLIP's local epochs on the module that ``task.train.adapter`` names.

    The loss, the optimizer and the order of rows are those of the fused kernels.
    """
    t = task.train
    module = ADAPTERS.get(t.adapter)(task.dim).to(task.text.device)
    module.load_state_dict(state)
    optimizer = torch.optim.Adam(
        module.parameters(), t.lr, (t.beta1, t.beta2), t.eps, t.weight_decay
    )
    losses = []
    for epoch in range(t.local_epochs):
        order = sample_order(
            len(client.train), task.seed, round_number, client.index, epoch
        )
        for rows in order.to(task.text.device).split(t.batch_size):
            if len(rows) < 2:
                continue  # a batch of 1 has no negatives: the authors skip it
            z = module(client.train.x[rows])
            y = client.train.y[rows]
            loss = contrastive_loss(z, y, task.text, task.logit_scale)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach()[None])
    after = {key: value.detach().clone() for key, value in module.state_dict().items()}
    return client_update(client, after, losses)


def client_update(
    client: Client, state: State, losses: Sequence[Tensor]
) -> ClientUpdate:
    """The update of a client with the mean loss of its steps, if there were any."""
    steps = torch.cat(list(losses)) if losses else torch.empty(0)
    metrics = {"loss": float(steps.mean())} if len(steps) else {}
    return ClientUpdate(client.name, state, len(client.train), metrics)
