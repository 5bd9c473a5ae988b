"""The paper's algorithm written out literally: autograd, torch.optim.Adam, B x B loss.

The oracle of the tests.  It follows ``fed_at_clip.py`` of the authors' code line by
line in effect, on features instead of images, and shares no code with the package;
only the order in which a client visits its rows is handed in.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn


def make_adapter(dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim), nn.Softmax(dim=1)
    )


def gated(adapter: nn.Module, x: Tensor) -> Tensor:
    z = torch.mul(adapter(x), x)
    return z / z.norm(dim=1, keepdim=True)


def batch_loss(adapter: nn.Module, x: Tensor, text: Tensor, scale: float) -> Tensor:
    logits = scale * gated(adapter, x) @ text.t()
    truth = torch.arange(len(x))
    cross_entropy = nn.CrossEntropyLoss()
    return (cross_entropy(logits, truth) + cross_entropy(logits.t(), truth)) / 2


def train_epoch(
    adapter: nn.Module,
    optimizer: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    text: Tensor,
    order: Tensor,
    batch: int,
    scale: float,
) -> list[float]:
    losses = []
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        if len(rows) > 1:
            loss = batch_loss(adapter, x[rows], text[y[rows]], scale)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


def accuracy(adapter: nn.Module, x: Tensor, y: Tensor, text: Tensor) -> float:
    with torch.no_grad():
        return float((gated(adapter, x) @ text.t()).argmax(1).eq(y).double().mean())


def federate(
    server: nn.Sequential,
    clients: list[tuple[Tensor, Tensor]],
    text: Tensor,
    order: Callable[[int, int, int], Tensor],
    rounds: int,
    epochs: int = 1,
    batch: int = 32,
    scale: float = 100.0,
    **adam: float,
) -> list[nn.Sequential]:
    """The server's adapter after every round; ``order(round, client, epoch)``."""
    options = {"lr": 5e-5, "eps": 1e-6, "weight_decay": 0.2, **adam}
    history = []
    for number in range(1, rounds + 1):
        models = [copy.deepcopy(server) for _ in clients]
        for i, (model, (x, y)) in enumerate(zip(models, clients)):
            optimizer = torch.optim.Adam(
                model.parameters(), betas=(0.9, 0.98), **options
            )
            for epoch in range(epochs):
                train_epoch(
                    model,
                    optimizer,
                    x,
                    y,
                    text,
                    order(number, i, epoch),
                    batch,
                    scale,
                )
        with torch.no_grad():
            for key in server.state_dict():
                total = torch.zeros_like(server.state_dict()[key])
                for model in models:
                    total += 1 / len(models) * model.state_dict()[key]
                server.state_dict()[key].copy_(total)
        history.append(copy.deepcopy(server))
    return history
