"""Local training by autograd, for whatever has no kernel of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from ..config.schema import TrainConfig
from ..errors import RunError
from ..wire.update import ClientUpdate, State
from .adapter import TwoSides, contrastive_loss, full_keys, plain_keys, seeded
from .base import Client, Task, kept_state, sample_order

PRIVATE = "private."  # begins the names of what a client's own module keeps


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


def fresh_state(make: Callable[[], nn.Module], task: Task) -> State:
    """The state of the module that ``make`` makes from the task's seed."""
    state = seeded(make, task.seed).state_dict()
    return {key: value.to(task.text.device) for key, value in state.items()}


def fit_state(
    state: State,
    loss_of: Callable[[State, Tensor], Tensor],
    client: Client,
    task: Task,
    round_number: int,
    least: int = 1,
) -> ClientUpdate:
    """Local epochs of all tensors of ``state``, which stays as it is.

    ``loss_of`` takes the tensors as they are then and the row numbers of a batch of
    ``least`` rows or more, and gives the loss ().
    """
    params = {key: value.clone().requires_grad_() for key, value in state.items()}

    def loss(rows: Tensor) -> Tensor:
        return loss_of(params, rows)

    optimizer = make_optimizer(params.values(), task.train)
    losses = train_local(optimizer, loss, client, task, round_number, least)
    after = {key: value.detach() for key, value in params.items()}
    return client_update(client, after, losses)


def train_module(
    state: State, client: Client, task: Task, round_number: int
) -> ClientUpdate:
    """FedCLIP's local epochs with any adapter, side, loss and optimizer."""
    p = task.params
    module = TwoSides(task.dim, p.adapter, p.side).to(task.text.device)
    module.load_state_dict(full_keys(state, p.side))
    x, y = client.train.x, client.train.y
    scale = p.logit_scale or task.logit_scale

    def loss(rows: Tensor) -> Tensor:
        z, text = module(x[rows], task.text)
        if p.loss == "class":
            return F.cross_entropy(scale * z @ text.t(), y[rows])
        return contrastive_loss(z, y[rows], text, scale)

    update = fit(module, loss, client, task, round_number)
    return replace(update, state=plain_keys(update.state, p.side))


def fit(
    module: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    client: Client,
    task: Task,
    round_number: int,
    private: nn.Module | None = None,
) -> ClientUpdate:
    """Local epochs of ``module``, in place; its state dict is what travels.

    ``private`` is trained beside it from where the client left it, and stays there:
    ``private.<key>`` of :attr:`Client.kept`.
    """
    if private is not None:
        load_private(private, client)
    named = _named(module, private)
    optimizer = make_optimizer(named.values(), task.train)
    keeps = task.train.optimizer_state == "keep"
    if keeps:
        _restore(optimizer, named, client)
    losses = train_local(optimizer, loss_of, client, task, round_number)
    state = {key: value.clone() for key, value in module.state_dict().items()}
    own = {} if private is None else private.state_dict()
    kept = {PRIVATE + key: value.clone() for key, value in own.items()}
    update = client_update(client, state, losses)
    parts = (*state.values(), *kept.values())
    if not all(bool(value.isfinite().all()) for value in parts):
        return update  # what was kept before is better
    return replace(update, kept=kept | (_slots(optimizer, named) if keeps else {}))


def load_private(private: nn.Module, client: Client) -> None:
    """Put what ``client`` kept of its own module into it, if there is anything."""
    first = {PRIVATE + key: value for key, value in private.state_dict().items()}
    private.load_state_dict(own_part(kept_state(client, first)))


def own_part(state: State) -> State:
    """What belongs to a client's own module, under that module's keys."""
    return {k[len(PRIVATE) :]: v for k, v in state.items() if _is_module(k)}


def _is_module(key: str) -> bool:
    return key.startswith(PRIVATE) and ":" not in key  # not a slot of the optimizer


def _named(module: nn.Module, private: nn.Module | None) -> dict[str, nn.Parameter]:
    own = {} if private is None else dict(private.named_parameters())
    return {
        **dict(module.named_parameters()),
        **{PRIVATE + name: parameter for name, parameter in own.items()},
    }


def _slots(optimizer: Optimizer, named: Mapping[str, nn.Parameter]) -> State:
    """The optimizer's tensors as ``<parameter>:<slot>``, such as Adam's moments."""
    return {
        f"{name}:{slot}": value
        for name, parameter in named.items()
        for slot, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _restore(
    optimizer: Optimizer, named: Mapping[str, nn.Parameter], client: Client
) -> None:
    for name, parameter in named.items():
        start, kept = f"{name}:", client.kept
        slots = {k[len(start) :]: v for k, v in kept.items() if k.startswith(start)}
        for slot, value in slots.items():
            if value.dim():  # single: step counts
                _check_kept(client, start + slot, value, parameter)
        if slots:
            optimizer.state[parameter] = {k: v.clone() for k, v in slots.items()}


def _check_kept(client: Client, key: str, value: Tensor, like: Tensor) -> None:
    if value.shape != like.shape:
        raise RunError(
            f"{client.name}: {key}, kept from the round before, is of shape "
            f"{tuple(value.shape)}, expected {tuple(like.shape)}; start the run again"
        )


def client_update(
    client: Client, state: State, losses: Sequence[Tensor] | Tensor
) -> ClientUpdate:
    """The update of a client, with the mean loss of its steps if there were any."""
    metrics = {}
    if len(losses):
        steps = losses if isinstance(losses, Tensor) else torch.stack(list(losses))
        metrics["loss"] = float(steps.mean())
    return ClientUpdate(client.name, state, len(client.train), metrics)
