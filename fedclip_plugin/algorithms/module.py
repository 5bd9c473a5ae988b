"""Local training by autograd, for whatever has no kernel of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from ..adapter import ADAPTERS, contrastive_loss
from ..update import ClientUpdate, State
from .base import Client, Task, sample_order


def train_local(
    parameters: Iterable[Tensor],
    loss_of: Callable[[Tensor], Tensor],
    client: Client,
    task: Task,
    round_number: int,
    least: int = 2,
) -> list[Tensor]:
    """Local epochs of L2-Adam, in place; returns the loss () of every step.

    ``loss_of`` takes the row numbers of a batch.  Optimizer and order of rows are those
    of the fused kernels.  Batches of fewer than ``least`` rows are skipped: alone, a
    row has no negatives in a contrastive loss.
    """
    t, device = task.train, task.text.device
    optimizer = torch.optim.Adam(
        parameters, t.lr, (t.beta1, t.beta2), t.eps, t.weight_decay
    )
    losses = []
    for epoch in range(t.local_epochs):
        order = sample_order(
            len(client.train), task.seed, round_number, client.index, epoch
        )
        for rows in order.to(device).split(t.batch_size):
            if len(rows) < least:
                continue
            loss = loss_of(rows)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.detach())
    return losses


def train_module(
    state: State, client: Client, task: Task, round_number: int
) -> ClientUpdate:
    """FedCLIP's local epochs on the module that ``task.train.adapter`` names."""
    module = ADAPTERS.get(task.train.adapter)(task.dim).to(task.text.device)
    module.load_state_dict(state)
    x, y = client.train.x, client.train.y

    def loss(rows: Tensor) -> Tensor:
        return contrastive_loss(module(x[rows]), y[rows], task.text, task.logit_scale)

    losses = train_local(module.parameters(), loss, client, task, round_number)
    after = {key: value.detach().clone() for key, value in module.state_dict().items()}
    return client_update(client, after, losses)


def client_update(
    client: Client, state: State, losses: Sequence[Tensor]
) -> ClientUpdate:
    """The update of a client, with the mean loss of its steps if there were any."""
    metrics = {"loss": float(torch.stack(list(losses)).mean())} if losses else {}
    return ClientUpdate(client.name, state, len(client.train), metrics)
