"""Class means and one covariance: the sums that ``gda`` is made of, and its rule.

See ``gda.py`` for the formulas.  A row is a feature of unit length; one of zeros, which
has no direction, counts in its class and adds nothing to sums.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import ConfigError
from ..wire.update import State

LEAST_SPREAD = 1e-6  # of tr(W), where |x| = 1: below it no class has two unlike rows
USUAL_SPREAD = 0.01  # stands for tr(W) then: any does, for the nearest mean wins
LEAST_SHARE = 1e-7  # less is what a sum under SecAgg+ leaves of 0
LEAST_FREE = 0.05  # of the rows; below it rounding would decide


@dataclass(frozen=True)
class Statistics:
    """Sums over ``rows`` features of unit length; float64, so that + and - are exact.

    ``counts`` (C,) rows of each class, ``sums`` (C, D) of their features, ``second``
    (D, D) the sum of ``x x'``.  A client that joins late is added, one that leaves is
    subtracted: the rest is as if it had never been there.
    """

    rows: float
    counts: Tensor
    sums: Tensor
    second: Tensor

    @classmethod
    def of(cls, x: Tensor, y: Tensor, classes: int) -> Statistics:
        """Of raw features ``x`` (N, D) and labels ``y`` (N,) int64 < ``classes``."""
        z = unit(x)
        sums = z.new_zeros(classes, z.shape[1]).index_add_(0, y, z)
        counts = torch.bincount(y, minlength=classes).to(z)
        return cls(float(len(y)), counts, sums, z.t() @ z)

    @classmethod
    def of_state(cls, state: State) -> Statistics:
        """Of a server's state; raises ConfigError for one that has seen no row."""
        weight = float(state["row_weight"])
        if weight <= 0:
            raise ConfigError("this gda state has seen no rows: run a round first")
        rows = float(round(1 / weight))
        counts = (state["share"].double() * rows).round()
        second = unpacked(state["second"]) * rows
        return cls(rows, counts, state["sums"].double() * rows, second)

    def __add__(self, other: Statistics) -> Statistics:
        return Statistics(
            self.rows + other.rows,
            self.counts + other.counts,
            self.sums + other.sums,
            self.second + other.second,
        )

    def __sub__(self, other: Statistics) -> Statistics:
        if other.rows > self.rows:
            raise ConfigError(
                f"{other.rows:g} rows cannot leave {self.rows:g}: they were never added"
            )
        return Statistics(
            self.rows - other.rows,
            self.counts - other.counts,
            self.sums - other.sums,
            self.second - other.second,
        )

    def to_state(self, like: State) -> State:
        """The means in the form of ``like``; what is chosen and counted there is 0."""
        state = {key: torch.zeros_like(value) for key, value in like.items()}
        rows = max(self.rows, 1.0)
        state["share"] += self.counts / rows
        state["sums"] += self.sums / rows
        state["second"] += packed(self.second / rows)
        state["row_weight"] += float(self.rows > 0) / rows
        return state


class Moments:
    """A state in float64, and the classifiers that follow from it."""

    def __init__(self, state: State) -> None:
        share, least = state["share"].double(), float(state["row_weight"]) / 2
        self.seen = share > max(least, LEAST_SHARE)  # (C,)
        self.share = torch.where(self.seen, share, 0.0)
        self.sums = torch.where(self.seen[:, None], state["sums"].double(), 0.0)
        self.second = unpacked(state["second"])  # (D, D)
        self.means = self.sums / torch.where(self.seen, share, 1.0)[:, None]  # (C, D)
        self.within = self.second - (self.means.t() * self.share) @ self.means
        spread = float(self.within.trace())
        if spread < LEAST_SPREAD:
            spread = USUAL_SPREAD
        self.variance = spread / len(self.second)  # tr(W) / D

    def classifier(self, shrinkage: float) -> tuple[Tensor, Tensor]:
        """``weight`` (C, D) and ``bias`` (C,) of the scores without zero-shot.

        A class without rows scores as the others on average, less one: it wins by
        zero-shot or not at all.
        """
        within = self.sound(shrinkage)
        factor = torch.linalg.cholesky(self._shrunk(within, shrinkage))
        weight = torch.cholesky_solve(self.means.t(), factor).t()  # (C, D)
        bias = -(self.means * weight).sum(dim=1) / 2
        weight = weight - weight[self.seen].mean(dim=0)  # no score of a row changes
        bias = bias - bias[self.seen].mean()  # against another by this
        return (
            torch.where(self.seen[:, None], weight, 0.0),
            torch.where(self.seen, bias, -1.0),
        )

    def sound(self, shrinkage: float) -> Tensor:
        """W (D, D), its eigenvalues at least :meth:`least`."""
        least = self.least(shrinkage)
        if not least:
            return self.within
        values, vectors = torch.linalg.eigh(self.within)
        nearer: Tensor = (vectors * values.clamp_min(least)) @ vectors.t()
        return nearer

    def least(self, shrinkage: float) -> float:
        """Below which no eigenvalue of W is to be trusted; 0 where all are.

        W has none below 0.  Rounding on the way (a codec, SecAgg+), noise and lies give
        it some, and have moved the others as far: directions that vary less than the
        most negative one is deep are mixed with each other, and the inverse would make
        most of them, the more so on a domain that varies there.  Where the shrinkage is
        stronger than that, nothing is changed.
        """
        covariance = self._shrunk(self.within, shrinkage)
        _, failed = torch.linalg.cholesky_ex(covariance)
        if not bool(failed):
            return 0.0
        return max(0.0, -float(torch.linalg.eigvalsh(self.within)[0]))

    def _shrunk(self, within: Tensor, shrinkage: float) -> Tensor:
        eye = torch.eye(len(within)).to(within)
        return (1 - shrinkage) * within + shrinkage * self.variance * eye

    def cross_validation(self, shrinkages: Sequence[float], rows: float) -> list[float]:
        """Generalised cross-validation of each of ``shrinkages``; the least is best.

        Ridge regression of the centred one-hot labels on the centred features with the
        penalty ``l / (1 - l) tr(W) / D`` finds the same directions (Hastie, Buja and
        Tibshirani 1995, "Penalized Discriminant Analysis").  With ``H`` its hat matrix:
        ``(|(I - H) Y|^2 / N) / (1 - tr(H) / N)^2``, all from the moments.
        """
        mean = self.sums.sum(dim=0)  # (D,)
        values, vectors = torch.linalg.eigh(self.second - torch.outer(mean, mean))
        noise = max(0, len(values) - max(0, round(rows) - 1))  # N - 1 are not rounding
        values[:noise] = 0
        values = values.clamp_min(0)
        cross = (self.sums - self.share[:, None] * mean) @ vectors  # (C, D)
        power = cross[:, noise:].square().sum(dim=0)
        power = F.pad(power, (noise, 0))
        total = (self.share - self.share.square()).sum()
        scores = []
        for shrinkage in shrinkages:
            ridge = values + shrinkage / (1 - shrinkage) * self.variance
            residual = total - (power * (2 * ridge - values) / ridge.square()).sum()
            free = 1 - (1 + (values / ridge).sum()) / rows
            scores.append(
                float(residual / free.square()) if free > LEAST_FREE else math.inf
            )
        return scores


def implausible(state: State, slack: float) -> str | None:
    """Which property of means over rows of unit length ``state`` lacks, if any.

    Shares are not negative and sum to 1; ``|sums_c| <= share_c``; ``second`` has a
    trace of 1, or less where rows are zeros; and ``second - sum_c sums_c sums_c' /
    share_c``, the scatter within classes, is positive semidefinite, each but for
    ``slack``.  ``second`` is symmetric for it travels as a triangle.
    """
    share, sums = state["share"].double(), state["sums"].double()
    second = unpacked(state["second"])
    if float(share.min()) < -slack or abs(float(share.sum()) - 1) > slack:
        return (
            f"its class shares are {float(share.min()):.3g} at least and sum to "
            f"{float(share.sum()):.3g}: expected 0 or more, and 1"
        )
    over = sums.norm(dim=1) - share
    if float(over.max()) > slack:
        return (
            f"the mean of its class {int(over.argmax())} is longer than the features, "
            "which have unit length"
        )
    if not -slack <= float(second.trace()) <= 1 + slack:
        return (
            f"its second moment has the trace {float(second.trace()):.3g}: expected 1, "
            "or less where features are zeros"
        )
    if float(state["hits"].min()) < -slack:
        return "it counts less than no right validation rows"
    held = share > slack
    means = sums[held] / share[held, None].sqrt()
    within = second - means.t() @ means
    within.diagonal().add_(slack)
    _, failed = torch.linalg.cholesky_ex(within)
    if bool(failed):
        return "its second moment is not a sum of squares around its class means"
    return None


def unit(x: Tensor) -> Tensor:
    """``x`` (N, D) in float64, each row of length 1; a row of zeros stays one."""
    return F.normalize(x.double(), dim=1)


def packed(matrix: Tensor) -> Tensor:
    """The upper triangle of ``matrix`` (D, D), row by row."""
    row, column = torch.triu_indices(*matrix.shape, device=matrix.device)
    return matrix[row, column]


def unpacked(triangle: Tensor) -> Tensor:
    """The symmetric (D, D) float64 whose upper triangle it is, row by row."""
    dim = int(((8 * len(triangle) + 1) ** 0.5 - 1) / 2)
    row, column = torch.triu_indices(dim, dim, device=triangle.device)
    upper = torch.zeros(dim, dim, dtype=torch.float64, device=triangle.device)
    upper[row, column] = triangle.double()
    return upper + upper.triu(1).t()
