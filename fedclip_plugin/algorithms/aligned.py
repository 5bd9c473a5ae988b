"""An adapter with batch normalisation, trained to hide which domain a feature is of.

What FACMIC and FAA-CLIP have in common.  Beside its own labelled rows each client is
given features without labels (``Client.unlabelled``), a batch of which goes through the
adapter in every step, after the client's own.

The running mean and variance of batch normalisation travel and are averaged like every
weight, as in FACMIC's released code; its count of batches does not, for nothing depends
on it.  Training normalises by the batch, prediction by the running statistics.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError
from ..wire.update import ClientUpdate, State
from .adapter import contrastive_loss
from .base import Algorithm, Client, Task, sample_order
from .training import fit, fresh_state

Alignment = Callable[[Tensor, Tensor, Tensor], Tensor]
"""``(z, y, unlabelled)``, the gated features (B, D) and labels (B,) of a batch and raw
features (B', D) without labels -> what is added to the loss."""

_UNLABELLED = 1 << 20  # keeps their order apart from that of the local epochs


class BatchNorm(nn.Module):
    """Batch normalisation of (N, D) whose state is float32 alone: no count of batches.

    A variance below 0, which rounding on the wire can make of a small one, is 0.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.bias = nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """Of the batch in training, of the running statistics else; as PyTorch's."""
        variance = self.running_var if self.training else self.running_var.clamp_min(0)
        return F.batch_norm(
            x, self.running_mean, variance, self.weight, self.bias, self.training
        )


class BatchNormAdapter(nn.Sequential):
    """Linear, batch normalisation, leaky ReLU, linear, softmax: a gate on features.

    The state dict has the keys of FACMIC's released model (``nets/models.py``).
    ``forward`` takes raw features (N, D) to normalised gated ones.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(
            nn.Linear(dim, dim),
            BatchNorm(dim),
            nn.LeakyReLU(),
            nn.Linear(dim, dim),
            nn.Softmax(dim=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalised gated features (N, D)."""
        gate = x
        for layer in self:
            gate = layer(gate)
        return F.normalize(gate * x, dim=1)

    @classmethod
    def of(cls, state: State, task: Task) -> BatchNormAdapter:
        """The adapter of a state that travels, where the task computes."""
        adapter = cls(task.dim).to(task.text.device)
        adapter.load_state_dict(state)
        return adapter


class AlignedClip(Algorithm):
    """State of a :class:`BatchNormAdapter`; a subclass says what aligns."""

    trains = "an adapter with batch normalisation"
    transductive = True
    open_vocabulary = True

    def init(self, task: Task) -> State:
        """A fresh adapter, drawn from the task's seed."""
        return fresh_state(lambda: BatchNormAdapter(task.dim), task)

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Scaled cosine of the gated features and the text features."""
        adapter = BatchNormAdapter.of(state, task).eval()
        with torch.no_grad():
            scores: Tensor = task.logit_scale * adapter(x) @ task.text.t()
        return scores


def train_aligned(
    adapter: BatchNormAdapter,
    align: Alignment,
    client: Client,
    task: Task,
    round_number: int,
    private: nn.Module | None = None,
) -> ClientUpdate:
    """Local epochs on FedCLIP's in-batch loss and what ``align`` adds to it.

    ``private`` is a module of the client's own that ``align`` uses.  Raises ConfigError
    where the client was given nothing to align to.
    """
    x, y = client.train.x, client.train.y
    others = unlabelled_batches(client, task, round_number)

    def loss(rows: Tensor) -> Tensor:
        z = adapter(x[rows])
        error = contrastive_loss(z, y[rows], task.text, task.logit_scale)
        other = next(others)
        return error + align(z, y[rows], other) if len(other) > 1 else error

    return fit(adapter, loss, client, task, round_number, private)


def unlabelled_batches(
    client: Client, task: Task, round_number: int
) -> Iterator[Tensor]:
    """Batches (B, D) of the features without labels, pass after pass, without end.

    Every pass is in an order of its own, and leaves out what fills no batch.
    """
    x = client.unlabelled
    if x is None:
        raise ConfigError(
            f"client {client.name} has no features of others to align to: this --alg "
            "needs all clients' data in one process (docs/transductive.md)"
        )
    size = min(task.train.batch_size, len(x))
    for number in itertools.count(_UNLABELLED):
        order = sample_order(len(x), task.seed, round_number, client.index, number)
        for rows in order.to(x.device).split(max(size, 1)):
            if len(rows) == size:
                yield x[rows]
