"""FedPFT: each client sends Gaussians of its features, the server trains the head.

Beitollahi et al. 2024, "Parametric Feature Transfer: One-shot Federated Learning with
Foundation Models", arXiv 2402.01862, Algorithm 1.  One round: client ``i`` fits a
mixture of ``K`` Gaussians to its unit features of every class it has::

    p_ic(x) = sum_k w_ick N(x; mu_ick, S_ick)

with ``S = v I`` (spherical) or a diagonal; for ``K = 1`` these are the mean and the
variance, that over all dimensions if spherical.  They travel in fp16: ``C K (D + 2)``
numbers.  The server draws ``n_ic`` features of each and minimises the cross-entropy of
a linear head on them.

A class of few rows is left out, for the mean of one row is that row.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.fields import Section, option
from ..wire.update import ClientUpdate, State
from .base import Client, RoundAlgorithm, Samples, Task, generator_of
from .linear import Linear, LinearParams

_log = logging.getLogger("fedclip")
_HEAD = Linear()
_DRAW = 0x9F7  # keeps this draw apart from the sample orders


@dataclass(frozen=True)
class FedPftParams(Section):
    """What a client tells of a class."""

    mixtures: int = option(
        1, "Gaussians a class and client", within="[1, inf)")  # fmt: skip
    covariance: str = option(
        "spherical", "of a Gaussian; diagonal sends as many numbers again as the means",
        choices=("spherical", "diagonal"))  # fmt: skip
    min_count: int = option(
        2, "classes of which a client has fewer rows are left out there: few rows are "
        "told by their mean", within="[1, inf)")  # fmt: skip


class FedPft(RoundAlgorithm):
    """State: the head, ``weight`` (C, D) and ``bias`` (C,); untrained it is zero-shot.

    An update holds ``share`` (C, K), rows of a component over the client's rows,
    ``means`` (C, K, D) and ``variances`` (C, K), or (C, K, D) if diagonal.
    """

    name = "fedpft"
    trains = "a linear head, on the server"
    source = "Beitollahi et al. 2024, arXiv 2402.01862"
    Params = FedPftParams
    moves = False
    averages = False
    personalizes = False
    text_at_server = True
    defaults: ClassVar = {
        "rounds": 1, "compress": "fp16", "error_feedback": "off",
        "local_epochs": 50, "batch_size": 256, "lr": 1e-2, "weight_decay": 0.0,
    }  # fmt: skip

    def init(self, task: Task) -> State:
        """Zero-shot."""
        return _HEAD.init(replace(task, params=LinearParams("text")))

    def answer_like(self, sent: State, task: Task) -> State:
        """Gaussians in the place of the head."""
        p, (classes, dim) = task.params, task.text.shape
        new, shape = task.text.new_zeros, (classes, p.mixtures)
        wide = (*shape, dim)
        spread = wide if p.covariance == "diagonal" else shape
        return {"share": new(shape), "means": new(wide), "variances": new(spread)}

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """Every client's Gaussians; what was left out is said once."""
        for remark in self.remarks(state, clients, task):
            _log.warning("%s", remark)
        return [self._gaussians(state, client, task) for client in clients]

    def _gaussians(self, state: State, client: Client, task: Task) -> ClientUpdate:
        gaussians = self.answer_like(state, task)
        z, rows = F.normalize(client.train.x.double(), dim=1), len(client.train)
        for c, count in enumerate(_counts(client, task)):
            if count < task.params.min_count:
                continue
            share, means, variances = fit(z[client.train.y == c], task)
            used = len(share)
            gaussians["share"][c, :used] += share * count / rows
            gaussians["means"][c, :used] += means
            gaussians["variances"][c, :used] += variances
        return ClientUpdate(client.name, gaussians, rows)

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: State, task: Task
    ) -> State:
        """A head trained on features drawn of all Gaussians."""
        ordered = sorted(updates, key=lambda update: update.client)
        drawn = list(draw(ordered, task))
        if not drawn:
            return state
        x, y = (torch.cat(parts).to(task.text.device) for parts in zip(*drawn))
        none = Samples(x[:0], y[:0])
        server = Client("server", 0, Samples(x, y), none, none)
        head = replace(task, params=LinearParams())
        return _HEAD.local_train(_HEAD.init(head), server, head, 1).state

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Class scores of normalised features."""
        return _HEAD.predict(state, x, task)

    def remarks(
        self, state: State, clients: Sequence[Client], task: Task
    ) -> Sequence[str]:
        """Which rows nobody told of."""
        least = task.params.min_count
        few = [n for c in clients for n in _counts(c, task) if 0 < n < least]
        if not few:
            return []
        return [
            f"fedpft: {sum(few):,} training rows are left out, of {len(few):,} classes "
            f"with fewer than {least} rows at their client: --fedpft-min-count"
        ]


def _counts(client: Client, task: Task) -> list[int]:
    counts = torch.bincount(client.train.y, minlength=len(task.text))
    return [int(count) for count in counts]


def fit(z: Tensor, task: Task) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), means (K, D), variances (K,) or (K, D) of rows ``z`` (n, D).

    Fewer components than asked for where there are fewer rows than that and one more.
    """
    p = task.params
    count = min(p.mixtures, max(1, len(z) - 1))
    if count == 1:
        variance = z.var(dim=0, correction=0)[None]  # (1, D)
        if p.covariance == "spherical":
            variance = variance.mean(dim=1)
        return z.new_ones(1), z.mean(dim=0)[None], variance
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    kind = {"spherical": "spherical", "diagonal": "diag"}[p.covariance]
    mixture = GaussianMixture(count, covariance_type=kind, random_state=task.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # repeated rows
        mixture.fit(z.cpu().numpy())
    fitted = (mixture.weights_, mixture.means_, mixture.covariances_)
    share, means, variances = (torch.from_numpy(a).to(z) for a in fitted)
    return share, means, variances


def draw(
    updates: Sequence[ClientUpdate], task: Task
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features (n, D) and labels (n,) of every component, on the CPU.

    As many as the client has rows of it; drawn from the task's seed, the place of the
    client among ``updates``, the class and the component.
    """
    for place, update in enumerate(updates):
        gaussians = {key: value.cpu() for key, value in update.state.items()}
        counts = (gaussians["share"].double() * update.num_examples).round().long()
        for c, k in counts.clamp_min(0).nonzero().tolist():
            generator = generator_of(task.seed, _DRAW, place, c, k)
            count, mean = int(counts[c, k]), gaussians["means"][c, k]
            noise = torch.randn(count, len(mean), generator=generator)
            spread = gaussians["variances"][c, k].clamp_min(0).sqrt()
            yield mean + spread * noise, torch.full((count,), c)
