"""FedCLIP: a frozen CLIP, a trained attention adapter, uniform averaging.

Lu, Hu, Wang, Xie, "FedCLIP: Fast Generalization and Personalization for CLIP in
Federated Learning", IEEE Data Engineering Bulletin 2023, arXiv 2302.13485; authors'
code ``fed_at_clip.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from .. import ops
from ..config.fields import Section, option
from ..wire.update import ClientUpdate, State
from .adapter import ATTENTION, KEYS, TwoSides, apply_sides, initial_state
from .base import Client, RoundAlgorithm, Task, sample_order
from .training import client_update, train_module

AT_ONCE = 64  # clients in one call; more would gain nothing


@dataclass(frozen=True)
class FedClipParams(Section):
    """What is adapted, and on which loss; the defaults are the paper's."""

    adapter: str = option(
        ATTENTION, "attention, residual (starts as the identity), bottleneck (an "
        "eighth of the parameters), or one that another package adds",
        name="adapter")  # fmt: skip
    side: str = option(
        "image", "what the adapter adapts", name="side",
        choices=("image", "text", "both"))  # fmt: skip
    loss: str = option(
        "in-batch", "class: cross-entropy over all classes", name="loss",
        choices=("in-batch", "class"))  # fmt: skip
    logit_scale: float | None = option(
        None, "logit scale of the training loss", name="train-logit-scale",
        within="[0.001, inf)", shown="the CLIP's own, 100")  # fmt: skip


class FedClip(RoundAlgorithm):
    """The published algorithm; hyper-parameters come from the task."""

    name = "fedclip"
    trains = "the attention adapter"
    open_vocabulary = True
    source = "Lu et al. 2023, arXiv 2302.13485"
    Params = FedClipParams
    # `best` was chosen as benchmarks/results/ablation.md tells.
    presets: ClassVar = {"paper": {}, "best": {"weight_decay": 0.0, "lr": 2e-4}}

    def init(self, task: Task) -> State:
        """A fresh adapter, drawn from the task's seed."""
        p = task.params
        state = initial_state(task.dim, task.seed, p.adapter, p.side)
        return {key: value.to(task.text.device) for key, value in state.items()}

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """One call of ``ops.fresh_round`` serves many clients."""
        if not _has_kernel(task):
            return [train_module(state, c, task, round_number) for c in clients]
        return [
            update
            for start in range(0, len(clients), AT_ONCE)
            for update in _train_fused(
                state, clients[start : start + AT_ONCE], task, round_number
            )
        ]

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Scaled cosine of the gated features and the text features."""
        p = task.params
        z, text = apply_sides(state, x, task.text, p.adapter, p.side)
        return task.logit_scale * z @ text.t()

    def module(self, state: State, task: Task) -> nn.Module:
        """The adapter itself, or both; its keys on the image side are the authors'."""
        p = task.params
        sides = TwoSides(task.dim, p.adapter, p.side)
        image = sides.image if p.side == "image" else None
        module: nn.Module = sides if image is None else image
        module.load_state_dict(state)
        return module.to(task.text.device)


def _has_kernel(task: Task) -> bool:
    """Whether local training is the published one, which ``ops.fresh_round`` fuses."""
    p, t = task.params, task.train
    chosen = (p.adapter, p.side, p.loss, t.optimizer, t.optimizer_state)
    return chosen == (ATTENTION, "image", "in-batch", "adam", "reset")


def _train_fused(
    state: State, clients: Sequence[Client], task: Task, round_number: int
) -> list[ClientUpdate]:
    t = task.train
    hyper = ops.Hyperparameters(
        batch_size=t.batch_size,
        lr=t.lr,
        beta1=t.beta1,
        beta2=t.beta2,
        eps=t.eps,
        weight_decay=t.weight_decay,
        logit_scale=task.params.logit_scale or task.logit_scale,
        precision=t.precision,
    )
    device = task.text.device
    orders = [_sample_orders(client, task, round_number) for client in clients]
    on_device = torch.cat([order.reshape(-1) for order in orders]).to(device)
    perms = on_device.split([order.numel() for order in orders])
    batch = [
        ops.FreshClient(c.train.x, c.train.y, perm.view(order.shape))
        for c, perm, order in zip(clients, perms, orders)
    ]
    start = [state[key] for key in KEYS]
    states, losses = ops.fresh_round(batch, task.text, start, hyper, task.pool)
    return [
        client_update(client, dict(zip(KEYS, params)), loss)
        for client, params, loss in zip(clients, states, losses)
    ]


def _sample_orders(client: Client, task: Task, round_number: int) -> Tensor:
    """The order of a client's rows in each of its local epochs, (E, N) int64."""
    return torch.stack(
        [
            sample_order(
                len(client.train), task.seed, round_number, client.index, epoch
            )
            for epoch in range(task.train.local_epochs)
        ]
    )
