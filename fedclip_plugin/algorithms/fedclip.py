"""FedCLIP: a frozen CLIP, a trained attention adapter, uniform averaging.

Lu, Hu, Wang, Xie, "FedCLIP: Fast Generalization and Personalization for CLIP in
Federated Learning", IEEE Data Engineering Bulletin 2023, arXiv 2302.13485; authors'
code ``fed_at_clip.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import ops
from ..config.schema import TrainConfig
from ..wire.update import ClientUpdate, State
from .adapter import ATTENTION, KEYS, apply_sides, initial_state
from .base import Algorithm, Client, Task, sample_order
from .training import client_update, train_module

AT_ONCE = 64  # clients whose Adam moments are in memory; more would gain nothing


class FedClip(Algorithm):
    """The published algorithm; hyper-parameters come from ``task.train``."""

    name = "fedclip"

    def init(self, task: Task) -> State:
        """A fresh adapter, drawn from the task's seed."""
        t = task.train
        state = initial_state(task.dim, task.seed, t.adapter, t.side)
        return {key: value.to(task.text.device) for key, value in state.items()}

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """Local epochs of L2-Adam, made anew every round, on the in-batch loss."""
        return self.local_round(state, [client], task, round_number)[0]

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """One call of ``ops.local_round`` per local epoch serves many clients."""
        if not _has_kernel(task.train):
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
        t = task.train
        z, text = apply_sides(state, x, task.text, t.adapter, t.side)
        return task.logit_scale * z @ text.t()


def _has_kernel(t: TrainConfig) -> bool:
    """Whether local training is the published one, which ``ops.local_round`` fuses."""
    chosen = (t.adapter, t.side, t.loss, t.optimizer, t.optimizer_state)
    return chosen == (ATTENTION, "image", "in-batch", "adam", "reset")


def _train_fused(
    state: State, clients: Sequence[Client], task: Task, round_number: int
) -> list[ClientUpdate]:
    t = task.train
    params = [state[key].clone() for _ in clients for key in KEYS]
    exp_avg = [torch.zeros_like(p) for p in params]
    exp_avg_sq = [torch.zeros_like(p) for p in params]
    losses: list[list[Tensor]] = [[] for _ in clients]
    steps = [0] * len(clients)
    for epoch in range(t.local_epochs):
        orders = [
            sample_order(len(c.train), task.seed, round_number, c.index, epoch)
            for c in clients
        ]
        epoch_losses = ops.local_round(
            [c.train.x for c in clients],
            [c.train.y for c in clients],
            task.text,
            [order.to(task.text.device) for order in orders],
            t.batch_size,
            params,
            exp_avg,
            exp_avg_sq,
            steps,
            t.lr,
            t.beta1,
            t.beta2,
            t.eps,
            t.weight_decay,
            t.logit_scale or task.logit_scale,
            precision=t.precision,
        )
        for i, loss in enumerate(epoch_losses):
            losses[i].extend(loss.unbind())
            steps[i] += len(loss)
    return [
        client_update(client, dict(zip(KEYS, params[4 * i : 4 * i + 4])), losses[i])
        for i, client in enumerate(clients)
    ]
