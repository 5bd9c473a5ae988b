"""The page of the comparison of methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.accuracy.method_figures import figures
from benchmarks.accuracy.method_tables import TABLES
from benchmarks.command import table as lines_of
from fedclip_plugin.report.averages import KINDS, METRICS
from fedclip_plugin.report.wording import (
    human_bytes,
    human_seconds,
    lift,
    points,
    with_half,
)

INTRODUCTION = (
    "`python -m benchmarks methods --features DIR`.  Accuracy in per cent at each "
    "method's best round, which the clients' validation rows choose.  Every domain is "
    "held out in turn: *held out* is that domain, scored whole; *clients* the mean "
    "over the test splits of the others; *mean* is over both.  ± is the 95 % interval "
    "over seeds, each averaged over its targets.  A method is named as after `fedclip "
    "run --alg`.  *Sent* is up and down, all clients, a whole run; *training* is the "
    "seconds of all clients, one after the other.  *Below zero-shot* counts the "
    "held-out domains and the clients' means, over seeds, that training worsened.  "
    "† is transductive: it sees the held-out domain's images, without labels, and is "
    "not compared with the others there.  A row of fewer seeds than its table says so; "
    "not reached is what no seed has been through."
)


def page_of(results: Mapping[str, Any]) -> str:
    """All tables that there are."""
    lines = ["# Methods", "", INTRODUCTION]
    for name in TABLES:
        if name in results and shown_of(results[name]):
            lines += ["", *_section(name, results[name])]
    return "\n".join(lines) + "\n"


def _section(name: str, table: Mapping[str, Any]) -> list[str]:
    on = [_machine(each) for each in table.get("machines", [table["machine"]])]
    done = shown_of(table)
    lines = [
        f"## {name}: {table.get('data', '')}, {TABLES[name].about}",
        "",
        f"{table['rounds']} rounds unless a method has its own, seeds "
        f"{table['seeds']}; {'; '.join(on)}.  {_about_time(table)}",
        "",
    ]
    head = ["method", "held out", "lift", "clients", "mean", "parameters"]
    head += ["sent", "rounds", "training", "best round", "below zero-shot"]
    missing = [label for label in table["asked"] if label not in done]
    rows = [_accuracy_row(label, done[label], table) for label in _ranked(done)]
    rows += [_absent(label, table, len(head)) for label in missing]
    lines += lines_of(head, rows)
    return [*lines, *_details(done)]


def _machine(on: Mapping[str, Any]) -> str:
    return f"{on['cpu']}, torch {on['torch']}, Python {on['python']}, {on['date']}"


def shown_of(table: Mapping[str, Any]) -> dict[str, Any]:
    """Label -> figures of all methods that have some."""
    return {**table["methods"], **_begun(table)}


def _begun(table: Mapping[str, Any]) -> dict[str, Any]:
    """Methods of which the seeds so far cover every target."""
    found = {}
    for label, cells in table["cells"].items():
        seeds: dict[str, list[Any]] = {}
        for place, cell in cells.items():
            if "failed" not in cell:
                seeds.setdefault(place.rpartition(" ")[2], []).append(cell)
        whole = [c for c in seeds.values() if len(c) == len(table["targets"])]
        if whole:
            found[label] = figures([cell for each in whole for cell in each])
    return found


def _ranked(done: Mapping[str, Any]) -> list[str]:
    """Zero-shot, then the best on unseen domains first."""

    def key(label: str) -> tuple[bool, float]:
        return label != "zeroshot", -(done[label]["mean"]["result"]["target"] or 0.0)

    return sorted(done, key=key)


def _details(done: Mapping[str, Any]) -> Iterator[str]:
    if not done:
        return
    targets = list(next(iter(done.values()))["by_target"])
    yield from ("", "Held out, by domain, and class metrics of those domains:", "")
    head = ["method", *targets, *METRICS.values()]
    yield from lines_of(head, [_detail_row(k, done[k], targets) for k in _ranked(done)])
    short = [
        f"- `{k}`: {'; '.join(done[k]['below_zero_shot'])}"
        for k in _ranked(done)
        if done[k]["below_zero_shot"]
    ]
    if short:
        yield from ("", "Below zero-shot on some domain (mean over seeds):", "", *short)


def _about_time(table: Mapping[str, Any]) -> str:
    timed = table.get("timed")
    if timed is None:
        return "Training seconds are those of the runs, on a machine with other work."
    return (
        f"Training seconds: the median round with {timed['target']} held out, times "
        f"the rounds; one thread, load {timed['load']} on {timed['cores']} cores."
    )


def _name(label: str, row: Mapping[str, Any]) -> str:
    return f"`{label}`" + (" †" if row.get("transductive") else "")


def _absent(label: str, table: Mapping[str, Any], columns: int) -> list[str]:
    cells = table["cells"].get(label, {}).values()
    failed = next((cell["failed"] for cell in cells if "failed" in cell), None)
    said = f"failed: {failed}" if failed else "not reached"
    return [f"`{label}`", said, *["-"] * (columns - 2)]


def _accuracy_row(
    label: str, row: Mapping[str, Any], table: Mapping[str, Any]
) -> list[str]:
    got, half = row["mean"]["result"], row["ci95"]
    shown = [with_half(got[kind], half[kind], " ± ") for kind in KINDS]
    gain = points(lift(got["target"], row["mean"]["zero_shot"]["target"]))
    best = sorted(row["best_rounds"])
    spent, ran = row["train_seconds_a_run"], row.get("rounds", table["rounds"])
    if label in table.get("time", {}) and row["params"]:
        spent = ran * table["time"][label]
    middle = f"{best[len(best) // 2]} ({best[0]} to {best[-1]})"
    some = row["seeds"] < len(table["seeds"])
    seeds = f" (seeds: {row['seeds']})" if some else ""
    return [
        *(_name(label, row) + seeds, shown[0], gain, *shown[1:], f"{row['params']:,}"),
        human_bytes(row["bytes_a_run"]),
        f"{ran if row['params'] else 0}",
        human_seconds(spent),
        middle if row["params"] and ran > 1 else "-",
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
    shown = [with_half(metrics[k], half[k], " ± ") for k in METRICS]
    return [_name(label, row), *cells, *shown]
