"""What does a private release of gda cost in accuracy?

    python -m benchmarks gda-privacy --features DIR

Every domain is held out in turn, the others are clients; epsilon is that of any one
image, for the single round.  Beside it, the epsilon of any one client, with one domain
held out and very many clients of skewed classes; and on the embedded digits a curve as
far as epsilons that hide nothing, beside gda's own shrinkage without noise.  The noise
is drawn from the run's seed.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

from benchmarks.accuracy.study import (
    Place,
    Row,
    Study,
    run_study,
    run_to_end,
)
from benchmarks.command import measured_on, table
from fedclip_plugin.features.feature_set import FeatureSet
from fedclip_plugin.features.obtain import obtain_features
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.report.wording import percent, with_half
from fedclip_plugin.server.privacy import multiplier_for
from fedclip_plugin.settings.sources import configure
from fedclip_plugin.stats import ci95, mean

EPSILONS = (None, 30.0, 8.0, 3.0, 1.0)
CURVE = (None, 1e6, 1e4, 1e3, 100.0, 30.0, 8.0, 3.0, 1.0)  # of digits
SHRINKAGES = (1e-4, 1e-3, 0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
CURVE_SEEDS = range(10)  # a run is a fifth of a second there
CURVE_TEXT = (
    "The embedded digits of `fedclip-tiny`, every domain held out in turn, {count} "
    "seeds.  Clients lose with every step down; of a domain that no client has, "
    "accuracy does not fall monotonically beyond 100.  That is not the noise of a "
    "seed, nor a choice on noisy validation rows, for none are asked: noise covers "
    "the directions in which features hardly vary, the estimate then trusts no "
    "direction more than those, and what is left is `gda` with a stronger shrinkage.  "
    "Without any noise the held-out domains have the same valley over the shrinkage "
    "(the second table), which the sources do not see: their own accuracy falls "
    "steadily."
)
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
        yield from self.curves()

    def curves(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Digits: every epsilon, and every shrinkage without noise."""
        seeds = self.args.seeds[:1] if self.args.quick else CURVE_SEEDS
        domains = self.digits.domains
        about = {"seeds": list(seeds), "targets": list(domains)}
        if self.results.get("curve", {}).get("about") != about:
            self.results |= {"curve": {"about": about}, "shrinkage": {}}
        for seed, target, epsilon in itertools.product(seeds, domains, CURVE):
            options = {"gda_epsilon": epsilon, "dp_delta": DELTA} if epsilon else {}
            work = partial(_scores, self.digits, seed, target, options)
            yield ("curve", key(seed, target, epsilon)), work
        for seed, target, value in itertools.product(seeds, domains, SHRINKAGES):
            work = partial(_scores, self.digits, seed, target, {"gda_shrinkage": value})
            yield ("shrinkage", key(seed, target, value)), work

    @cached_property
    def digits(self) -> FeatureSet:
        """The features of the embedded digits."""
        return obtain_features(configure({}))[0]

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
        """Those of one round on --features."""
        features = {"features": str(self.args.features)}
        return _scores(self.features, seed, target, {**features, **options})

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
            *curve_lines(results),
        ]
        return "\n".join(lines) + "\n"


def _scores(features: FeatureSet, seed: int, target: str, options: Row) -> Row:
    """Scores of one round of gda."""
    config = configure({"alg": "gda", "rounds": 1, **options})
    run = run_to_end(build_federation(features, config, target, seed))
    return {"target": run.result.target, "clients": run.result.mean_test}


def curve_lines(results: Row) -> list[str]:
    """The two tables of digits."""
    about = results["curve"]["about"]
    seeds, targets = about["seeds"], about["targets"]
    head = ["held out", "clients"]
    parts: dict[str, Sequence[float | None]] = {
        "epsilon": CURVE,
        "shrinkage": SHRINKAGES,
    }
    rows = {"epsilon": results["curve"], "shrinkage": results["shrinkage"]}
    lines = ["", "## As far as epsilons that hide nothing"]
    lines += ["", CURVE_TEXT.format(count=len(seeds))]
    for name, values in parts.items():
        body = body_of(rows[name], seeds, targets, values)
        lines += ["", *table([name, *head], body)]
    return lines


def body_of(
    runs: dict[str, Any],
    seeds: Sequence[int],
    targets: Sequence[str],
    values: Sequence[float | None] = EPSILONS,
) -> list[list[str]]:
    """``values`` down; accuracies across, means over ``targets``, then ``seeds``."""

    def cell(epsilon: float | None, name: str) -> str:
        scores = [
            mean([runs[key(seed, t, epsilon)][name] for t in targets]) for seed in seeds
        ]
        if len(scores) < 2:
            return percent(mean(scores))
        return with_half(mean(scores), ci95(scores), " ± ")

    return [
        [f"{e:g}" if e else "no privacy", cell(e, "target"), cell(e, "clients")]
        for e in values
    ]


def key(seed: int, target: str, epsilon: float | None) -> str:
    """The name of a cell's row."""
    return f"{target} {epsilon or 'none'} {seed}"


def main(argv: Sequence[str] | None = None) -> None:
    run_study(GdaPrivacy, __doc__, argv, clients=20)
