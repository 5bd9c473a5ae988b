"""TOFA: Gaussian discriminants of each client's own posterior, fused with zero-shot.

Zhang et al. 2025, "TOFA: Training-Free One-Shot Federated Adaptation for
Vision-Language Models", AAAI 2026, arXiv 2511.16423; there is no public code.  On unit
features, class means ``mu_c`` and one covariance ``S`` have a Normal-Inverse-Wishart
prior.  With ``n_c``, ``x_c`` counts and means and ``W`` the scatter within classes of
all clients together, ``N`` their rows, the global posterior has the parameters::

    k_c = k + n_c,  m_c = (k m + n_c x_c) / k_c
    L   = L_0 + W + sum_c (k n_c / k_c) (x_c - m)(x_c - m)',  v = v_0 + N

where ``m`` is the mean of all rows, ``k`` the weight of the prior in rows, and ``L_0 =
v_0 tr(W) / (N D) I``, ``v_0 = N l / (1 - l)``: with the shrinkage ``l`` that ``gda``
finds by cross-validation, ``L / v`` is its covariance.  A client's personal posterior
is the likelihood of its own rows times (the global one)^alpha: the same update of
``alpha k_c, m_c, alpha L, alpha v`` by its own ``n_c``, ``x_c``, ``W`` and ``N``.
Its mode is ``mu_c = m_c`` and ``S = L / v``, and ``gda``'s scores follow,
``x' S^-1 mu_c - mu_c' S^-1 mu_c / 2``.

Visual scores ``V`` and zero-shot scores ``T`` are fused by a sample's confidence::

    eta = sigmoid(log(max softmax(V) / max softmax(T)))
    score = eta log softmax(V) + (1 - eta) log softmax(T)

Unlike in the paper, descriptions of a class are not weighed against each other: the
text features are those of ``--prompt``, whose templates count alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..config.fields import Section, option
from ..wire.update import ClientUpdate, State
from .base import Client, Task
from .gda import Gda, GdaParams, choose
from .statistics import Moments, unit

OWN = "own_"  # before the names of a client's means, which it keeps
UNTOLD_ROWS = 1e4  # stands for N at a server that knows the mean alone
_TOLD = ("share", "sums", "second")


@dataclass(frozen=True)
class TofaParams(Section):
    """How much each part of a posterior weighs."""

    alpha: float = option(
        0.5, "power of the global posterior in a client's own; 1 counts all rows in "
        "full, and the client's twice", within="(0, 1]")  # fmt: skip
    prior: float = option(
        1.0, "rows that the prior of a class mean counts for", within="(0, inf)",
        metavar="ROWS")  # fmt: skip
    shrinkage: float | None = option(
        None, "of the covariance towards a sphere", within="(0, 1)", metavar="F",
        shown="by cross-validation on the statistics")  # fmt: skip


@dataclass(frozen=True)
class Posterior:
    """Normal-Inverse-Wishart over C class means and one covariance; float64.

    ``strength`` (C,) rows behind each of ``means`` (C, D); ``scatter`` (D, D) over
    ``freedom`` is the covariance at the mode.
    """

    strength: Tensor
    means: Tensor
    scatter: Tensor
    freedom: float

    def tempered(self, power: float) -> Posterior:
        """Its ``power``, normalised."""
        return Posterior(
            power * self.strength,
            self.means,
            power * self.scatter,
            power * self.freedom,
        )

    def updated(self, counts: Tensor, means: Tensor, scatter: Tensor) -> Posterior:
        """After rows with ``counts`` (C,), ``means`` (C, D) and ``scatter`` (D, D)."""
        strength = self.strength + counts
        weight = counts / strength  # (C,)
        gap = means - self.means
        between = (gap.t() * (weight * self.strength)) @ gap
        return Posterior(
            strength,
            self.means + weight[:, None] * gap,
            self.scatter + scatter + between,
            self.freedom + float(counts.sum()),
        )

    def scores(self, z: Tensor) -> Tensor:
        """Scores (N, C) of unit features ``z`` (N, D) at the mode."""
        covariance = self.scatter / self.freedom
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed):  # rounding, or a lying client, made it indefinite
            values, vectors = torch.linalg.eigh(covariance)
            floor = 1e-6 * max(float(values.max()), 1e-12)
            definite = (vectors * values.clamp_min(floor)) @ vectors.t()
            factor = torch.linalg.cholesky(definite)
        weight = torch.cholesky_solve(self.means.t(), factor).t()  # (C, D)
        return z @ weight.t() - (self.means * weight).sum(dim=1) / 2


class Tofa(Gda):
    """State: that of ``gda``; a client keeps the means over its own rows."""

    name = "tofa"
    trains = "nothing: means, one covariance, and each client's own"
    source = "Zhang et al. 2025, arXiv 2511.16423"
    Params = TofaParams
    personal = True
    defaults: ClassVar = {"rounds": 1, "weighting": "examples"}

    def init(self, task: Task) -> State:
        """No rows."""
        return super().init(_as_gda(task))

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """The means over each client's rows; it keeps them as well."""
        shared = {k: v for k, v in state.items() if not k.startswith(OWN)}
        updates = super().local_round(shared, clients, _as_gda(task), round_number)
        return [replace(u, kept=_kept(u)) for u in updates]

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: State, task: Task
    ) -> State:
        """The mean over all rows."""
        return super().aggregate(updates, state, _as_gda(task))

    def remarks(
        self, state: State, clients: Sequence[Client], task: Task
    ) -> Sequence[str]:
        """Those of gda."""
        return super().remarks(state, clients, _as_gda(task))

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Fused scores by a client's posterior if ``state`` has its rows, else by the
        global one; before any row has come, those of zero-shot."""
        z = unit(x)
        text = task.logit_scale * z @ task.text.double().t()
        posterior = posterior_of(state, task)
        if posterior is None:
            return text.float()
        return fused(posterior.scores(z), text).float()


def fused(visual: Tensor, text: Tensor) -> Tensor:
    """Scores (N, C) of both kinds, each sample's by its confidence."""
    log_ratio = visual.log_softmax(1).amax(1) - text.log_softmax(1).amax(1)
    eta = log_ratio.sigmoid()[:, None]
    return eta * visual.log_softmax(1) + (1 - eta) * text.log_softmax(1)


def posterior_of(state: State, task: Task) -> Posterior | None:
    """The posterior that ``state`` predicts with; None before any row has come.

    Classes without any row have the mean of all rows as theirs.
    """
    moments = Moments({key: state[key] for key in (*_TOLD, "row_weight")})
    if not bool(moments.seen.any()):
        return None
    everyone = _global(moments, state, task)
    rows = float(state.get(OWN + "rows", torch.zeros(1)))
    if rows <= 0:
        return everyone
    own = Moments(_own(state, rows))
    counts, scatter = rows * own.share, rows * own.within
    return everyone.tempered(task.params.alpha).updated(counts, own.means, scatter)


def _global(moments: Moments, state: State, task: Task) -> Posterior:
    weight = float(state["row_weight"])
    rows = 1 / weight if weight > 0 else UNTOLD_ROWS
    shrinkage = float(state["chosen"][0])
    if shrinkage <= 0:
        shrinkage, _ = choose(state, _as_gda(task))
    strength = rows * shrinkage / (1 - shrinkage)  # v_0
    eye = torch.eye(len(moments.second)).to(moments.second)
    prior = Posterior(
        torch.full_like(moments.share, task.params.prior),
        moments.sums.sum(dim=0).expand_as(moments.means),
        strength * moments.variance * eye,
        strength,
    )
    within = moments.sound(shrinkage)
    return prior.updated(rows * moments.share, moments.means, rows * within)


def _as_gda(task: Task) -> Task:
    return replace(task, params=GdaParams(task.params.shrinkage, 0.0))


def _kept(update: ClientUpdate) -> State:
    rows = update.state["share"].new_tensor([float(update.num_examples)])
    return {OWN + k: update.state[k].clone() for k in _TOLD} | {OWN + "rows": rows}


def _own(state: State, rows: float) -> State:
    own = {key: state[OWN + key] for key in _TOLD}
    return own | {"row_weight": own["share"].new_tensor([1 / rows])}
