"""What does a private release of gda cost in accuracy?

    python -m benchmarks gda-privacy --features DIR

Every domain is held out in turn, the others are clients; epsilon is that of any one
image, for the single round.  Beside it, the epsilon of any one client, with one domain
held out and very many clients of skewed classes.  The noise is drawn from the run's
seed.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from benchmarks.accuracy.study import (
    Place,
    Row,
    Study,
    config_of,
    run_study,
    run_to_end,
)
from benchmarks.command import measured_on, table
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.report.wording import percent, with_half
from fedclip_plugin.server.privacy import multiplier_for
from fedclip_plugin.stats import ci95, mean

EPSILONS = (None, 30.0, 8.0, 3.0, 1.0)
DELTA = 1e-5
CLIP = 1.0  # a client's statistics are about as long, whatever it holds
ALPHA = 0.1


class GdaPrivacy(Study):
    """A row for each epsilon, held-out domain and seed; and for each of clients."""

    name = "gda-privacy"
    rounds = 1

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Of the table of clients."""
        text = "held-out domain of the table of clients"
        parser.add_argument("--target", default="sketch", help=text)
        parser.add_argument("--clients", type=int, default=1000, help="of that table")

    def identity(self) -> Row:
        """What all rows were run with."""
        names = {"features": self.args.features.name, "seeds": self.args.seeds}
        return {"settings": {**names, "targets": list(self.features.domains)}}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Every epsilon, domain and seed."""
        domains = self.features.domains
        for cell in itertools.product(self.args.seeds, domains, EPSILONS):
            yield ("runs", key(*cell)), partial(self.row, *cell)
        args = self.args
        about = {"target": args.target, "clients": args.clients}
        if self.results.get("clients", {}).get("about") != about:
            self.results["clients"] = {"about": about}
        for seed, epsilon in itertools.product(args.seeds, EPSILONS):
            place = ("clients", key(seed, args.target, epsilon))
            yield place, partial(self.hiding_clients, seed, epsilon)

    def row(self, seed: int, target: str, epsilon: float | None) -> Row:
        """Scores after the round."""
        options: Row = {}
        if epsilon is not None:
            options = {"gda_epsilon": epsilon, "dp_delta": DELTA}
        return self.scores(seed, target, options)

    def hiding_clients(self, seed: int, epsilon: float | None) -> Row:
        """Scores after the round, every client having the same weight."""
        args = self.args
        options: Row = {"partition": "dirichlet", "alpha": ALPHA}
        options |= {"clients": args.clients, "weighting": "uniform"}
        if epsilon is not None:
            noise = multiplier_for(epsilon, DELTA)
            options |= {"dp_noise_multiplier": noise, "dp_clip": CLIP}
        return self.scores(seed, args.target, {**options, "dp_delta": DELTA})

    def scores(self, seed: int, target: str, options: Row) -> Row:
        """Those of one round."""
        more = {"alg": "gda", "rounds": 1}
        config = config_of(self.args.features, {**more, **options})
        run = run_to_end(build_federation(self.features, config, target, seed))
        return {"target": run.result.target, "clients": run.result.mean_test}

    @staticmethod
    def page(results: Row) -> str:
        """Epsilon down, accuracies across."""
        s = results["settings"]
        images = body_of(results["runs"], s["seeds"], s["targets"])
        about = results["clients"]["about"]
        clients = body_of(results["clients"], s["seeds"], [about["target"]])
        head = ["epsilon", "held out", "clients"]
        lines = [
            "# A private release of gda",
            "",
            f"`python -m benchmarks gda-privacy` on {s['features']}: one round, delta "
            f"{DELTA:g}, seeds {s['seeds']}; {measured_on(results['machine'])}.  "
            "Accuracy in per cent, ± the 95 % interval over seeds.",
            "",
            "## Privacy of single images",
            "",
            "`--gda-epsilon`; every domain held out in turn, the others are clients; "
            "*held out* is the mean of the held-out domains.",
            "",
            *table(head, images),
            "",
            "## Privacy of whole clients",
            "",
            f"`--weighting uniform --dp-noise-multiplier Z --dp-clip {CLIP:g}`, with "
            f"the Z of each epsilon; {about['target']} held out, {about['clients']} "
            f"clients of the other domains, Dirichlet of {ALPHA:g}, all of them in the "
            "round.  [Privacy of clients](privacy.md) has DP-FedAvg's table for "
            "FedCLIP over 30 rounds.",
            "",
            *table(head, clients),
        ]
        return "\n".join(lines) + "\n"


def body_of(
    runs: dict[str, Any], seeds: Sequence[int], targets: Sequence[str]
) -> list[list[str]]:
    """Epsilon down; accuracies across, means over ``targets``, then ``seeds``."""

    def cell(epsilon: float | None, name: str) -> str:
        scores = [
            mean([runs[key(seed, t, epsilon)][name] for t in targets]) for seed in seeds
        ]
        if len(scores) < 2:
            return percent(mean(scores))
        return with_half(mean(scores), ci95(scores), " ± ")

    return [
        [f"{e:g}" if e else "no privacy", cell(e, "target"), cell(e, "clients")]
        for e in EPSILONS
    ]


def key(seed: int, target: str, epsilon: float | None) -> str:
    """The name of a cell's row."""
    return f"{target} {epsilon or 'none'} {seed}"


def main(argv: Sequence[str] | None = None) -> None:
    run_study(GdaPrivacy, __doc__, argv, clients=20)
