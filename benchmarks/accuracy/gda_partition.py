"""Does gda depend on who holds which rows, or on the order of clients?

    python -m benchmarks gda-partition --features DIR

One domain is held out.  The others are clients, or their rows are dealt with a
Dirichlet of 0.1 to few and to very many; clients come in their order, backwards and
shuffled.  Beside each the closed form from all those rows in one place, in float64.
A second table tells what keeps them apart, and at what shrinkage: every domain is held
out in turn there.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.accuracy.study import Place, Row, Study, federation, run_study
from benchmarks.command import measured_on, table
from fedclip_plugin.algorithms import Samples
from fedclip_plugin.algorithms.gda import SHRINKAGES
from fedclip_plugin.algorithms.statistics import Moments, Statistics, unit
from fedclip_plugin.federation.build import Federation
from fedclip_plugin.report.wording import percent
from fedclip_plugin.server.aggregation import aggregate
from fedclip_plugin.wire.update import ClientUpdate, State

ALPHA = 0.1
DOMAINS = 0  # stands for one client a domain
ORDERS: dict[str, Callable[[list[ClientUpdate]], list[ClientUpdate]]] = {
    "as they are": lambda updates: updates,
    "backwards": lambda updates: updates[::-1],
    "shuffled": lambda updates: random.Random(0).sample(updates, len(updates)),
}


class GdaPartition(Study):
    """A row for each number of clients, order and seed."""

    name = "gda-partition"
    rounds = 1

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Who is held out, and how many clients there are beside one a domain."""
        add = parser.add_argument
        add("--target", default="sketch", help="held-out domain")
        add("--clients", type=int, nargs="+", default=[20, 1000], metavar="N")

    def identity(self) -> Row:
        """What all rows were run with."""
        names = ("target", "clients", "seeds")
        settings = {name: getattr(self.args, name) for name in names}
        return {"settings": {**settings, "features": self.args.features.name}}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Every number of clients with every seed; all orders at once."""
        counts = [DOMAINS, *self.args.clients]
        for seed, clients in itertools.product(self.args.seeds, counts):
            yield ("runs", f"{clients} {seed}"), partial(self.row, clients, seed)
        for shrinkage in SHRINKAGES:
            yield ("limits", f"{shrinkage:g}"), partial(self.limit, shrinkage)

    def row(self, clients: int, seed: int) -> Row:
        """Largest differences of scores, over the largest score, in every order."""
        options: Row = {"alg": "gda", "rounds": 1}
        if clients != DOMAINS:
            options |= {"partition": "dirichlet", "clients": clients, "alpha": ALPHA}
        fed = federation(self, self.args.target, seed, options)
        gda, task = fed.algorithm, fed.task
        start = gda.init(task)
        updates = gda.local_round(start, fed.clients, task, 1)
        assert fed.target is not None
        x = fed.target.x
        rows = [c.train for c in fed.clients]
        found: Row = {}
        scores = x.new_zeros(0)
        state: State = {}
        for order, arrange in ORDERS.items():
            state = gda.aggregate(arrange(updates), start, task)
            scores = centred(gda.predict(state, x, task))
            if order == "as they are":
                shrinkage = float(state["chosen"][0])
                pooled = pooled_scores(rows, x, len(task.text), shrinkage)
            found[order] = float((scores - pooled).abs().max() / pooled.abs().max())
        hits = (pooled.argmax(dim=1) == fed.target.y).double().mean()
        other = (pooled.argmax(dim=1) != scores.argmax(dim=1)).sum()
        moments = statistics_apart(rows, state)
        told = {"difference": found, "statistics": moments}
        return {**told, "accuracy": float(hits), "other": int(other)}

    def limit(self, shrinkage: float) -> Row:
        """What one shrinkage costs, over all held-out domains, and why it differs."""
        seed, domains = self.args.seeds[0], self.features.domains
        options = {"alg": "gda", "rounds": 1}
        feds = [federation(self, target, seed, options) for target in domains]
        rows = [limit_of(fed, shrinkage) for fed in feds]
        worst = ("condition", "sent", "about_mean", "entries", "length")
        found = {key: max(row[key] for row in rows) for key in worst}
        average = ("target", "clients", "cosine")
        return found | {k: sum(row[k] for row in rows) / len(rows) for k in average}

    @staticmethod
    def page(results: Row) -> str:
        """Clients down, orders across."""
        s = results["settings"]
        body = []
        for clients in (DOMAINS, *s["clients"]):
            rows = [results["runs"][f"{clients} {seed}"] for seed in s["seeds"]]
            worst = [max(row["difference"][order] for row in rows) for order in ORDERS]
            body.append(
                [
                    f"{clients}, Dirichlet of {ALPHA:g}"
                    if clients
                    else "a domain each",
                    f"{max(row['statistics'] for row in rows):.1e}",
                    *(f"{value:.1e}" for value in worst),
                    f"{sum(row['other'] for row in rows)}",
                    percent(sum(row["accuracy"] for row in rows) / len(rows)),
                ]
            )
        lines = [
            "# gda, whoever holds the rows",
            "",
            f"`python -m benchmarks gda-partition` on {s['features']}, {s['target']} "
            f"held out, seeds {s['seeds']}; {measured_on(results['machine'])}.  "
            "Largest differences from all training rows in one place, in float64: of "
            "the *statistics*, whose largest are near 1, and, over the largest score, "
            "of a centred score of the held-out domain, with the clients in three "
            "orders.  Statistics travel in float32, and the inverse of a covariance "
            "that is hardly shrunk magnifies their rounding.  *Otherwise* counts the "
            "images that are classified otherwise, over all seeds.  Which rows train "
            "depends on the clients, and so does the accuracy of the pooled form.",
            "",
            *table(["clients", "statistics", *ORDERS, "otherwise", "accuracy"], body),
            *limits_page(results["limits"], s["seeds"][0]),
        ]
        return "\n".join(lines) + "\n"


def limits_page(limits: Row, seed: int) -> list[str]:
    """What rounding leaves at each shrinkage, about 0 and about the rows' mean."""
    some = next(iter(limits.values()))
    body = [
        [
            shrinkage,
            f"{row['condition']:.1e}",
            f"{row['sent']:.1e}",
            f"{row['about_mean']:.1e}",
            percent(row["target"]),
            percent(row["clients"]),
        ]
        for shrinkage, row in limits.items()
    ]
    head = ["shrinkage", "condition", "about 0", "about the mean", "held out"]
    return [
        "",
        "## What keeps them apart",
        "",
        f"A domain a client, seed {seed}: the worst of the held-out domains' "
        "differences, and mean accuracies, by the shrinkage, which cross-validation "
        "chooses otherwise.  The rows' common mean is "
        f"{some['length']:.2f} long, so that entries of the second moment are up to "
        f"{some['entries']:.0f} times those of the covariance within classes (root "
        "mean squares), and float32 rounds them by as much more: in every fixed "
        "basis, for it rounds in proportion to each entry.  *About the mean* is what "
        "the same number of floats would do about the mean of all rows; but nobody "
        "knows such a centre before the only round, and the text features' mean is "
        f"none (cosine with the rows' mean {some['cosine']:.2f}).  float64 would do it "
        "for twice the bytes.",
        "",
        *table([*head, "clients"], body),
    ]


def limit_of(fed: Federation, shrinkage: float) -> Row:
    """Differences of float32 statistics about 0 and about the rows' mean from float64.

    With the condition of the covariance, accuracies of the float64 rule, and how the
    mean of all rows compares with the second moment and with the text features.
    """
    assert fed.target is not None
    x = torch.cat([c.train.x for c in fed.clients])
    mean = unit(x).mean(dim=0).float().double()
    origin = torch.zeros_like(mean)
    moments, exact = moments_about(fed, origin, torch.float64), fed.target
    weight, bias = moments.classifier(shrinkage)
    wanted = centred(unit(exact.x) @ weight.t() + bias)
    apart = {}
    for name, centre in (("sent", origin), ("about_mean", mean)):
        w, b = moments_about(fed, centre, torch.float32).classifier(shrinkage)
        found = centred((unit(exact.x) - centre) @ w.t() + b)
        apart[name] = float((found - wanted).abs().max() / wanted.abs().max())
    values = torch.linalg.eigvalsh(moments.within).clamp_min(0)
    values = (1 - shrinkage) * values + shrinkage * moments.variance
    rms = [m.square().mean().sqrt() for m in (moments.second, moments.within)]

    def right(part: Samples) -> float:
        said = (unit(part.x) @ weight.t() + bias).argmax(dim=1)
        return float((said == part.y).double().mean())

    return {
        **apart,
        "condition": float(values[-1] / values[0]),
        "target": right(exact),
        "clients": sum(right(c.test) for c in fed.clients) / len(fed.clients),
        "entries": float(rms[0] / rms[1]),
        "length": float(mean.norm()),
        "cosine": float(F.cosine_similarity(mean, fed.task.text.double().mean(0), 0)),
    }


def moments_about(fed: Federation, centre: Tensor, dtype: torch.dtype) -> Moments:
    """Of the clients' training rows less ``centre``, sent and averaged as ``dtype``."""
    start = {k: v.to(dtype) for k, v in fed.algorithm.init(fed.task).items()}
    updates, classes = [], len(fed.task.text)
    for c in fed.clients:
        z, y = unit(c.train.x) - centre, c.train.y
        sums = z.new_zeros(classes, z.shape[1]).index_add_(0, y, z)
        counts = torch.bincount(y, minlength=classes).to(z)
        own = Statistics(float(len(y)), counts, sums, z.t() @ z).to_state(start)
        updates.append(ClientUpdate(c.name, own, len(y)))
    return Moments(aggregate(updates, start, fed.task.server))


def pooled_scores(
    parts: Sequence[Samples], at: Tensor, classes: int, shrinkage: float
) -> Tensor:
    """Centred scores (N, C), float64, of all rows in one place.

    Discriminant analysis as it is written, from the rows and not from their moments.
    """
    x = F.normalize(torch.cat([part.x for part in parts]).double(), dim=1)
    y = torch.cat([part.y for part in parts])
    held = [c for c in range(classes) if bool((y == c).any())]
    if len(held) < classes:
        raise SystemExit("a class has no training row: take other seeds")
    means = torch.stack([x[y == c].mean(dim=0) for c in held])
    rest = x - means[y]
    within = rest.t() @ rest / len(x)
    sphere = within.trace() / len(within) * torch.eye(len(within)).double()
    weight = torch.linalg.solve(
        (1 - shrinkage) * within + shrinkage * sphere, means.t()
    ).t()
    z = F.normalize(at.double(), dim=1)
    return centred(z @ weight.t() - (means * weight).sum(dim=1) / 2)


def statistics_apart(parts: Sequence[Samples], state: State) -> float:
    """Largest difference of a state's means from those of all rows in one place."""
    x = torch.cat([part.x for part in parts])
    y = torch.cat([part.y for part in parts])
    like = {key: value.double() for key, value in state.items()}
    pooled = Statistics.of(x, y, len(state["share"])).to_state(like)
    keys = ("share", "sums", "second")
    return max(float((like[k] - pooled[k]).abs().max()) for k in keys)


def centred(scores: Tensor) -> Tensor:
    """Less the mean over classes, which no comparison of classes sees."""
    return scores.double() - scores.double().mean(dim=1, keepdim=True)


def main(argv: Sequence[str] | None = None) -> None:
    run_study(GdaPartition, __doc__, argv, clients=[8])
