"""FAA-CLIP: an adapter whose features a domain classifier cannot tell apart.

Wu, Chaddad, Desrosiers, Daqqaq, Kateb, "FAA-CLIP: Federated Adversarial Adaptation of
CLIP", IEEE Internet of Things Journal 2025, arXiv 2503.05776.  The loss of a step is
FedCLIP's in-batch loss plus ``weight`` (0.5) times the binary cross-entropy of a domain
classifier, which tells the client's gated features (0) from those without labels (1).
Between them and the adapter the gradient is reversed (Ganin and Lempitsky 2015,
"Unsupervised Domain Adaptation by Backpropagation"), so that the classifier learns to
tell and the adapter to hide.  Only the adapter travels; every client goes on with a
classifier of its own.

The paper is the only source here.  What it leaves open, the classifier's shape, is one
hidden layer as wide as the features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.fields import Section, option
from ..errors import ConfigError
from ..wire.update import ClientUpdate, State
from .adapter import seeded
from .aligned import AlignedClip, BatchNormAdapter, train_aligned
from .base import Client, Task


@dataclass(frozen=True)
class FaaClipParams(Section):
    """How strongly the domains are hidden; the default is the paper's."""

    weight: float = option(
        0.5, "of the domain classifier's loss", within="[0, inf)")  # fmt: skip


class FaaClip(AlignedClip):
    """FedCLIP's loss and a domain classifier behind a reversed gradient."""

    name = "faa-clip"
    source = "Wu et al. 2025, arXiv 2503.05776"
    Params = FaaClipParams
    defaults: ClassVar = {"weight_decay": 0.02, "weighting": "examples"}

    def init(self, task: Task) -> State:
        """A fresh adapter, drawn from the task's seed."""
        if task.privacy.private:
            raise ConfigError(
                f"--alg {self.name}: the classifiers that its clients keep tie rounds "
                "together, which --dp-noise-multiplier cannot account for "
                "(docs/privacy.md)"
            )
        return super().init(task)

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """Local epochs of the adapter and of the client's own domain classifier."""
        adapter = BatchNormAdapter.of(state, task)
        classifier = seeded(lambda: domain_classifier(task.dim), task.seed)
        classifier = classifier.to(task.text.device)
        weight: float = task.params.weight

        def align(z: Tensor, y: Tensor, other: Tensor) -> Tensor:
            return weight * adversarial_loss(classifier, z, adapter(other))

        return train_aligned(adapter, align, client, task, round_number, classifier)


def domain_classifier(dim: int) -> nn.Sequential:
    """Features (N, D) -> (N, 1), the log-odds of another domain."""
    return nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, 1))


def adversarial_loss(classifier: nn.Module, own: Tensor, other: Tensor) -> Tensor:
    """Binary cross-entropy of own (B, D) against other features, reversed for them."""
    both = torch.cat([own, other])
    truth = torch.arange(len(both), device=both.device) >= len(own)
    said = classifier(_Reversed.apply(both)).squeeze(1)
    return F.binary_cross_entropy_with_logits(said, truth.to(said.dtype))


class _Reversed(torch.autograd.Function):
    """The identity, with the gradient's sign turned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient
