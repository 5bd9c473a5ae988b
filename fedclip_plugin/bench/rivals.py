"""What the operators are compared with: other ways to do the same work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LR, BETA1, BETA2, EPS, DECAY, SCALE = 5e-5, 0.9, 0.98, 1e-6, 0.2, 100.0
ADAM = (LR, BETA1, BETA2, EPS, DECAY, SCALE)
Run = Callable[[], object]


def make_adapter(dim: int) -> nn.Sequential:
    """The paper's adapter as modules of PyTorch, always the same weights."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim), nn.Softmax(dim=1)
    )


def gate(adapter: nn.Module, x: Tensor) -> Tensor:
    """Gated, normalised features.  (B, D) -> (B, D)."""
    z = adapter(x) * x
    normal: Tensor = z / z.norm(dim=1, keepdim=True)
    return normal


def eager_loss(adapter: nn.Module, x: Tensor, text: Tensor) -> Tensor:
    """The paper's loss with its B x B logits; ``text`` (B, D) of each row's class."""
    logits = SCALE * gate(adapter, x) @ text.t()
    truth = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, truth) + F.cross_entropy(logits.t(), truth)) / 2


def compile_for_one_shape(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """By torch.compile, without graph breaks; forgets what was compiled before.

    (The shapes of a whole benchmark are more than it keeps for one function.)
    """
    torch.compiler.reset()
    return torch.compile(function, fullgraph=True, dynamic=False)


def _adam(adapter: nn.Module, **adam: bool) -> torch.optim.Adam:
    return torch.optim.Adam(
        adapter.parameters(),
        lr=LR,
        betas=(BETA1, BETA2),
        eps=EPS,
        weight_decay=DECAY,
        **adam,
    )


def eager_clients(
    clients: int, x: Tensor, y: Tensor, text: Tensor, rows: Tensor, **adam: bool
) -> Run:
    """One step each of ``clients``, from copies of one adapter with Adam made anew."""
    first = make_adapter(x.shape[1])

    def train() -> nn.Module:
        adapter = copy.deepcopy(first)
        optimizer = _adam(adapter, **adam)
        eager_loss(adapter, x[rows], text[y[rows]]).backward()
        optimizer.step()
        return adapter

    return lambda: [train() for _ in range(clients)]


def eager_epoch(
    x: Tensor,
    y: Tensor,
    text: Tensor,
    batches: Sequence[Tensor],
    compiled: bool = False,
    **adam: bool,
) -> Run:
    """The authors' local training on features, with torch.optim.Adam.

    ``compiled``: forward and backward by torch.compile, without graph breaks.
    """
    adapter = make_adapter(x.shape[1])
    optimizer = _adam(adapter, **adam)
    loss_of: Callable[..., Tensor] = eager_loss
    if compiled:
        loss_of = compile_for_one_shape(eager_loss)

    def run() -> None:
        for rows in batches:
            loss = loss_of(adapter, x[rows], text[y[rows]])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run


State = list[Tensor]  # of one client


def personalizedfl_mean(clients: Sequence[State], shares: Sequence[float]) -> State:
    """PersonalizedFL: a key at a time, a product and a sum per client."""
    server = [torch.zeros_like(t) for t in clients[0]]
    for key, target in enumerate(server):
        total = torch.zeros_like(target)
        for client, share in zip(clients, shares):
            total += share * client[key]
        target.copy_(total)
    return server


def add_mean(clients: Sequence[State], shares: Sequence[float]) -> State:
    """The best that plain PyTorch does: `add_` with a factor."""
    server = [t * shares[0] for t in clients[0]]
    for client, share in zip(clients[1:], shares[1:]):
        for target, tensor in zip(server, client):
            target.add_(tensor, alpha=share)
    return server


def fedml_mean(clients: Sequence[State], shares: Sequence[float]) -> State:
    """FedML's FedMLAggOperator.agg: weight each term, then add out of place."""
    server: State = []
    for key in range(len(clients[0])):
        total = clients[0][key] * shares[0]
        for client, share in zip(clients[1:], shares[1:]):
            total = total + client[key] * share
        server.append(total)
    return server


def flower_mean(clients: Sequence[State], shares: Sequence[float]) -> list[np.ndarray]:
    """Flower: numpy arrays, a running sum in place."""
    arrays = [[t.numpy() for t in client] for client in clients]
    server = [a * np.float32(shares[0]) for a in arrays[0]]
    for client, share in zip(arrays[1:], shares[1:]):
        for target, array in zip(server, client):
            target += array * np.float32(share)
    return server
