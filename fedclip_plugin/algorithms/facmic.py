"""FACMIC: the adapter's features are drawn to those of another domain, class by class.

Wu, Desrosiers, Chaddad, "FACMIC: Federated Adaptative CLIP Model for Medical Image
Classification", MICCAI 2024, arXiv 2410.14707; released code AIPMLab/FACMIC (MIT).  The
loss of a step is FedCLIP's in-batch loss plus ``weight * ramp * LMMD``, the local
maximum mean discrepancy (Zhu et al. 2021, "Deep Subdomain Adaptation Network", eq. 5)::

    LMMD = sum_ij a_ij k(s_i, s_j) + b_ij k(t_i, t_j) - 2 c_ij k(s_i, t_j)
    a = sum_k u_k u_k' / |K|   b = sum_k v_k v_k' / |K|   c = sum_k u_k v_k' / |K|

over the batch's gated source features ``s`` and target features ``t``.  ``u_k`` is the
one-hot label of class k and ``v_k`` the predicted probability of it, each divided by
its sum over the batch; K are the classes that both the labels and the predicted labels
have.  ``k`` sums five Gaussians of ``|x - y|^2 / (w 2^i)``, i = -2 .. 2, ``w`` the mean
squared distance in the batch.  ``ramp = 2 / (1 + exp(-gamma p)) - 1``, p from 0 to 1
over the first local steps (``sheduler.py`` of the released code).

The released training step differs from the paper: the target's features are normalised
but not gated, and the ramp is commented out.  ``--facmic-unlabelled plain
--facmic-ramp 0`` is that step.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.fields import Section, option
from ..wire.update import ClientUpdate, State
from .aligned import AlignedClip, BatchNormAdapter, train_aligned
from .base import Client, Task

KERNELS = 5  # Gaussians, each twice as wide as the one before


@dataclass(frozen=True)
class FacmicParams(Section):
    """How strongly the domains are drawn together."""

    weight: float = option(
        1.0, "of the distance between the domains", within="[0, inf)")  # fmt: skip
    ramp: int = option(
        1000, "local steps over which the weight rises; 0: at its full from the first, "
        "as in the released code", within="[0, inf)", metavar="N")  # fmt: skip
    gamma: float = option(
        1.0, "steepness of the ramp, which ends at 2 / (1 + exp(-gamma)) - 1",
        within="(0, inf)")  # fmt: skip
    unlabelled: str = option(
        "gated", "the features without labels, through the adapter or plain, as in the "
        "released code", choices=("gated", "plain"))  # fmt: skip


class Facmic(AlignedClip):
    """FedCLIP's loss and a local MMD to features without labels."""

    name = "facmic"
    source = "Wu et al. 2024, arXiv 2410.14707"
    Params = FacmicParams
    defaults: ClassVar = {"weight_decay": 0.02, "weighting": "examples"}

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """Local epochs; the ramp goes on from round to round."""
        adapter, p = BatchNormAdapter.of(state, task), task.params
        steps = itertools.count(_steps_before(client, task, round_number))

        def align(z: Tensor, y: Tensor, other: Tensor) -> Tensor:
            gated = adapter(other)
            scores = task.logit_scale * gated @ task.text.t()
            chance = scores.detach().softmax(dim=1)  # (B', C), the pseudo-labels
            target = gated if p.unlabelled == "gated" else F.normalize(other, dim=1)
            strength: float = p.weight * ramp(next(steps), p.ramp, p.gamma)
            return strength * local_mmd(z, target, y, chance)

        return train_aligned(adapter, align, client, task, round_number)


def _steps_before(client: Client, task: Task, round_number: int) -> int:
    """Local steps of the rounds before, as if the client had been in all of them."""
    t = task.train
    batches = -(-len(client.train) // t.batch_size)
    return (round_number - 1) * t.local_epochs * batches


def ramp(step: int, steps: int, gamma: float) -> float:
    """How much of the weight counts in local step ``step`` (from 0)."""
    if not steps:
        return 1.0
    return 2 / (1 + math.exp(-gamma * min(step / steps, 1.0))) - 1


def local_mmd(source: Tensor, target: Tensor, y: Tensor, chance: Tensor) -> Tensor:
    """LMMD () of ``source`` (B, D) with labels ``y`` and ``target`` (B', D).

    ``chance`` (B', C) are the probabilities of the target's classes.  0 where no class
    is in both.
    """
    classes = chance.shape[1]
    labels = F.one_hot(y, classes).to(source.dtype)  # (B, C)
    said = torch.bincount(chance.argmax(dim=1), minlength=classes)
    common = (labels.sum(dim=0) > 0) & (said > 0)
    if not common.any():
        return source.new_zeros(())
    u, v = labels[:, common], chance[:, common]
    u, v = u / u.sum(dim=0), v / v.sum(dim=0)
    signed = torch.cat([u, -v])  # (B + B', K)
    weights = signed @ signed.t() / signed.shape[1]
    return (weights * _kernels(torch.cat([source, target]))).sum()


def _kernels(x: Tensor) -> Tensor:
    """(N, N) sums of Gaussians of the squared distances of the rows of ``x`` (N, D)."""
    squares = x.square().sum(dim=1)
    distance = (squares[:, None] + squares - 2 * x @ x.t()).clamp_min(0)
    count = len(x)
    mean = distance.detach().sum() / (count * count - count)
    width = mean.clamp_min(1e-12) / 2 ** (KERNELS // 2)
    return torch.stack(
        [(-distance / (width * 2**i)).exp() for i in range(KERNELS)]
    ).sum(dim=0)
