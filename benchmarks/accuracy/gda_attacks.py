"""What do lying clients cost gda, with and without the screening of its statistics?

    python -m benchmarks gda-attacks --features DIR

Twenty iid clients of all domains but one, of which a share lies in the one round:
statistics turned round (sign-flip) or ten times as large (scale-10), a covariance of
one direction alone (poisoned covariance), and labels turned round (label-flip), which
gives statistics that honest rows could have.  Screening by distance is off in the rows
without screening, and on with the rest.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from benchmarks.accuracy.attack_models import attackers
from benchmarks.accuracy.study import (
    IidStudy,
    Place,
    Row,
    federation,
    run_study,
    run_to_end,
)
from benchmarks.command import measured_on, table
from fedclip_plugin.algorithms import Client, Task
from fedclip_plugin.algorithms.base import Algorithm
from fedclip_plugin.algorithms.gda import Gda
from fedclip_plugin.report.wording import percent, with_half
from fedclip_plugin.stats import ci95, mean
from fedclip_plugin.wire.update import ClientUpdate, State

OPEN = "mean, no screening"
RULES = (OPEN, "mean", "trimmed-mean", "geometric-median")
SHARES = (0.0, 0.1, 0.3)


def one_direction(state: State) -> State:
    """The second moment of a client all of whose features are alike; its trace is 1."""
    dim = state["sums"].shape[1]
    direction = torch.randn(dim, generator=torch.Generator().manual_seed(0))
    direction /= direction.norm()
    row, column = torch.triu_indices(dim, dim)
    return {**state, "second": direction[row] * direction[column]}


LIES: dict[str, Callable[[State], State]] = {
    "sign-flip": lambda s: {k: -v for k, v in s.items()},
    "scale-10": lambda s: {k: 10 * v for k, v in s.items()},
    "poisoned covariance": one_direction,
    "label-flip": lambda s: {**s, **{k: s[k].flip(0) for k in ("share", "sums")}},
}


class AttackedGda(Gda):
    """gda with liars among its clients."""

    def __init__(self, attack: str, liars: frozenset[str]) -> None:
        self.attack = attack
        self.liars = liars

    def local_round(
        self, state: State, clients: Sequence[Client], task: Task, round_number: int
    ) -> list[ClientUpdate]:
        """What each client sends, true or not."""
        lie = LIES[self.attack]
        return [
            replace(u, state=lie(u.state)) if u.client in self.liars else u
            for u in super().local_round(state, clients, task, round_number)
        ]


class Unscreened(AttackedGda):
    """The same, and the server takes all that is finite."""

    doubt = Algorithm.doubt


class GdaAttacks(IidStudy):
    """A row for each attack, rule, share of attackers and seed."""

    name = "gda-attacks"
    rounds = 1
    clients = 20

    def identity(self) -> Row:
        """Without the preset of another method."""
        settings = super().identity()["settings"]
        return {"settings": {k: v for k, v in settings.items() if k != "train"}}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Every cell with every seed."""
        cells = itertools.product(self.args.seeds, LIES, RULES, SHARES)
        for seed, attack, rule, share in cells:
            if share or attack == "sign-flip":
                place = ("runs", f"{attack} {rule} {share:g} {seed}")
                yield place, partial(self.row, attack, rule, share, seed)

    def row(self, attack: str, rule: str, share: float, seed: int) -> Row:
        """Scores after the round, and who was left out."""
        opened = rule == OPEN
        options: Row = {"alg": "gda", "partition": "iid", "clients": self.args.clients}
        options |= {"aggregation": "mean" if opened else rule}
        options |= {"max_norm_ratio": 0.0} if opened else {}
        fed = federation(self, self.args.target, seed, options)
        liars = attackers(fed.clients, share, seed)
        kind = Unscreened if opened else AttackedGda
        run = run_to_end(replace(fed, algorithm=kind(attack, liars)))
        return {
            "target": run.result.target,
            "clients": run.result.mean_test,
            "quarantined": run.last.progress.quarantined,
        }

    @staticmethod
    def page(results: Row) -> str:
        """Attack and rule down, share of attackers across."""
        s = results["settings"]

        def cell(attack: str, rule: str, share: float) -> str:
            named = attack if share else "sign-flip"
            keys = [f"{named} {rule} {share:g} {seed}" for seed in s["seeds"]]
            rows = [results["runs"][key] for key in keys]
            scores = [row["target"] for row in rows]
            left = mean([row["quarantined"] for row in rows]) or 0
            half = with_half(mean(scores), ci95(scores), " ± ")
            half = percent(mean(scores)) if len(scores) < 2 else half
            return f"{half} ({left:g} left out)"

        body = [
            [attack, rule, *(cell(attack, rule, share) for share in SHARES)]
            for attack, rule in itertools.product(LIES, RULES)
        ]
        lines = [
            "# Lying clients and gda",
            "",
            f"`python -m benchmarks gda-attacks` on {s['features']}, {s['target']} "
            f"held out: {s['clients']} iid clients of the other domains, one round, "
            f"seeds {s['seeds']}; {measured_on(results['machine'])}.  Accuracy of the "
            "held-out domain in per cent, and how many updates screening left out.  "
            "Rules assume 30 % attackers.",
            "",
            *table(["attack", "rule", *(f"{100 * x:g} %" for x in SHARES)], body),
        ]
        return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> None:
    run_study(GdaAttacks, __doc__, argv, clients=8)
