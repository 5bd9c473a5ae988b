"""Every method on the same data, splits and seeds: accuracy, bytes and seconds.

    python -m benchmarks methods --features DIR [--runs DIR] [--only TABLE...]

Three tables.  *features*: a feature directory, the methods that need no CLIP.
*digits*: the embedded data and model, all methods, fine-tuning of all of CLIP
included.  *digits-long*: the same data, more rounds, without the methods that encode
every image in every round.  Every domain is held out in turn.  All methods of a table
run for the same number of rounds; each counts at its own best round, which the clients'
validation rows choose.  Finished runs stay in --runs and are not run again.  Results go
to results/methods.json and .md.

    python -m benchmarks methods --time --features DIR

times a few rounds of every method anew, on a machine that does nothing else, and puts
those seconds into the tables that are there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.accuracy.study import finish_runs, markdown_table
from benchmarks.timing import machine, out_file
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

RESULTS = Path(__file__).parents[1] / "results" / "methods"
FEATURE_METHODS: dict[str, tuple[str, ...]] = {
    "zero-shot": ("--alg", "zeroshot"),
    "local adapters": ("--alg", "local"),
    "linear head": ("--alg", "linear"),
    "FedCLIP, paper": ("--alg", "fedclip"),
    "FedCLIP, best": ("--alg", "fedclip", "--preset", "best"),
}
FROZEN_METHODS = {**FEATURE_METHODS, "PromptFL": ("--alg", "promptfl")}
METHODS: dict[str, tuple[str, ...]] = {
    **FROZEN_METHODS,
    "FedAVG of LoRA": ("--alg", "fedavg-lora"),
    "FedAVG on all of CLIP": ("--alg", "fedavg"),
    "FedProx on all of CLIP": ("--alg", "fedprox"),
}
TABLES = {"features": FEATURE_METHODS, "digits": METHODS, "digits-long": FROZEN_METHODS}
TIMED_ROUNDS = 6
ROUNDS = {"features": 100, "digits": 20, "digits-long": 200}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--features", type=Path, help="feature directory")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rounds", type=int, help="of every table that is run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs/methods"))
    parser.add_argument("--time", action="store_true", help="only time, see above")
    parser.add_argument("--out", type=out_file, default=RESULTS, help="without ending")
    args = parser.parse_args(argv)
    if "features" in args.only and args.features is None:
        parser.error("the table `features` needs --features DIR")
    file = args.out.with_suffix(".json")
    found = json.loads(file.read_text()) if file.is_file() else {}
    for name in args.only:
        for table in (_time if args.time else _run)(name, found.get(name, {}), args):
            found[name] = table
            file.write_text(json.dumps(found, indent=1) + "\n")
            args.out.with_suffix(".md").write_text(_markdown(found))


def _run(
    name: str, table: Mapping[str, Any], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The table, longer by one method each time."""
    rounds = args.rounds or ROUNDS[name]
    methods: dict[str, Any] = {}
    jobs = _jobs(name, rounds, ["--seed", *map(str, args.seeds)], args)
    for label, runs in finish_runs(jobs, args.runs / name):
        methods[label] = _figures(runs)
        about = {"rounds": rounds, "seeds": args.seeds, "machine": machine()}
        yield {**table, **about, "data": _data(runs), "methods": methods}


def _time(
    name: str, table: Mapping[str, Any], args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """The table with seconds a round: the median of some rounds after the first."""
    if not table:
        return
    seconds: dict[str, float] = {}
    target = list(table["methods"]["zero-shot"]["by_target"])[-1]
    jobs = _jobs(name, TIMED_ROUNDS, ["--seed", "0", "--target", target], args)
    with TemporaryDirectory() as folder:
        for label, runs in finish_runs(jobs, Path(folder)):
            rounds = runs[0].metrics
            seconds[label] = median(m["seconds"]["train"] for m in rounds[-5:])
            yield {**table, "timed": {**machine(), "target": target}, "time": seconds}


def _jobs(
    name: str, rounds: int, shared: Sequence[str], args: argparse.Namespace
) -> dict[str, Sequence[str]]:
    """Label -> options of ``fedclip run``."""
    if name == "features":
        shared = [*shared, "--features", str(args.features)]
    trained = [*shared, "--rounds", str(rounds)]
    return {
        label: [*words, *(shared if label == "zero-shot" else trained)]
        for label, words in TABLES[name].items()
    }


def _data(runs: Sequence[RunRecord]) -> str:
    first = runs[0].summary
    return f"{first['dataset']}, {first['model']}"


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


# ------------------------------------------------------------------------------ report


def _markdown(found: Mapping[str, Any]) -> str:
    lines = [
        "# Methods",
        "",
        "`python -m benchmarks methods --features DIR`.  Accuracy in per cent at each "
        "method's best round, which the clients' validation rows choose.  Every domain "
        "is held out in turn: *held out* is that domain, scored whole; *clients* the "
        "mean over the test splits of the others; *mean* is over both.  ± is the 95 % "
        "interval over seeds, each averaged over its targets.  *Sent* is up and down, "
        "all clients, a whole run; *training* is the seconds of all clients, one after "
        "the other.  *Below zero-shot* counts the held-out domains and the clients' "
        "means, over seeds, that training worsened.",
    ]
    for name in TABLES:
        if name in found:
            lines += ["", *_section(name, found[name])]
    return "\n".join(lines) + "\n"


def _section(name: str, table: Mapping[str, Any]) -> list[str]:
    on, methods = table["machine"], table["methods"]
    lines = [
        f"## {name}: {table['data']}",
        "",
        f"{table['rounds']} rounds (zero-shot: none), seeds {table['seeds']}; "
        f"{on['cpu']}, torch {on['torch']}, Python {on['python']}, {on['date']}.  "
        + _told_of_time(table),
        "",
    ]
    head = ["method", "held out", "lift", "clients", "mean", "parameters"]
    head += ["sent", "training", "best round", "below zero-shot"]
    rows = [_accuracy_row(label, row, table) for label, row in methods.items()]
    lines += markdown_table(head, rows)
    targets = list(next(iter(methods.values()))["by_target"])
    lines += ["", "Held out, by domain, and class metrics of the held-out domains:", ""]
    head = ["method", *targets, *METRICS.values()]
    rows = [_detail_row(label, row, targets) for label, row in methods.items()]
    lines += markdown_table(head, rows)
    short = [f"- {k}: {'; '.join(v)}" for k, row in methods.items()
             if (v := row["below_zero_shot"])]  # fmt: skip
    if short:
        lines += ["", "Below zero-shot on some domain (mean over seeds):", "", *short]
    return lines


def _told_of_time(table: Mapping[str, Any]) -> str:
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


if __name__ == "__main__":
    main()
