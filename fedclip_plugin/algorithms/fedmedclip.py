"""FedMedCLIP: a masked adapter that travels, and a private classifier that does not.

Wu, Chaddad, "Federated CLIP for Resource-Efficient Heterogeneous Medical Image
Classification", AAAI 2026, arXiv 2511.07929, from the paper alone.  The adapter gates
the features as FedCLIP's does, by ``softmax(W_2 ReLU6(InstanceNorm(W_1 x)))``; of every
linear layer the rows count whose mean size is above a learned threshold::

    m_i = 1[mean_j |W_ij| > t_i]    row i of W and of the bias times m_i

with a straight-through gradient: ``m`` counts as ``mean_j |W_ij| - t_i``.  A client's
own four-layer network, masked in the same way, classifies the gated features ``z``.  Of
a batch, with ``p`` and ``q`` the adapter's and the network's class probabilities at
temperature T = 2::

    in-batch loss(z) + CE(network(z), y) + 0.04 (KL(p || q) + KL(q || p))

A client predicts by both, each weighted by the other's entropy of that image, so that
the surer one counts more; an unseen domain, and a client that has not trained yet, by
the adapter alone.

What the paper is not read to settle: thresholds start at 0, one for each row; the
network's hidden layers are as wide as the features; masked rows travel like the others.
At the default learning rate thresholds rise so slowly that no row of an adapter of
width 512 was masked after 20 rounds on PACS features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ..config.fields import Section, option
from ..wire.update import ClientUpdate, State
from .adapter import contrastive_loss, seeded
from .base import Algorithm, Client, Task
from .training import PRIVATE, fit, fresh_state, own_part

LAYERS = 4  # of the private network


@dataclass(frozen=True)
class FedMedClipParams(Section):
    """How much adapter and network learn of each other; defaults are the paper's."""

    weight: float = option(
        0.04, "of the divergence between adapter and private network",
        within="[0, inf)")  # fmt: skip
    temperature: float = option(
        2.0, "of the probabilities that it compares", within="(0, inf)")  # fmt: skip


class MaskedLinear(nn.Linear):
    """A linear layer, of whose rows only those above their threshold count."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.threshold = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs) -> (N, outputs); 0 where a row is masked."""
        above = self.weight.abs().mean(dim=1) - self.threshold  # (outputs,)
        mask = (above > 0).to(above.dtype) + above - above.detach()
        return F.linear(x, self.weight * mask[:, None], self.bias * mask)


class MaskedAdapter(nn.Module):
    """Raw features (N, D) -> normalised gated ones."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first = MaskedLinear(dim, dim)
        self.second = MaskedLinear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Normalised gated features (N, D)."""
        # of an (N, D) input, instance normalisation takes each row by itself
        hidden = F.layer_norm(self.first(x), x.shape[1:])
        gate: Tensor = self.second(F.relu6(hidden)).softmax(dim=1)
        return F.normalize(gate * x, dim=1)


def private_network(dim: int, classes: int) -> nn.Sequential:
    """Gated features (N, D) -> class scores (N, C), in four masked layers."""
    layers: list[nn.Module] = []
    for _ in range(LAYERS - 1):
        layers += [MaskedLinear(dim, dim), nn.ReLU()]
    return nn.Sequential(*layers, MaskedLinear(dim, classes))


class FedMedClip(Algorithm):
    """State of a :class:`MaskedAdapter`; the network is in what clients keep."""

    name = "fedmedclip"
    trains = "a masked adapter; a private network beside it"
    source = "Wu, Chaddad 2025, arXiv 2511.07929"
    Params = FedMedClipParams
    defaults: ClassVar = {"weight_decay": 0.02, "weighting": "examples"}
    personal = True

    def init(self, task: Task) -> State:
        """A fresh adapter, drawn from the task's seed."""
        return fresh_state(lambda: MaskedAdapter(task.dim), task)

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """Local epochs of the adapter and of the client's own network."""
        adapter = _adapter(state, task)
        network = _network(task)
        x, y, p = client.train.x, client.train.y, task.params
        weight: float = p.weight

        def loss(rows: Tensor) -> Tensor:
            z = adapter(x[rows])
            own = network(z)
            error = contrastive_loss(z, y[rows], task.text, task.logit_scale)
            apart = divergence(_scores(z, task), own, p.temperature)
            return error + F.cross_entropy(own, y[rows]) + weight * apart

        return fit(adapter, loss, client, task, round_number, network)

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Log-probabilities of adapter and network together, or scores of the first."""
        own = own_part(state)
        shared = {k: v for k, v in state.items() if not k.startswith(PRIVATE)}
        with torch.no_grad():
            z: Tensor = _adapter(shared, task)(x)
            scores = _scores(z, task)
            if not own:
                return scores
            said: Tensor = functional_call(_network(task), own, (z,))
            return combined(scores, said)


def _adapter(state: State, task: Task) -> MaskedAdapter:
    adapter = MaskedAdapter(task.dim).to(task.text.device)
    adapter.load_state_dict(state)
    return adapter


def _network(task: Task) -> nn.Sequential:
    made = seeded(lambda: private_network(task.dim, len(task.text)), task.seed)
    return made.to(task.text.device)


def _scores(z: Tensor, task: Task) -> Tensor:
    scores: Tensor = task.logit_scale * z @ task.text.t()
    return scores


def divergence(one: Tensor, other: Tensor, temperature: float) -> Tensor:
    """KL both ways () of class scores (B, C) at a temperature, mean over the batch."""
    p, q = ((scores / temperature).log_softmax(dim=1) for scores in (one, other))
    return ((p.exp() - q.exp()) * (p - q)).sum(dim=1).mean()


def combined(one: Tensor, other: Tensor) -> Tensor:
    """Log-probabilities (N, C) of two sets of scores, the surer one counting more."""
    p, q = (scores.softmax(dim=1) for scores in (one, other))
    unsure = [
        -torch.special.xlogy(each, each).sum(dim=1, keepdim=True) for each in (p, q)
    ]
    total = (unsure[0] + unsure[1]).clamp_min(1e-12)
    share = torch.where(total > 1e-12, unsure[1] / total, 0.5)  # of the first
    tiny = torch.finfo(p.dtype).tiny
    return (share * p + (1 - share) * q).clamp_min(tiny).log()
