"""Every method on the same data, splits and seeds: accuracy, bytes and seconds.

    python -m benchmarks methods --features DIR [--runs DIR] [--only TABLE...]

Three tables.  *features*: a feature directory, the methods that need no CLIP.
*digits*: the embedded data and model, all methods, fine-tuning of all of CLIP
included.  *digits-long*: the same data, more rounds, without the methods that encode
every image in every round.  Every domain is held out in turn.  All methods of a table
run for the same number of rounds; each counts at its own best round, which the clients'
validation rows choose.  Finished runs stay in --runs and are not run again.

    python -m benchmarks methods --time --features DIR

times a few rounds of every method anew, on a machine that does nothing else, and puts
those seconds into the tables that are there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.accuracy.study import Place, Row, Study, finished_runs, run_study
from benchmarks.command import table as lines_of
from fedclip_plugin.bench.timing import machine
from fedclip_plugin.report.averages import (
    KINDS,
    METRICS,
    aggregate,
    cost_of,
    metrics_of,
)
from fedclip_plugin.report.records import RunRecord
from fedclip_plugin.report.wording import (
    below_zero_shot,
    human_bytes,
    human_seconds,
    lift,
    points,
    with_half,
)
from fedclip_plugin.stats import ci95, mean

Methods = dict[str, dict[str, Any]]  # label -> options of `fedclip run`
FEATURE_METHODS: Methods = {
    "zero-shot": {"alg": "zeroshot"},
    "local adapters": {"alg": "local"},
    "linear head": {"alg": "linear"},
    "FedCLIP, paper": {"alg": "fedclip"},
    "FedCLIP, best": {"alg": "fedclip", "preset": "best"},
}
FROZEN_METHODS: Methods = {**FEATURE_METHODS, "PromptFL": {"alg": "promptfl"}}
METHODS: Methods = {
    **FROZEN_METHODS,
    "FedAVG of LoRA": {"alg": "fedavg-lora"},
    "FedAVG on all of CLIP": {"alg": "fedavg"},
    "FedProx on all of CLIP": {"alg": "fedprox"},
}
TABLES = {"features": FEATURE_METHODS, "digits": METHODS, "digits-long": FROZEN_METHODS}
TIMED_ROUNDS = 6
ROUNDS = {"features": 100, "digits": 20, "digits-long": 200}


class MethodsStudy(Study):
    """A table for each kind of data, a row for each method."""

    name = "methods"

    @classmethod
    def add_options(cls, parser: argparse.ArgumentParser) -> None:
        """Which tables, where finished runs are, and whether only to time."""
        add = parser.add_argument
        add("--only", nargs="+", choices=TABLES, default=list(TABLES))
        add("--runs", type=Path, help="default: runs/methods")
        add("--time", action="store_true", help="only time, see above")
        parser.set_defaults(rounds=None)

    def facts(self) -> Row:
        """Of each table in itself."""
        return {}

    def grid(self) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Every method of every table, or its seconds a round."""
        for name in self.args.only:
            yield from self.timed(name) if self.args.time else self.table(name)

    def table(self, name: str) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """A table is begun anew where rounds or seeds are other ones."""
        args = self.args
        about = {"rounds": args.rounds or ROUNDS[name], "seeds": args.seeds}
        table = self.results.setdefault(name, {})
        if any(table.get(key) != value for key, value in about.items()):
            table.clear()
        table |= {**about, "machine": machine()}
        runs = args.runs or (self.scratch if args.quick else Path("runs/methods"))
        jobs = self.jobs(name, about["rounds"], {"seed": args.seeds})
        for label, finished in finished_runs(jobs, runs / name):
            first = finished[0].summary
            table["data"] = f"{first['dataset']}, {first['model']}"
            yield (name, "methods", label), partial(_figures, finished)

    def timed(self, name: str) -> Iterator[tuple[Place, Callable[[], Row]]]:
        """Seconds a round: the median of some rounds after the first."""
        table = self.results.get(name)
        if table is None:
            return
        target = list(table["methods"]["zero-shot"]["by_target"])[-1]
        table |= {"timed": {**machine(), "target": target}, "time": {}}
        jobs = self.jobs(name, TIMED_ROUNDS, {"seed": 0, "target": target})
        for label, (run,) in finished_runs(jobs, self.scratch / "timed"):
            seconds = [m["seconds"]["train"] for m in run.metrics[-5:]]
            yield (name, "time", label), partial(median, seconds)

    def jobs(self, name: str, rounds: int, shared: Mapping[str, Any]) -> Methods:
        """Label -> options of ``fedclip run``."""
        if name == "features":
            shared = {**shared, "features": self.args.features}
        trained = {**shared, "rounds": rounds}
        return {
            label: {**options, **(shared if label == "zero-shot" else trained)}
            for label, options in TABLES[name].items()
        }

    @staticmethod
    def page(results: Row) -> str:
        """All tables."""
        lines = [
            "# Methods",
            "",
            "`python -m benchmarks methods --features DIR`.  Accuracy in per cent at "
            "each method's best round, which the clients' validation rows choose.  "
            "Every domain is held out in turn: *held out* is that domain, scored "
            "whole; *clients* the mean over the test splits of the others; *mean* is "
            "over both.  ± is the 95 % interval over seeds, each averaged over its "
            "targets.  *Sent* is up and down, all clients, a whole run; *training* is "
            "the seconds of all clients, one after the other.  *Below zero-shot* "
            "counts the held-out domains and the clients' means, over seeds, that "
            "training worsened.",
        ]
        for name in TABLES:
            if name in results:
                lines += ["", *_section(name, results[name])]
        return "\n".join(lines) + "\n"


def _figures(runs: Sequence[RunRecord]) -> dict[str, Any]:
    """What the tables show of one method; accuracies are fractions."""
    summaries = [run.summary for run in runs]
    total = aggregate(summaries)
    sent, spent = cost_of(summaries)
    seeds: dict[Any, list[dict[str, float | None]]] = {}
    for summary in summaries:
        metrics = metrics_of(summary, "result")
        seeds.setdefault(summary["seed"], []).append(metrics)
    return {
        **{key: total[key] for key in ("mean", "ci95", "metrics")},
        "metrics_ci95": {
            key: ci95(mean(m[key] for m in found) for found in seeds.values())
            for key in METRICS
        },
        "by_target": {
            target: {key: row[key] for key in ("zero_shot", "result", "ci95")}
            for target, row in total["by_target"].items()
        },
        "bytes_a_run": sent,
        "train_seconds_a_run": spent,
        "params": summaries[0]["communication"]["params"],
        "best_rounds": [s["best_round"] for s in summaries],
        "below_zero_shot": below_zero_shot(total["by_target"]),
    }


def _section(name: str, table: Mapping[str, Any]) -> list[str]:
    on, methods = table["machine"], table["methods"]
    lines = [
        f"## {name}: {table['data']}",
        "",
        f"{table['rounds']} rounds (zero-shot: none), seeds {table['seeds']}; "
        f"{on['cpu']}, torch {on['torch']}, Python {on['python']}, {on['date']}.  "
        + _about_time(table),
        "",
    ]
    head = ["method", "held out", "lift", "clients", "mean", "parameters"]
    head += ["sent", "training", "best round", "below zero-shot"]
    rows = [_accuracy_row(label, row, table) for label, row in methods.items()]
    lines += lines_of(head, rows)
    targets = list(next(iter(methods.values()))["by_target"])
    lines += ["", "Held out, by domain, and class metrics of the held-out domains:", ""]
    head = ["method", *targets, *METRICS.values()]
    rows = [_detail_row(label, row, targets) for label, row in methods.items()]
    lines += lines_of(head, rows)
    short = [f"- {k}: {'; '.join(v)}" for k, row in methods.items()
             if (v := row["below_zero_shot"])]  # fmt: skip
    if short:
        lines += ["", "Below zero-shot on some domain (mean over seeds):", "", *short]
    return lines


def _about_time(table: Mapping[str, Any]) -> str:
    timed = table.get("timed")
    if timed is None:
        return "Training seconds are those of the runs, on a machine with other work."
    return (
        f"Training seconds: the median round with {timed['target']} held out, times "
        f"the rounds; one thread, load {timed['load']} on {timed['cores']} cores."
    )


def _accuracy_row(
    label: str, row: Mapping[str, Any], table: Mapping[str, Any]
) -> list[str]:
    got, half = row["mean"]["result"], row["ci95"]
    shown = [with_half(got[kind], half[kind], " ± ") for kind in KINDS]
    gain = points(lift(got["target"], row["mean"]["zero_shot"]["target"]))
    rounds = sorted(row["best_rounds"])
    spent = row["train_seconds_a_run"]
    if label in table.get("time", {}) and row["params"]:
        spent = table["rounds"] * table["time"][label]
    middle = f"{rounds[len(rounds) // 2]} ({rounds[0]} to {rounds[-1]})"
    return [
        *(label, shown[0], gain, *shown[1:], f"{row['params']:,}"),
        human_bytes(row["bytes_a_run"]),
        human_seconds(spent),
        middle if row["params"] else "-",
        f"{len(row['below_zero_shot'])} of {2 * len(row['by_target'])}",
    ]


def _detail_row(
    label: str, row: Mapping[str, Any], targets: Sequence[str]
) -> list[str]:
    cells = [
        with_half(found["result"]["target"], found["ci95"]["target"], " ± ")
        for found in (row["by_target"][target] for target in targets)
    ]
    metrics, half = row["metrics"]["result"], row["metrics_ci95"]
    return [label, *cells, *(with_half(metrics[k], half[k], " ± ") for k in METRICS)]


def main(argv: Sequence[str] | None = None) -> None:
    run_study(MethodsStudy, __doc__, argv, rounds=1, only=["features"])
