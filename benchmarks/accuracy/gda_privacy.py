"""What does a private release of gda cost in accuracy?

    python -m benchmarks gda-privacy --features DIR

Every domain is held out in turn, the others are clients; epsilon is that of any one
image, for the single round.  The noise is drawn from the run's seed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial

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
from fedclip_plugin.stats import ci95, mean

EPSILONS = (None, 8.0, 3.0, 1.0)
DELTA = 1e-5


class GdaPrivacy(Study):
    """A row for each epsilon, held-out domain and seed."""

    name = "gda-privacy"
    rounds = 1

    def identity(self) -> Row:
        """What all rows were run with."""
        names = {"features": self.args.features.name, "seeds": self.args.seeds}
        return {"settings": {**names, "targets": list(self.features.domains)}}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Every epsilon, domain and seed."""
        domains = self.features.domains
        for cell in itertools.product(self.args.seeds, domains, EPSILONS):
            yield ("runs", key(*cell)), partial(self.row, *cell)

    def row(self, seed: int, target: str, epsilon: float | None) -> Row:
        """Scores after the round."""
        options: Row = {"alg": "gda", "rounds": 1}
        if epsilon is not None:
            options |= {"gda_epsilon": epsilon, "dp_delta": DELTA}
        config = config_of(self.args.features, options)
        run = run_to_end(build_federation(self.features, config, target, seed))
        return {"target": run.result.target, "clients": run.result.mean_test}

    @staticmethod
    def page(results: Row) -> str:
        """Epsilon down, accuracies across."""
        s = results["settings"]

        def over_targets(epsilon: float | None, seed: int, name: str) -> float:
            rows = [results["runs"][key(seed, t, epsilon)] for t in s["targets"]]
            return mean([row[name] for row in rows]) or 0.0

        def cell(epsilon: float | None, name: str) -> str:
            scores = [over_targets(epsilon, seed, name) for seed in s["seeds"]]
            if len(scores) < 2:
                return percent(mean(scores))
            return with_half(mean(scores), ci95(scores), " ± ")

        body = [
            [f"{e:g}" if e else "no privacy", cell(e, "target"), cell(e, "clients")]
            for e in EPSILONS
        ]
        lines = [
            "# A private release of gda",
            "",
            f"`python -m benchmarks gda-privacy` on {s['features']}: every domain held "
            f"out in turn, the others are clients, one round, `--gda-epsilon` at delta "
            f"{DELTA:g}, seeds {s['seeds']}; {measured_on(results['machine'])}.  "
            "Accuracy in per cent, the mean of the held-out domains, ± the 95 % "
            "interval over seeds.  [Privacy of clients](privacy.md) has DP-FedAvg's "
            "table, whose epsilon is that of a whole client.",
            "",
            *table(["epsilon", "held out", "clients"], body),
        ]
        return "\n".join(lines) + "\n"


def key(seed: int, target: str, epsilon: float | None) -> str:
    """The name of a cell's row."""
    return f"{target} {epsilon or 'none'} {seed}"


def main(argv: Sequence[str] | None = None) -> None:
    run_study(GdaPrivacy, __doc__, argv)
