"""The tables of a report as rows of cells: console, page and text set the same ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ..data.partition import NO_TARGET
from ..stats import mean
from .averages import (
    KINDS,
    METRICS,
    MORE_METRICS,
    aggregate,
    client_names,
    cost_of,
    same_features,
    scores,
)
from .records import RunRecord, Summary, target_name
from .wording import (
    fell_short,
    half_width,
    human_bytes,
    human_seconds,
    lift,
    method_label,
    percent,
    points,
    promise,
)

SAW_TARGET = {"Transductive": "yes: training saw the unlabelled held-out images"}
MAX_ROWS = 100  # clients below each other

_OVER_SEEDS = "± is the half-width of the 95 % interval over seeds."


@dataclass(frozen=True)
class Cell:
    """``text``, with ``sub`` in smaller type.

    ``tone`` is ``up``, ``down``, ``name`` for words that may break, or empty.
    """

    text: str
    sub: str = ""
    tone: str = ""

    def __str__(self) -> str:
        return f"{self.text} {self.sub}".strip()


@dataclass(frozen=True)
class Table:
    """Cells in rows, of which the first names the row.

    ``total``: the last row is the mean of the others.  ``fold``: what stands for the
    table where it is too long to be shown open.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""
    total: bool = False
    fold: str = ""


# -- cells ----------------------------------------------------------------------------


def gain(result: float | None, base: float | None) -> Cell:
    """The difference in points, with a tone where both are known."""
    more = lift(result, base)
    tone = "" if more is None else "up" if more >= 0 else "down"
    return Cell(points(more), tone=tone)


def accuracies(row: Mapping[str, Any]) -> dict[str, Cell]:
    """Of a row of averages: ``KIND zero-shot``, ``KIND`` and ``KIND lift``."""
    cells = {}
    for kind in KINDS:
        base, got = row["zero_shot"][kind], row["result"][kind]
        half, more = half_width(row["ci95"][kind]), gain(got, base)
        cells[f"{kind} zero-shot"] = Cell(percent(base))
        cells[kind] = Cell(percent(got), half, more.tone)
        cells[f"{kind} lift"] = more
    return cells


def measures(row: Mapping[str, Any], runs: Sequence[Summary]) -> dict[str, Cell]:
    """``accuracies``, the class metrics, and what ``runs`` cost on average."""
    metrics = row["metrics"]["result"]
    sent, spent = cost_of(runs)
    names = {"target": "held-out", "clients": "clients"}
    return {
        **accuracies(row),
        **{key: Cell(percent(metrics[key])) for key in METRICS},
        "sent": Cell(human_bytes(sent)),
        "spent": Cell(human_seconds(spent)),
        "below": Cell(" and ".join(names[kind] for kind in fell_short(row)) or "-"),
    }


def overall(total: Mapping[str, Any]) -> dict[str, Any]:
    """The means over held-out domains as a row like those of ``by_target``."""
    return {**total, **total["mean"]}


def _domain(target: str) -> str:
    return "no domain" if target == NO_TARGET else target


# -- of runs that may be averaged -----------------------------------------------------


def facts(group: Sequence[Summary]) -> dict[str, str]:
    """What was run, by its name."""
    first = group[0]

    def each(values: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(map(str, values)))

    seeds = each(s.get("seed", "?") for s in group)
    best = {"Best round": str(first.get("best_round", "?"))}
    return {
        "Algorithm": first["algorithm"],
        "Data set": first["dataset"],
        "Model": first["model"],
        "Weights": str(first.get("pretrained", "?")),
        "Held out": each(map(target_name, group)),
        "Clients": each(len(s["result"]["clients"]) for s in group),
        "Rounds": each(s["rounds"] for s in group),
        "Seeds" if "," in seeds else "Seed": seeds,
        **(best if len(group) == 1 else {}),
        **(SAW_TARGET if first.get("transductive") else {}),
    }


def results(total: Mapping[str, Any], method: str, *, lifts: bool) -> Table:
    """Held-out domains down; held-out, clients' and overall accuracies across."""
    rows = total["by_target"]
    method = method.replace(" (", "\n(")  # in a narrow column
    columns = {}
    for kind, name in (("target", "held-out"), ("clients", "clients")):
        if kind == "target" and set(rows) == {NO_TARGET}:
            continue
        columns[f"{kind} zero-shot"] = f"{name}\nzero-shot"
        columns[kind] = f"{name}\n{method}"
        columns |= {f"{kind} lift": "lift"} if lifts else {}
    columns["mean"] = f"overall\n{method}"
    several = len(rows) > 1
    named = {_domain(name): row for name, row in rows.items()}
    body = [*named.items(), *([("mean", overall(total))] if several else [])]
    repeated = any(len(row["seeds"]) > 1 for row in rows.values())
    return Table(
        ["held out", *columns.values()],
        [[Cell(n), *_chosen(accuracies(row), columns)] for n, row in body],
        "Accuracy in %, best round",
        _OVER_SEEDS if repeated else "",
        several,
    )


def _chosen(cells: Mapping[str, Cell], columns: Iterable[str]) -> list[Cell]:
    return [cells[key] for key in columns]


def client_accuracies(total: Mapping[str, Any], method: str, most: int) -> Table | None:
    """Two rows a held-out domain; of more than ``most`` clients their spread."""
    names = client_names(total["by_target"])
    if not names:
        return None
    many = len(names) > most
    body = []
    for target, row in total["by_target"].items():
        for which, text in (("zero_shot", "zero-shot"), ("result", method)):
            tests = {name: values[which] for name, values in row["clients"].items()}
            cells = [Cell(percent(tests.get(name))) for name in names]
            if not many and target in names:
                cells[names.index(target)] = Cell("", "held out")
            each = _spread(tests.values()) if many else cells
            body.append([Cell(_domain(target), text), *each])
    head = ("lowest", "median", "highest") if many else names
    return Table(["held out", *head], body, "Each client's test accuracy in %")


def _spread(values: Iterable[float | None]) -> list[Cell]:
    numbers = [v for v in values if v is not None]
    ends = (min(numbers), median(numbers), max(numbers)) if numbers else (None,) * 3
    return [Cell(percent(value)) for value in ends]


def costs(group: Sequence[Summary], total: Mapping[str, Any]) -> dict[str, str]:
    """What the runs cost, promise and left out, each in a line by its name."""
    rounds = sum(s["rounds"] for s in group)
    visits = sum(s["rounds"] * max(len(s["result"]["clients"]), 1) for s in group)
    params = group[0]["communication"].get("params") or 0
    quarantined = sum(s.get("quarantined") or 0 for s in group)
    skipped = {name for s in group for name in s.get("skipped_images") or ()}
    lines = {
        "sent a run": _sent(group, len(group)),
        "sent a round": f"{_sent(group, rounds)} ({params:,} parameters a client)",
        "per client": f"{_sent(group, visits)} a round",
        "time": _stages(total),
        "over classes": class_metrics(total["metrics"]),
        "personalized": _personal_line(group),
        "privacy": promise(group),
        "quarantined": f"{quarantined} updates were left out" if quarantined else "",
        "skipped": f"{len(skipped)} unreadable images" if skipped else "",
    }
    return {name: line for name, line in lines.items() if line}


def _sent(group: Sequence[Summary], parts: int) -> str:
    sums = {
        way: sum(s["communication"].get(f"bytes_{way}") or 0 for s in group)
        for way in ("up", "down")
    }
    return ", ".join(f"{human_bytes(n / max(parts, 1))} {w}" for w, n in sums.items())


def _stages(total: Mapping[str, Any]) -> str:
    stages = {**total["seconds"], "in all": sum(total["seconds"].values())}
    return ", ".join(f"{name} {human_seconds(s)}" for name, s in stages.items())


def class_metrics(metrics: Mapping[str, Any]) -> str:
    """``METRICS`` of ``zero_shot`` and ``result``; empty for runs of older versions."""
    base, got = metrics["zero_shot"], metrics["result"]
    return ", ".join(
        f"{name} {percent(base[key])} -> {percent(got[key])}"
        for key, name in {**METRICS, **MORE_METRICS}.items()
        if got[key] is not None
    )


def _personal_line(group: Sequence[Summary]) -> str:
    """Test accuracy before and after, mean over clients and runs."""
    personalizations = [p for s in group if (p := s.get("personalization"))]
    parts = []
    for key, who in (("clients", "clients"), ("new_clients", "new client")):
        each = [row for p in personalizations for row in p[key].values()]
        before, after = (mean(row[k] for row in each) for k in ("shared", "personal"))
        if before is not None and after is not None:
            more = f"{points(after - before)} points, {personalizations[0]['method']}"
            parts.append(f"{who} {percent(before)} -> {percent(after)} ({more})")
    return ", ".join(parts)


# -- of several methods on the same data and model ------------------------------------


def comparison(groups: Sequence[Sequence[Summary]], metrics: bool = True) -> Table:
    """A row a method: accuracies, class metrics unless without, bytes, seconds."""
    rows = [overall(aggregate(group)) for group in groups]
    kind = kind_of(rows)
    columns = {kind: "held out" if kind == "target" else "clients"}
    columns |= {f"{kind} lift": "lift", "clients": "clients", "mean": "overall"}
    columns |= METRICS if metrics else {}
    columns |= {"sent": "sent a run", "spent": "training a run"}
    body = [
        [Cell(method_label(group[0])), *_chosen(measures(row, group), columns)]
        for row, group in zip(rows, groups)
    ]
    same = same_features(group[0] for group in groups)
    if same and all(group[0]["algorithm"] != "zeroshot" for group in groups):
        body.insert(0, _guard(rows[0], columns))
    repeated = any(
        len(row["seeds"]) > 1 for r in rows for row in r["by_target"].values()
    )
    note = _OVER_SEEDS if repeated else ""
    return Table(["method", *columns.values()], body, note=note)


def kind_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """What methods are compared by: ``target`` where all have one, else ``clients``."""
    held_out = all(row["result"]["target"] is not None for row in rows)
    return "target" if held_out else "clients"


def _guard(row: Mapping[str, Any], columns: Iterable[str]) -> list[Cell]:
    """Zero-shot itself; all methods are scored on the same features."""
    values = {**row["zero_shot"], **row["metrics"]["zero_shot"]}
    cells = [Cell(percent(values[k]) if k in values else "") for k in columns]
    return [Cell("zero-shot"), *cells]


# -- of one run -----------------------------------------------------------------------


def clients_of_run(run: RunRecord) -> Table:
    """Held-out domain and every client, with the sizes of their splits."""
    base, got = run.summary["zero_shot"], run.summary["result"]
    sizes = run.evaluation.get("clients") or {}
    rows = []
    if run.target != NO_TARGET:
        held = [Cell(run.target, "held out"), Cell("-"), Cell("-"), Cell("all")]
        rows.append([*held, *_scores(base.get("target"), got.get("target"))])
    for name, value in _listed(got["clients"]).items():
        splits = [(sizes.get(name) or {}).get(key) for key in ("train", "val", "test")]
        counts = [Cell("-" if size is None else f"{size:,}") for size in splits]
        rows.append([Cell(name), *counts, *_scores(base["clients"].get(name), value)])
    zero, result = scores(run.summary, "zero_shot"), scores(run.summary, "result")
    rows.append([Cell("mean"), *[Cell("")] * 3, *_scores(zero["mean"], result["mean"])])
    more = len(got["clients"]) - MAX_ROWS
    note = f"the lowest and the highest; {more:,} clients between them are not listed"
    return Table(
        ("domain", "train", "validation", "test", "zero-shot", "trained", "lift"),
        rows,
        note=note if more > 0 else "",
        total=True,
        fold=f"Table of the {len(got['clients'])} clients",
    )


def _scores(base: float | None, got: float | None) -> list[Cell]:
    return [Cell(percent(base)), Cell(percent(got)), gain(got, base)]


def _listed(clients: Mapping[str, float | None]) -> Mapping[str, float | None]:
    """All clients; of more than MAX_ROWS the lowest and the highest."""
    if len(clients) <= MAX_ROWS:
        return clients
    scored = {name: value for name, value in clients.items() if value is not None}
    names = sorted(scored, key=lambda name: scored[name])
    half = MAX_ROWS // 2
    return {name: scored[name] for name in names[:half] + names[-half:]}


def personal_of_run(run: RunRecord) -> Table | None:
    """Personalization: each client before and after; none where there was none."""
    personalization = run.summary.get("personalization")
    if not personalization:
        return None
    rows = [
        [Cell(run.target, "new client"), *_personal(row)]
        for row in personalization["new_clients"].values()
    ]
    rows += [
        [Cell(n), *_personal(row)] for n, row in personalization["clients"].items()
    ]
    more = len(rows) - MAX_ROWS
    rest = f"{more:,} more in summary.json" if more > 0 else ""
    return Table(
        ("client", "zero-shot", "shared", "personal", "over shared", "over zero-shot"),
        rows[:MAX_ROWS],
        f"Personalized by {personalization['method']}",
        " ".join(filter(None, [_gains(personalization), rest])),
        fold="Each client",
    )


def _personal(row: Mapping[str, Any]) -> list[Cell]:
    values = [Cell(percent(row[key])) for key in ("zero_shot", "shared", "personal")]
    return values + [
        gain(row["personal"], row[base]) for base in ("shared", "zero_shot")
    ]


def _gains(personalization: Mapping[str, Any]) -> str:
    """The clients' mean gains in a sentence."""
    parts = []
    for base, name in (("shared", "the shared adapter"), ("zero_shot", "zero-shot")):
        gains = personalization[f"gain_over_{base}"]
        if gains["mean"] is not None:
            value = Cell(points(gains["mean"]), half_width(gains["ci95"]))
            parts.append(f"{value} points over {name}")
    if not parts:
        return ""
    return f"The clients' mean: {' and '.join(parts)} (± 95 % over clients)."
