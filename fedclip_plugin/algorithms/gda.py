"""Federated Gaussian discriminant analysis: one round, closed form, nothing trained.

Linear discriminant analysis (Fisher 1936; Friedman 1989, "Regularized Discriminant
Analysis", eq. 18, for the shrinkage) on frozen features ``x`` (N, D) of unit length,
fused with zero-shot as by Wang et al. 2024, "A Hard-to-Beat Baseline for Training-free
CLIP-based Adaptation", arXiv 2402.04087::

    mu_c = (1 / n_c) sum_{i: y_i = c} x_i                                    (C, D)
    W    = (1 / N) sum_i (x_i - mu_{y_i}) (x_i - mu_{y_i})'                  (D, D)
    S    = (1 - l) W + l tr(W) / D I                                         (D, D)
    score_c(x) = x' S^-1 mu_c - mu_c' S^-1 mu_c / 2 + w s x' t_c

with ``t_c`` the text features, ``s`` the logit scale.  The class means are those of all
clients together, so that ``W = (1 / N) sum_i x_i x_i' - sum_c (n_c / N) mu_c mu_c'``: a
client sends the means over its own rows of the one-hot labels, of the features by class
and of ``x x'``, and the mean weighted by rows is that of all rows.  How rows are spread
over clients, and the order of clients, do not matter.

With ``epsilon`` the server adds noise to the sums over all rows, once, and everything
after follows from those: see ``private_gda.py``.

``l`` is chosen on the server, from the same statistics, by generalised cross-validation
(Golub, Heath and Wahba 1979) of the equivalent ridge regression; from a second round on
``l`` and ``w`` by the hits on the clients' validation splits, whose sums travel too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.fields import Section, option
from ..errors import ConfigError
from ..server import privacy
from ..wire.update import ClientUpdate, State
from . import private_gda
from .base import Algorithm, Client, Samples, Task

SHRINKAGES = (0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.01, 0.001)  # of equals the first wins
ZERO_SHOTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
LEAST_SPREAD = 1e-6  # of tr(W), where |x| = 1: below it no class has two unlike rows
USUAL_SPREAD = 0.01  # stands for tr(W) then: any does, for the nearest mean wins
LEAST_SHARE = 1e-7  # less is what a sum under SecAgg+ leaves of 0
LEAST_FREE = 0.05  # of the rows; below it rounding would decide
ROUNDING = {"none": 1e-4, "fp16": 1e-2, "int8": 0.1}  # codec -> of statistics
HITS_UNIT = 100.0  # hits travel as a small number: SecAgg+ clips what is large


@dataclass(frozen=True)
class GdaParams(Section):
    """What is chosen where the user does not say it."""

    shrinkage: float | None = option(
        None, "of the covariance towards a sphere", within="(0, 1]", metavar="F",
        shown="by cross-validation on the statistics; from a second round on by the "
        "clients' validation splits")  # fmt: skip
    zero_shot: float | None = option(
        None, "weight of the zero-shot scores beside gda's", within="[0, inf)",
        metavar="F", shown="0; from a second round on by the clients' validation "
        "splits")  # fmt: skip
    epsilon: float | None = option(
        None, "example-level differential privacy: the server adds noise, once, so "
        "that the model hides each training image at --dp-delta (docs/privacy.md)",
        within="[0.001, 1e6]", metavar="E", shown="no noise")  # fmt: skip

    @property
    def example_epsilon(self) -> float | None:
        """What ``config.schema.hides_examples`` asks for."""
        return self.epsilon


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
        z = _unit(x)
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
        second = _unpacked(state["second"]) * rows
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
        state["second"] += _packed(self.second / rows)
        state["row_weight"] += float(self.rows > 0) / rows
        return state


class Gda(Algorithm):
    """State: what the module's docstring tells, as means over all rows.

    ``share`` (C,) n_c / N, ``sums`` (C, D), ``second`` (D (D + 1) / 2,) the upper
    triangle row by row, ``hits`` (L, V) right validation rows of every l and w;
    ``row_weight`` (1,) 1 / N and ``chosen`` (2,) l and w are the server's, 0 as long
    as it has not set them.
    """

    name = "gda"
    trains = "nothing: means and one covariance"
    source = "Fisher 1936, Friedman 1989; arXiv 2402.04087"
    Params: ClassVar[type] = GdaParams
    moves = False
    presets: ClassVar = {"best": {}}  # what benchmarks/results/beyond-gda.md found
    defaults: ClassVar = {"rounds": 1, "weighting": "examples"}

    def init(self, task: Task) -> State:
        """No rows; raises ConfigError where compression would carry rounds over, and
        where privacy would not hold."""
        _check_private(task)
        wire = task.wire
        if task.train.rounds > 1 and {wire.compress, wire.compress_down} != {"none"}:
            raise ConfigError(
                "--alg gda is made anew in every round, which error feedback would "
                "disturb: compress with --rounds 1 only"
            )
        classes, dim = task.text.shape
        new = task.text.new_zeros
        return {
            "share": new(classes),
            "sums": new(classes, dim),
            "second": new(dim * (dim + 1) // 2),
            "hits": new(len(_shrinkages(task)), len(_zero_shots(task))),
            "row_weight": new(1),
            "chosen": new(2),
        }

    def local_train(
        self, state: State, client: Client, task: Task, round_number: int
    ) -> ClientUpdate:
        """The client's own means, and its hits where there is a classifier."""
        return self.local_round(state, [client], task, round_number)[0]

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """All clients judge the same candidates: those are made once."""
        moments, rules = Moments(state), []
        if bool(moments.seen.any()) and _epsilon(task) is None:
            rules = [moments.classifier(each) for each in _shrinkages(task)]
        updates = []
        for c in clients:
            own = Statistics.of(c.train.x, c.train.y, len(task.text)).to_state(state)
            own |= {key: state[key].clone() for key in ("row_weight", "chosen")}
            if rules and len(c.train):
                own["hits"] += _hits(rules, c.val, task) / (HITS_UNIT * len(c.train))
            updates.append(ClientUpdate(c.name, own, len(c.train)))
        return updates

    def doubt(self, update: ClientUpdate, sent: State) -> str | None:
        """Why its means are not those of any rows of unit length; None if they can be.

        What a codec may have rounded away is allowed for; coarser ones are not judged.
        """
        if update.num_examples <= 0 or update.codec not in ROUNDING:
            return None
        return implausible(update.state, ROUNDING[update.codec])

    def aggregate(
        self, updates: Sequence[ClientUpdate], state: State, task: Task
    ) -> State:
        """The mean, the number of rows behind it, and the l and w that they call for.

        A server that knows the mean alone leaves both out: :meth:`predict` then takes
        what needs no number of rows.  Nor is it known where clients are private.
        """
        after = super().aggregate(updates, state, task)
        rows = sum(u.num_examples for u in updates if u.num_examples > 0)
        if (epsilon := _epsilon(task)) is not None:
            after, rows = _released(after, rows, task, epsilon)
        elif task.privacy.private:
            return _without_count(after)
        if not rows:
            return after
        weight = after["row_weight"].new_tensor([1 / rows])
        after = {**after, "row_weight": weight}
        return {**after, "chosen": weight.new_tensor(choose(after, task))}

    def epsilon(self, task: Task) -> float | None:
        """That of the one release, by the accountant from its noise."""
        if (epsilon := _epsilon(task)) is None:
            return None
        delta = task.privacy.dp_delta
        noise = privacy.multiplier_for(epsilon, delta)
        return float(privacy.accountant().get_epsilon_gaussian(noise, delta))

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Class scores; before any row has come, those of zero-shot."""
        z, text = _unit(x), task.logit_scale * task.text.double()
        moments = Moments(state)
        if not bool(moments.seen.any()):
            return (z @ text.t()).float()
        shrinkage, zero_shot = state["chosen"].tolist()
        if shrinkage <= 0:
            shrinkage, zero_shot = choose(state, task)
        weight, bias = moments.classifier(shrinkage)
        scores: Tensor = z @ (weight + zero_shot * text).t() + bias
        return scores.float()


class Moments:
    """A state in float64, and the classifiers that follow from it."""

    def __init__(self, state: State) -> None:
        share, least = state["share"].double(), float(state["row_weight"]) / 2
        self.seen = share > max(least, LEAST_SHARE)  # (C,)
        self.share = torch.where(self.seen, share, 0.0)
        self.sums = torch.where(self.seen[:, None], state["sums"].double(), 0.0)
        self.second = _unpacked(state["second"])  # (D, D)
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
        eye = torch.eye(len(self.second)).to(self.second)
        floor = shrinkage * self.variance
        covariance = (1 - shrinkage) * self.within + floor * eye
        factor, failed = torch.linalg.cholesky_ex(covariance)
        if bool(failed):  # rounding, or noise, made W indefinite
            values, vectors = torch.linalg.eigh(covariance)
            factor = torch.linalg.cholesky(
                (vectors * values.clamp_min(floor)) @ vectors.t()
            )
        weight = torch.cholesky_solve(self.means.t(), factor).t()  # (C, D)
        bias = -(self.means * weight).sum(dim=1) / 2
        weight = weight - weight[self.seen].mean(dim=0)  # no score of a row changes
        bias = bias - bias[self.seen].mean()  # against another by this
        return (
            torch.where(self.seen[:, None], weight, 0.0),
            torch.where(self.seen, bias, -1.0),
        )

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
        found = []
        for shrinkage in shrinkages:
            ridge = values + shrinkage / (1 - shrinkage) * self.variance
            residual = total - (power * (2 * ridge - values) / ridge.square()).sum()
            free = 1 - (1 + (values / ridge).sum()) / rows
            found.append(
                float(residual / free.square()) if free > LEAST_FREE else math.inf
            )
        return found


def implausible(state: State, slack: float) -> str | None:
    """Which property of means over rows of unit length ``state`` lacks, if any.

    Shares are not negative and sum to 1; ``|sums_c| <= share_c``; ``second`` has trace
    1, and ``second - sum_c sums_c sums_c' / share_c``, the scatter within classes, is
    positive semidefinite, each but for ``slack``.  ``second`` is symmetric for it
    travels as a triangle.
    """
    share, sums = state["share"].double(), state["sums"].double()
    second = _unpacked(state["second"])
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
    if abs(float(second.trace()) - 1) > slack:
        return f"its second moment has the trace {float(second.trace()):.3g}, not 1"
    if float(state["hits"].min()) < -slack:
        return "it counts less than no right validation rows"
    held = share > slack
    means = sums[held] / share[held, None].sqrt()
    within = second - means.t() @ means
    within.diagonal().add_(slack)
    _, failed = torch.linalg.cholesky_ex(within)
    if bool(failed):
        return "its second moment is no sum of squares around its class means"
    return None


def _epsilon(task: Task) -> float | None:
    """What was asked for; methods that build on this one may not know of it."""
    asked: float | None = getattr(task.params, "epsilon", None)
    return asked


def _check_private(task: Task) -> None:
    """Refuse what one row could change by more, or more often, than noise hides."""
    if (epsilon := _epsilon(task)) is None:
        return
    if task.privacy.private:
        raise ConfigError(
            "--gda-epsilon hides examples, --dp-noise-multiplier clients: choose one"
        )
    needed = [
        ("rounds", task.train.rounds, 1),
        ("weighting", task.server.weighting, "examples"),
        ("aggregation", task.server.aggregation, "mean"),
        ("compress", task.wire.compress, "none"),
    ]
    for name, value, allowed in needed:
        if value != allowed:
            raise ConfigError(
                f"--{name} {value} does not go with --gda-epsilon (docs/privacy.md "
                f"tells why): expected {allowed}"
            )
    privacy.multiplier_for(epsilon, task.privacy.dp_delta)


def _released(
    mean: State, rows: float, task: Task, epsilon: float
) -> tuple[State, int]:
    """The state that the noisy sums behind a ``mean`` over ``rows`` call for; and the
    number of rows that it tells."""
    second = _unpacked(mean["second"])
    exact = private_gda.Moments(
        (mean["share"].double() * rows).round(),
        mean["sums"].double() * rows,
        second * rows,
    )
    config, text = task.privacy, task.text.double()
    multiplier = privacy.multiplier_for(epsilon, config.dp_delta)
    classes, dim = text.shape
    noise = private_gda.noise_of(classes, dim, multiplier)
    entropy = privacy.noise_entropy(config, task.seed, 1)
    noisy = private_gda.release(exact, noise, entropy)
    told = private_gda.denoised(noisy, noise, text)
    count = max(1, round(float(told.counts.sum())))
    found = Statistics(float(count), told.counts, told.sums, told.second)
    return found.to_state(mean), count


def _without_count(state: State) -> State:
    """A noisy mean over clients: what says of rows, and is chosen by them, is noise."""
    of_rows = ("hits", "row_weight", "chosen")
    return {k: torch.zeros_like(v) if k in of_rows else v for k, v in state.items()}


def choose(state: State, task: Task) -> tuple[float, float]:
    """l and w: by the hits, if there are any; else by cross-validation, and the least.

    Hits are whole numbers again before they are compared, so that rounding on the way
    decides no tie; of equals the stronger shrinkage wins, then the lower w.
    """
    shrinkages, zero_shots = _shrinkages(task), _zero_shots(task)
    weight = float(state["row_weight"])
    rows = 1 / weight if weight > 0 else 0.0
    hits = state["hits"].double()
    if bool((hits > 0).any()):
        if rows:
            hits = (hits * HITS_UNIT * rows).round()
        best = int(hits.argmax())
        return shrinkages[best // len(zero_shots)], zero_shots[best % len(zero_shots)]
    if len(shrinkages) == 1 or not rows:
        return shrinkages[len(shrinkages) // 2], zero_shots[0]
    scores = Moments(state).cross_validation(shrinkages, rows)
    return shrinkages[scores.index(min(scores))], zero_shots[0]


def _shrinkages(task: Task) -> tuple[float, ...]:
    asked = task.params.shrinkage
    return SHRINKAGES if asked is None else (asked,)


def _zero_shots(task: Task) -> tuple[float, ...]:
    asked = task.params.zero_shot
    return ZERO_SHOTS if asked is None else (asked,)


def _hits(rules: Sequence[tuple[Tensor, Tensor]], val: Samples, task: Task) -> Tensor:
    """Right rows of every shrinkage and zero-shot weight, (L, V) float64."""
    z = _unit(val.x)
    text = task.logit_scale * z @ task.text.double().t()  # (N, C)
    rows = []
    for weight, bias in rules:
        scores = z @ weight.t() + bias
        right = [(scores + w * text).argmax(dim=1) == val.y for w in _zero_shots(task)]
        rows.append(torch.stack(right).double().sum(dim=1))
    return torch.stack(rows)


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x.double(), dim=1)


def _packed(matrix: Tensor) -> Tensor:
    row, column = torch.triu_indices(*matrix.shape, device=matrix.device)
    return matrix[row, column]


def _unpacked(triangle: Tensor) -> Tensor:
    """The symmetric (D, D) float64 whose upper triangle it is, row by row."""
    dim = int(((8 * len(triangle) + 1) ** 0.5 - 1) / 2)
    row, column = torch.triu_indices(dim, dim, device=triangle.device)
    upper = torch.zeros(dim, dim, dtype=torch.float64, device=triangle.device)
    upper[row, column] = triangle.double()
    return upper + upper.triu(1).t()
