"""What personalization gives each client, over the shared adapter and zero-shot.

    python -m benchmarks personalization --features DIR [--runs DIR]

FedCLIP is run with every domain held out in turn, and the shared adapter of the best
round is then personalized both ways.  Clients: the domains, and 20 clients whose
classes are drawn from a Dirichlet with alpha 0.1.  The held-out domain is the *new
client*: it starts from an adapter that never saw it.  Finished runs stay in --runs,
and are not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accuracy.study import Place, Row, Study, finished_runs, run_study
from benchmarks.command import measured_on, table
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.personalization import personalize
from fedclip_plugin.report.records import RunRecord
from fedclip_plugin.report.wording import percent, points
from fedclip_plugin.settings.sources import load_config
from fedclip_plugin.stats import ci95, mean
from fedclip_plugin.storage.tensors import read_tensors

LOCAL, PAPER, BEST = "local adapters", "FedCLIP, paper", "FedCLIP, best"
SKEWED = {"partition": "dirichlet", "alpha": 0.1, "clients": 20, "eval_every": 10}
METHODS: dict[str, dict[str, Any]] = {
    LOCAL: {"alg": "local"},
    PAPER: {"alg": "fedclip"},
    BEST: {"alg": "fedclip", "preset": "best"},
}
CLIENTS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "domains": ("features", {}, (LOCAL, PAPER, BEST)),
    "20 clients, alpha 0.1": ("features-dirichlet", SKEWED, (BEST,)),
}
"""Name -> folder of its runs, options of ``fedclip run``, and the methods."""
BASES = ("zero_shot", "shared", "personal")
TITLES = {"known": "Clients of the federation", "new": "New client (held out)"}


class Personalization(Study):
    """A row for each kind of clients, adapter and way to personalize it."""

    name = "personalization"

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Where finished runs are."""
        text = "default: runs/personalization"
        parser.add_argument("--runs", type=Path, help=text)

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Both ways for every adapter."""
        args = self.args
        kept = self.scratch if args.quick else Path("runs/personalization")
        runs = args.runs or kept
        shared = {"features": args.features, "rounds": args.rounds, "seed": args.seeds}
        for clients, (folder, options, labels) in CLIENTS.items():
            jobs = {label: METHODS[label] | shared | options for label in labels}
            alone: float | None = None
            for label, finished in finished_runs(jobs, runs / folder):
                if label == LOCAL:
                    alone = _alone(finished)
                    continue
                for method in ("finetune", "mix"):
                    row = {"clients": clients, "adapter": label, "method": method}
                    row |= {"rounds": args.rounds, "seeds": args.seeds}
                    yield ("rows", row), partial(self.row, finished, method, alone)

    def row(self, runs: Sequence[RunRecord], method: str, alone: float | None) -> Row:
        """What one way gives, over all runs."""
        each = [client for run in runs for client in self.personal(run, method)]
        return {
            **{k: _gains([c for c in each if c["kind"] == k]) for k in TITLES},
            "alone": alone,
        }

    def personal(self, run: RunRecord, method: str) -> Iterator[Row]:
        """A row a client, the new one among them."""
        config = load_config(run.path / "config.toml")
        seed = run.summary["seed"]
        fed = build_federation(self.features, config, run.target, seed)
        shared, _ = read_tensors(run.path / "adapter.safetensors")
        scores = personalize(fed, shared, method, keep=lambda name, state: None)
        for kind, key in (("known", "clients"), ("new", "new_clients")):
            for row in scores[key].values():
                yield {"kind": kind, "seed": seed, **row}

    @staticmethod
    def page(results: Row) -> str:
        """The clients that trained, and the new one."""
        first = results["rows"][0]
        lines = [
            "# Personalization",
            "",
            "`python -m benchmarks personalization --features DIR` on "
            f"{results['features']}: {first['rounds']} rounds, seeds {first['seeds']}, "
            f"every domain held out in turn; {measured_on(results['machine'])}.  "
            "Test accuracy in per cent, mean over clients, targets and seeds.  How far "
            "a client goes is chosen on its validation rows.  The two ± are 95 % "
            "intervals: over the seeds, and over all clients of all runs (a client of "
            "several runs counts in each, so the second is rather too narrow).  "
            "*Alone*: the client's own adapter, never sent, by the paper's "
            "hyper-parameters.",
        ]
        for kind, title in TITLES.items():
            lines += ["", f"## {title}", "", *_table(results["rows"], kind)]
        return "\n".join(lines) + "\n"


def _alone(runs: Sequence[RunRecord]) -> float | None:
    """Mean test accuracy of the clients that train alone."""
    tests = [run.summary["result"]["clients"].values() for run in runs]
    return mean(value for values in tests for value in values)


def _gains(rows: Sequence[Row]) -> Row:
    """Means over targets, seeds and clients; intervals over seeds and over clients."""
    rows = [row for row in rows if row["personal"] is not None]
    gains: Row = {k: mean(row[k] for row in rows) for k in BASES}
    for base in BASES[:2]:
        each = [row["personal"] - row[base] for row in rows]
        seeds: dict[int, list[float]] = {}
        for row, gain in zip(rows, each):
            seeds.setdefault(row["seed"], []).append(gain)
        gains[f"gain_over_{base}"] = {
            "mean": mean(each),
            "ci95_seeds": ci95(mean(values) for values in seeds.values()),
            "ci95_clients": ci95(each),
        }
    gains["count"] = len(rows)
    gains["better"] = sum(row["personal"] > row["shared"] for row in rows)
    gains["worse"] = sum(row["personal"] < row["shared"] for row in rows)
    gains["below_zero_shot"] = sum(row["personal"] < row["zero_shot"] for row in rows)
    return gains


def _table(rows: Sequence[Row], kind: str) -> list[str]:
    known = kind == "known"
    head = ["clients", "adapter", "by", "zero-shot", *(["alone"] if known else [])]
    head += ["shared", "personal", "over shared", "over zero-shot"]
    head += ["better / worse than shared", "below zero-shot"]
    body = []
    for row in rows:
        gains = row[kind]
        alone = [percent(row["alone"])] if known else []
        body.append(
            [
                *(row["clients"], row["adapter"], row["method"]),
                *(percent(gains["zero_shot"]), *alone, percent(gains["shared"])),
                percent(gains["personal"]),
                *(
                    _gain(gains[f"gain_over_{base}"])
                    for base in ("shared", "zero_shot")
                ),
                f"{gains['better']} / {gains['worse']} of {gains['count']}",
                f"{gains['below_zero_shot']}",
            ]
        )
    return table(head, body)


def _gain(gain: Mapping[str, float | None]) -> str:
    halves = (gain["ci95_seeds"], gain["ci95_clients"])
    shown = " / ".join("-" if h is None else f"{100 * h:.2f}" for h in halves)
    return f"{points(gain['mean'])} ± {shown}"


def main(argv: Sequence[str] | None = None) -> None:
    run_study(Personalization, __doc__, argv)
