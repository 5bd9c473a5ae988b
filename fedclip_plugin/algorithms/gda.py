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

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..config.fields import Section, option
from ..errors import ConfigError
from ..wire.update import ClientUpdate, State
from . import private_gda
from .base import Client, RoundAlgorithm, Samples, Task
from .statistics import Moments, Statistics, implausible, unit

SHRINKAGES = (0.9, 0.7, 0.5, 0.3, 0.1, 0.03, 0.01, 0.001)  # of equals the first wins
ZERO_SHOTS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0)
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


class Gda(RoundAlgorithm):
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
        private_gda.check(task)
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

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """Each client's own means, and its hits where there is a classifier.

        All clients judge the same candidates: those are made once.
        """
        moments, rules = Moments(state), []
        if bool(moments.seen.any()) and private_gda.epsilon_of(task) is None:
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
        if (epsilon := private_gda.epsilon_of(task)) is not None:
            after, rows = private_gda.released(after, rows, task, epsilon)
        elif task.privacy.private:
            return private_gda.hiding_clients(after, rows, task)
        if not rows:
            return after
        weight = after["row_weight"].new_tensor([1 / rows])
        after = {**after, "row_weight": weight}
        return {**after, "chosen": weight.new_tensor(choose(after, task))}

    def epsilon(self, task: Task) -> float | None:
        """That of the one release, by the accountant from its noise."""
        return private_gda.cost(task)

    def predict(self, state: State, x: Tensor, task: Task) -> Tensor:
        """Class scores; before any row has come, those of zero-shot."""
        z, text = unit(x), task.logit_scale * task.text.double()
        moments = Moments(state)
        if not bool(moments.seen.any()):
            return (z @ text.t()).float()
        shrinkage, zero_shot = _chosen(state, task)
        weight, bias = moments.classifier(shrinkage)
        scores: Tensor = z @ (weight + zero_shot * text).t() + bias
        return scores.float()

    def remarks(
        self, state: State, clients: Sequence[Client], task: Task
    ) -> Sequence[str]:
        """How far what came is from sums over rows, where that decides."""
        moments = Moments(state)
        if not bool(moments.seen.any()):
            return ()
        if not (least := moments.least(_chosen(state, task)[0])):
            return ()  # what is below 0 by float rounding alone does not decide
        values = torch.linalg.eigvalsh(moments.within)
        count = int((values < least).sum())
        return (
            f"{self.name}: the covariance that came has eigenvalues below 0, the least "
            f"{-least:.1e}, by rounding on the way (--compress, SecAgg+) or by updates "
            f"that are not means over rows: {count:,} of {len(values):,} directions "
            "vary less, and count as if they varied as much",
        )


def _chosen(state: State, task: Task) -> tuple[float, float]:
    """l and w of the server, or those that its statistics call for."""
    shrinkage, zero_shot = state["chosen"].tolist()
    return (shrinkage, zero_shot) if shrinkage > 0 else choose(state, task)


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
    shrinkage = task.params.shrinkage
    return SHRINKAGES if shrinkage is None else (shrinkage,)


def _zero_shots(task: Task) -> tuple[float, ...]:
    zero_shot = task.params.zero_shot
    return ZERO_SHOTS if zero_shot is None else (zero_shot,)


def _hits(rules: Sequence[tuple[Tensor, Tensor]], val: Samples, task: Task) -> Tensor:
    """Right rows of every shrinkage and zero-shot weight, (L, V) float64."""
    z = unit(val.x)
    text = task.logit_scale * z @ task.text.double().t()  # (N, C)
    rows = []
    for weight, bias in rules:
        scores = z @ weight.t() + bias
        right = [(scores + w * text).argmax(dim=1) == val.y for w in _zero_shots(task)]
        rows.append(torch.stack(right).double().sum(dim=1))
    return torch.stack(rows)
