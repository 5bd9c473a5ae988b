"""Local training by autograd, for whatever has no kernel of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config.schema import TrainConfig
from ..errors import RunError
from ..wire.update import ClientUpdate, State
from .adapter import TwoSides, contrastive_loss, full_keys, plain_keys
from .base import Client, Task, sample_order


def make_optimizer(parameters: Iterable[Tensor], t: TrainConfig) -> Optimizer:
    """The optimizer that ``t`` names: L2-Adam as published, AdamW or plain SGD."""
    if t.optimizer == "sgd":
        return torch.optim.SGD(parameters, t.lr, weight_decay=t.weight_decay)
    kind = torch.optim.AdamW if t.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, t.lr, (t.beta1, t.beta2), t.eps, t.weight_decay)


def train_local(
    optimizer: Optimizer,
    loss_of: Callable[[Tensor], Tensor],
    client: Client,
    task: Task,
    round_number: int,
    least: int = 2,
) -> list[Tensor]:
    """Local epochs, in place; returns the loss () of every step.

    ``loss_of`` takes the row numbers of a batch; their order is that of the fused
    kernels.  Batches of fewer than ``least`` rows are skipped: alone, a row has no
    negatives in a contrastive loss.
    """
    t, device = task.train, task.text.device
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
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
    return losses


def train_module(
    state: State, client: Client, task: Task, round_number: int
) -> ClientUpdate:
    """FedCLIP's local epochs with any adapter, side, loss and optimizer."""
    t, p = task.train, task.params
    module = TwoSides(task.dim, p.adapter, p.side).to(task.text.device)
    module.load_state_dict(full_keys(state, p.side))
    optimizer = make_optimizer(module.parameters(), t)
    if t.optimizer_state == "keep":
        _restore(optimizer, module, client)
    x, y = client.train.x, client.train.y
    scale = p.logit_scale or task.logit_scale

    def loss(rows: Tensor) -> Tensor:
        z, text = module(x[rows], task.text)
        if p.loss == "class":
            return F.cross_entropy(scale * z @ text.t(), y[rows])
        return contrastive_loss(z, y[rows], text, scale)

    losses = train_local(optimizer, loss, client, task, round_number)
    copy = {key: value.clone() for key, value in module.state_dict().items()}
    update = client_update(client, plain_keys(copy, p.side), losses)
    finite = all(bool(value.isfinite().all()) for value in copy.values())
    if t.optimizer_state == "keep" and finite:  # else what was kept before is better
        update = replace(update, kept=_slots(optimizer, module))
    return update


def _slots(optimizer: Optimizer, module: nn.Module) -> State:
    """The optimizer's tensors as ``<parameter>:<slot>``, such as Adam's moments."""
    return {
        f"{name}:{slot}": value
        for name, parameter in module.named_parameters()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _restore(optimizer: Optimizer, module: nn.Module, client: Client) -> None:
    for name, parameter in module.named_parameters():
        start, kept = f"{name}:", client.kept
        slots = {k[len(start) :]: v for k, v in kept.items() if k.startswith(start)}
        for slot, value in slots.items():
            if value.dim() and value.shape != parameter.shape:  # single: step counts
                raise RunError(
                    f"{client.name}: {start}{slot}, kept from the round before, is of "
                    f"shape {tuple(value.shape)}, expected {tuple(parameter.shape)}; "
                    "start the run again"
                )
        if slots:
            optimizer.state[parameter] = {k: v.clone() for k, v in slots.items()}


def client_update(
    client: Client, state: State, losses: Sequence[Tensor]
) -> ClientUpdate:
    """The update of a client, with the mean loss of its steps if there were any."""
    metrics = {"loss": float(torch.stack(list(losses)).mean())} if losses else {}
    return ClientUpdate(client.name, state, len(client.train), metrics)
