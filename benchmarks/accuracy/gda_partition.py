"""Does gda depend on who holds which rows, or on the order of clients?

    python -m benchmarks gda-partition --features DIR

One domain is held out.  The others are clients, or their rows are dealt with a
Dirichlet of 0.1 to few and to very many; clients come in their order, backwards and
shuffled.  Beside each the closed form from all those rows in one place, in float64.
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
from fedclip_plugin.algorithms.statistics import Statistics
from fedclip_plugin.report.wording import percent
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
                pooled = pooled_scores(rows, x, len(task.text), state)
            found[order] = float((scores - pooled).abs().max() / pooled.abs().max())
        hits = (pooled.argmax(dim=1) == fed.target.y).double().mean()
        other = (pooled.argmax(dim=1) != scores.argmax(dim=1)).sum()
        moments = statistics_apart(rows, state)
        told = {"difference": found, "statistics": moments}
        return {**told, "accuracy": float(hits), "other": int(other)}

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
        ]
        return "\n".join(lines) + "\n"


def pooled_scores(
    parts: Sequence[Samples], at: Tensor, classes: int, state: State
) -> Tensor:
    """Centred scores (N, C), float64, of all rows in one place, with the l of a state.

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
    shrinkage = float(state["chosen"][0])
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
