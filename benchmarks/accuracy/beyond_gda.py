"""What beats gda on unseen domains, chosen by the source clients' validation alone?

    python -m benchmarks beyond-gda --features DIR

Closed forms on the statistics that gda's clients send, or a little more, each with a
grid of what it leaves open.  A setting is chosen three ways: by the source clients'
validation rows (*validation*), by those of each source judged by what is fitted to the
others (*left out*, "leave one domain out" of DomainBed, Gulrajani and Lopez-Paz 2021;
statistics subtract, so it costs a server nothing to ask), and by the sum of both.
*Limit* is the best setting in hindsight, which nobody can choose.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.accuracy.study import Place, Row, Study, federation, run_study
from benchmarks.command import measured_on, table
from fedclip_plugin.algorithms import Client, Samples, Task
from fedclip_plugin.report.wording import percent, with_half
from fedclip_plugin.stats import ci95, mean

Rule = Callable[[Tensor], Tensor]
"""Features of unit length (N, D) -> class scores (N, C)."""
Rules = Iterator[tuple[str, Rule]]
SHRINKAGES = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 0.6)
FEW = (1e-3, 0.01, 0.1)


class Moments:
    """Class means (C, D) and the covariance within classes (D, D) of weighted rows."""

    def __init__(self, x: Tensor, y: Tensor, weight: Tensor, classes: int) -> None:
        hot = F.one_hot(y, classes).float() * weight[:, None]
        self.share = hot.sum(dim=0).clamp_min(1e-9)
        self.means = hot.t() @ x / self.share[:, None]
        own = x - self.means[y]
        self.within = (own.t() * weight) @ own / weight.sum()

    def rules(self, shrinkages: Sequence[float], more: Tensor | float = 0.0) -> Rules:
        """Linear ones; ``more`` is added to the covariance."""
        values, vectors = torch.linalg.eigh(self.within + more)
        values = values.clamp_min(0)
        for each in shrinkages:
            ridge = (1 - each) * values + each * values.mean()
            weight = (self.means @ vectors / ridge) @ vectors.t()
            bias = (self.means * weight).sum(dim=1) / 2
            yield f"l {each:g}", partial(_linear, weight, bias)


def _linear(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    return x @ weight.t() - bias


def _unit(samples: Samples) -> Tensor:
    return F.normalize(samples.x, dim=1)


def _rows(clients: Sequence[Client], classes: int, alike: str) -> Moments:
    """Of all training rows: every row, client, or class of a client counts alike."""
    weights = []
    for client in clients:
        y = client.train.y
        counts = torch.bincount(y, minlength=classes).clamp_min(1).float()
        one = torch.ones(len(y))
        by = {"rows": one, "clients": one / max(len(y), 1), "classes": 1 / counts[y]}
        weights.append(by[alike])
    x, y, weight = (
        torch.cat(parts)
        for parts in (
            [_unit(c.train) for c in clients],
            [c.train.y for c in clients],
            weights,
        )
    )
    return Moments(x, y, weight, classes)


def gda(alike: str, clients: Sequence[Client], task: Task) -> Rules:
    """The published closed form, and the same with clients or their classes alike."""
    yield from _rows(clients, len(task.text), alike).rules(SHRINKAGES)


def zero_shot(clients: Sequence[Client], task: Task) -> Rules:
    """Beside it, a weight of CLIP's own scores."""
    for name, rule in gda("rows", clients, task):
        for w in (0.0, 0.25, 0.5, 1.0, 2.0):
            yield f"{name}, w {w:g}", partial(_fused, rule, w, task)


def _fused(rule: Rule, w: float, task: Task, x: Tensor) -> Tensor:
    return rule(x) + w * task.logit_scale * x @ task.text.t()


def between(clients: Sequence[Client], task: Task) -> Rules:
    """What lies between the clients' means of a class counts ``k`` times as noise."""
    classes = len(task.text)
    whole = _rows(clients, classes, "classes")
    shifts = []
    for client in clients:
        own = _rows([client], classes, "classes")
        seen = own.share > 1e-6
        shifts.append((own.means - whole.means)[seen])
    shift = torch.cat(shifts)
    spread = shift.t() @ shift / len(shift)
    for k in (0.0, 1.0, 3.0, 10.0, 30.0):
        for name, rule in whole.rules(FEW, k * spread):
            yield f"k {k:g}, {name}", rule


def quadratic(clients: Sequence[Client], task: Task) -> Rules:
    """A covariance a class, drawn towards the common one (Friedman 1989)."""
    classes, dim = task.text.shape
    whole = _rows(clients, classes, "rows")
    x = torch.cat([_unit(c.train) for c in clients])
    y = torch.cat([c.train.y for c in clients])
    own = torch.zeros(classes, dim, dim)
    for c in y.unique():
        rows = x[y == c] - whole.means[c]
        own[c] = rows.t() @ rows / len(rows)
    for a, each in itertools.product((0.02, 0.05, 0.15, 0.4), FEW):
        mixed = (1 - a) * whole.within + a * own  # (C, D, D)
        level = mixed.diagonal(dim1=1, dim2=2).mean(dim=1)[:, None, None]
        mixed = (1 - each) * mixed + each * level * torch.eye(dim)
        root = torch.linalg.cholesky(mixed)
        volume = root.diagonal(dim1=1, dim2=2).log().sum(dim=1)
        yield f"a {a:g}, l {each:g}", partial(_curved, root, whole.means, volume)


def _curved(root: Tensor, means: Tensor, volume: Tensor, x: Tensor) -> Tensor:
    scores = []
    for r, mu, v in zip(root, means, volume):
        z = torch.linalg.solve_triangular(r, (x - mu).t(), upper=False)
        scores.append(-z.square().sum(dim=0) / 2 - v)
    return torch.stack(scores, dim=1)


def soup(clients: Sequence[Client], task: Task) -> Rules:
    """The mean of the probabilities of the clients' own classifiers."""
    each = [list(_rows([c], len(task.text), "rows").rules(FEW)) for c in clients]
    for same in zip(*each):
        yield same[0][0], partial(_mean, [rule for _, rule in same])


def _mean(rules: Sequence[Rule], x: Tensor) -> Tensor:
    return torch.stack([(0.1 * r(x)).softmax(dim=1) for r in rules]).sum(dim=0)


def whitened(clients: Sequence[Client], task: Task) -> Rules:
    """Features of unit length once more after whitening, then gda."""
    classes = len(task.text)
    first = _rows(clients, classes, "rows")
    values, vectors = torch.linalg.eigh(first.within)
    values = values.clamp_min(0)
    middle = first.means.mean(dim=0)
    y = torch.cat([c.train.y for c in clients])
    x = torch.cat([_unit(c.train) for c in clients])
    for power in (0.5, 1.0):
        turn = vectors * (0.99 * values + 0.01 * values.mean()) ** (-power / 2)
        z = F.normalize((x - middle) @ turn, dim=1)
        for name, rule in Moments(z, y, torch.ones(len(y)), classes).rules(SHRINKAGES):
            yield f"power {power:g}, {name}", partial(_turned, rule, middle, turn)


def _turned(rule: Rule, middle: Tensor, turn: Tensor, x: Tensor) -> Tensor:
    return rule(F.normalize((x - middle) @ turn, dim=1))


IDEAS: dict[str, Callable[[Sequence[Client], Task], Rules]] = {
    "gda": partial(gda, "rows"),
    "gda, every client alike (`--weighting uniform`)": partial(gda, "clients"),
    "gda, every class of a client alike": partial(gda, "classes"),
    "the same, and k times what lies between clients": between,
    "gda and w times zero-shot": zero_shot,
    "a covariance a class (quadratic)": quadratic,
    "whitened to unit length, then gda": whitened,
    "mean of the clients' own gda": soup,
}
WAYS = ("validation", "left out", "both", "limit")

ONCE = """\
Tried once, seed 0, with a throw-away script, and not worth keeping (held out; chosen
by validation, or by a single setting): federated or central multinomial logistic
regression 88.8 (limit 90.6), with label smoothing 89.7, trained by gradient in
whitened features with clients and classes alike and an average of the weights (EMA)
90.6, with mixup 90.6, with features moved between the clients' class means 90.8; a
multi-layer perceptron on whitened features 88.7, with mixup 90.1, with both 90.5; gda
on 1,500 random features of whitened ones 90.8 (left out: 91.5); a Gaussian for each
class of each client 91.3; class means drawn towards the text features: weight 0 is
chosen; features to the power of 0.5 with their sign 89.9, of 1.5 90.9; raw instead of
unit length 91.7; cosine in whitened space 91.5; half gda and half `fedclip --preset
best` 92.1."""


FOUND = (
    "What the committed figures say:",
    "",
    "- On the PACS features nothing reaches 93, not even the setting that hindsight "
    "would choose (92.53): what is left lies in the features, not in the rule.",
    "- What is ahead of `gda` there is so by 0.1 to 0.5 points, about the intervals, "
    "and what the sources can see does not tell it: quadratic looks best to them and "
    "is 0.1 ahead; on `digits`, zero-shot beside it looks best and is not ahead.  A "
    "federation that chose the idea, too, by the sum of both in every run would reach "
    "92.26 and 87.29 where `gda` is at 91.84 and 87.23.  So `--preset best` is `gda` "
    "plainly.",
    "- On `digits` it is the choice of the shrinkage that matters: 86.12 by validation "
    "rows, 87.23 with each source's judged by the others beside them.",
)


class BeyondGda(Study):
    """A row an idea, a cell a seed and target."""

    name = "beyond-gda"

    def facts(self) -> Row:
        """Of each feature set in itself."""
        return {}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Every idea on every target with every seed."""
        data = self.results.setdefault(self.args.features.name, {})
        data |= {"machine": self._machine(), "seeds": self.args.seeds}
        pairs = list(itertools.product(self.args.seeds, self.features.domains))
        for idea, (seed, target) in itertools.product(IDEAS, pairs):
            place = (self.args.features.name, "ideas", idea, f"{target} {seed}")
            yield place, partial(self.cell, idea, target, seed)

    def _machine(self) -> Any:
        return super().facts()["machine"]

    def cell(self, idea: str, target: str, seed: int) -> Row:
        """For each way of choosing: setting, and accuracies of what it chose."""
        fed = federation(self, target, seed, {"rounds": 1})
        assert fed.target is not None
        clients, held = fed.clients, fed.target
        fitted = list(IDEAS[idea](clients, fed.task))
        val = [mean(accuracy(r, c.val) for c in clients) or 0.0 for _, r in fitted]
        left = [0.0] * len(fitted)
        for out in clients:
            others = [c for c in clients if c is not out]
            for i, (_, rule) in enumerate(IDEAS[idea](others, fed.task)):
                left[i] += accuracy(rule, out.val) / len(clients)
        there = [accuracy(rule, held) for _, rule in fitted]
        both = [a + b for a, b in zip(val, left)]
        found = {}
        for way, score in zip(WAYS, (val, left, both, there)):
            i = score.index(max(score))
            name, rule = fitted[i]
            tests = mean(accuracy(rule, c.test) for c in clients)
            found[way] = {
                **{"setting": name, "target": there[i], "clients": tests},
                **{"validation": val[i], "left_out": left[i]},
            }
        return found

    @staticmethod
    def page(results: Row) -> str:
        """A table for each feature set."""
        lines = ["# Beyond gda", "", _about(), "", *FOUND]
        for name, found in results.items():
            on = f"{measured_on(found['machine'])}, seeds {found['seeds']}"
            lines += ["", f"## {name}", "", f"{on}.", "", *_table(found)]
        return "\n".join([*lines, "", "## Tried once", "", ONCE]) + "\n"


def accuracy(rule: Rule, samples: Samples) -> float:
    """The share of rows that ``rule`` gets right."""
    right = rule(_unit(samples)).argmax(dim=1) == samples.y
    return float(right.double().mean())


def _about() -> str:
    return (
        "`python -m benchmarks beyond-gda --features DIR`.  Closed forms on what "
        "gda's clients send, or a little more.  Accuracy in per cent, mean over the "
        "held-out domains in turn, ± the 95 % interval over seeds.  The setting is "
        "chosen by the source clients' validation rows (*validation*), by each "
        "source's, judged by what is fitted to the others (*left out*), or by the sum "
        "of both; *limit* is the best setting in hindsight.  *Clients*, *validation* "
        "and *left out* on the right are the scores of the setting that both chose: "
        "what a federation can see of a method, by which it would have to prefer one."
    )


def _table(found: Mapping[str, Any]) -> list[str]:
    head = ["", "by validation", "left out", "both", "limit"]
    head += ["clients", "validation", "left out"]
    rows = []
    for idea, cells in found["ideas"].items():
        seen = [_over(cells, "both", k) for k in ("clients", "validation", "left_out")]
        rows.append([idea, *(_over(cells, way, "target") for way in WAYS), *seen])
    return table(head, rows)


def _over(cells: Mapping[str, Any], way: str, key: str) -> str:
    seeds: dict[str, list[float]] = {}
    for place, cell in cells.items():
        seeds.setdefault(place.rpartition(" ")[2], []).append(cell[way][key])
    means = [mean(values) for values in seeds.values()]
    if key != "target":
        return percent(mean(means))
    return with_half(mean(means), ci95(means), " ± ")


def main(argv: Sequence[str] | None = None) -> None:
    run_study(BeyondGda, __doc__, argv)
