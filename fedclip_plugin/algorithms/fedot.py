"""FedOT: a shared linear classifier, and before it each client's own rotation.

Kong, Yeom, Jeon, Kim, "Generalized and Personalized Federated Learning with Black-Box
Foundation Models via Orthogonal Transformations", CVPR 2026, arXiv 2505.19888, on
frozen features ``h`` (D,) of unit length::

    p = softmax(tau W_g Q_i h)        cross-entropy over all classes
    Q_i = (I + R_i) (I - R_i)^-1      (Cayley), R_i skew: Q_i' Q_i = I

``W_g`` (C, D) begins as the normalised text features and is averaged; ``tau`` is the
logit scale.  ``R_i`` begins at zero, where the method is zero-shot, and never leaves
client i; Q_i turns features without stretching them.
An unseen domain is judged by W_g alone.  ``block_size`` is the paper's +B form: Q_i is
block-diagonal, with ``D (b - 1) / 2`` numbers to learn and a solve ``(D / b)^2`` times
cheaper.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.fields import Section, option
from ..errors import ConfigError
from ..wire.update import ClientUpdate, State
from .base import Algorithm, Client, Task, kept_state
from .training import fit_state

SKEW = "skew"  # what a client keeps: the upper triangles of the blocks of R_i


@dataclass(frozen=True)
class FedOtParams(Section):
    """The form of the clients' rotations."""

    block_size: int | None = option(
        None, "fedot: width of the diagonal blocks of each client's rotation, a "
        "divisor of the features' width", within="[2, inf)",
        shown="one block, the whole width")  # fmt: skip


class FedOt(Algorithm):
    """State ``weight`` (C, D); each client keeps ``skew`` (D / b, b (b - 1) / 2)."""

    name = "fedot"
    trains = "a linear head from the text features; a rotation of each client's own"
    source = "Kong et al. 2026, arXiv 2505.19888"
    personal = True
    text_at_server = True
    Params = FedOtParams
    defaults: ClassVar = {"lr": 1e-4, "weight_decay": 0.0, "weighting": "examples"}

    def init(self, task: Task) -> State:
        """Zero-shot; raises ConfigError for blocks that do not fill the width."""
        size = block_size(task)
        if task.dim % size:
            raise ConfigError(
                f"--fedot-block-size {size} does not divide the features' width "
                f"{task.dim}: take one that does, such as {_divisor(task.dim, size)}"
            )
        return {"weight": task.text.clone()}

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """Local epochs on W_g and R_i together."""
        z, y = F.normalize(client.train.x, dim=1), client.train.y

        def loss(params: State, rows: Tensor) -> Tensor:
            turned = rotated(z[rows], params[SKEW], block_size(task))
            scores = task.logit_scale * turned @ params["weight"].t()
            return F.cross_entropy(scores, y[rows])

        start = {**state, **kept_state(client, first_skew(task))}
        update = fit_state(start, loss, client, task, round_number)
        shared = {key: update.state[key] for key in state}
        return replace(update, state=shared, kept={SKEW: update.state[SKEW]})

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Scores of turned features; of features as they are without a rotation."""
        z = F.normalize(x, dim=1)
        if SKEW in state:
            skew = state[SKEW].double()  # so that Q stays orthogonal whatever R became
            z = rotated(z.double(), skew, block_size(task)).to(z.dtype)
        return task.logit_scale * z @ state["weight"].t()


def block_size(task: Task) -> int:
    """Width b of the blocks of Q_i."""
    return task.params.block_size or task.dim


def first_skew(task: Task) -> State:
    """What a client keeps before it has trained: no rotation."""
    size = block_size(task)
    count = size * (size - 1) // 2
    return {SKEW: task.text.new_zeros(task.dim // size, count)}


def rotated(z: Tensor, skew: Tensor, size: int) -> Tensor:
    """``Q z`` of every row of ``z`` (N, D), for the triangles ``skew`` of R.

    Differentiable.  ``(I - R)`` has an inverse for every skew R.
    """
    row, column = torch.triu_indices(size, size, 1, device=skew.device)
    upper = skew.new_zeros(len(skew), size, size)
    upper = upper.index_put((torch.arange(len(skew), device=skew.device)[:, None],
                             row[None], column[None]), skew)  # fmt: skip
    r = upper - upper.transpose(1, 2)  # (D / b, b, b)
    eye = torch.eye(size, dtype=skew.dtype, device=skew.device)
    parts = z.reshape(len(z), -1, size).permute(1, 2, 0)  # (D / b, b, N)
    turned: Tensor = torch.linalg.solve(eye - r, (eye + r) @ parts)
    return turned.permute(2, 0, 1).reshape(z.shape)


def _divisor(dim: int, size: int) -> int:
    """The divisor of ``dim``, of at least 2, nearest to ``size``."""
    divisors = [d for d in range(2, dim + 1) if dim % d == 0]
    return min(divisors, key=lambda d: abs(d - size))
