"""The headline figures and the tables of the report page, as HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from ..averages import METRICS, client_names, scores
from ..records import NO_TARGET, RunRecord, Summary
from ..wording import (
    below_zero_shot,
    human_bytes,
    human_seconds,
    lift,
    percent,
    points,
    promise,
)

_WAYS = ("up", "down")

MAX_COLUMNS = 12  # clients beside each other
MAX_ROWS = 100  # clients below each other
MAX_OPEN_ROWS = 22  # beyond, the table is folded


def esc(value: object) -> str:
    """Text for HTML; also within quotes."""
    return html.escape(str(value), quote=True)


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], *, total: bool = False
) -> str:
    """A table that scrolls in its own box; ``rows`` are HTML, ``head`` is plain text.

    ``total`` sets the last row apart.
    """
    top = "".join(f'<th scope="col">{esc(cell)}</th>' for cell in head)
    body = []
    for i, (name, *cells) in enumerate(rows):
        mark = ' class="total"' if total and i == len(rows) - 1 else ""
        rest = "".join(f"<td>{cell}</td>" for cell in cells)
        body.append(f'<tr{mark}><th scope="row">{name}</th>{rest}</tr>')
    return (
        '<div class="box" tabindex="0" role="region" aria-label="table"><table>'
        f"<thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def gain(result: float | None, base: float | None) -> str:
    """The difference in points, coloured by its sign."""
    more = lift(result, base)
    if more is None:
        return "-"
    return f'<span class="{"up" if more >= 0 else "down"}">{points(more)}</span>'


def with_half(value: float | None, half: float | None) -> str:
    """Per cent, with the half-width of its interval in small type."""
    if half is None:
        return percent(value)
    return f'{percent(value)} <span class="sub">± {100 * half:.2f}</span>'


def fold(shown: str, rows: int, label: str) -> str:
    """A long table behind its ``label``."""
    if rows <= MAX_OPEN_ROWS:
        return shown
    return f"<details><summary>{esc(label)}</summary>{shown}</details>"


# -- what was run, and how it went ----------------------------------------------------


def lead(total: Mapping[str, Any], method: str) -> str:
    """The result in one sentence; empty where nothing could be measured."""
    base, got = total["mean"]["zero_shot"], total["mean"]["result"]
    kind = "clients" if got["target"] is None else "target"
    gain = lift(got[kind], base[kind])
    where = "the clients' test images" if kind == "clients" else "the held-out domain"
    if kind == "target" and len(total["by_target"]) > 1:
        where = "the held-out domains on average"
    if gain is None:
        return ""
    side = "above" if gain >= 0 else "below"
    return (
        f'<p class="lead">{esc(method)} reaches <b>{percent(got[kind])}&nbsp;%</b> '
        f"on {where}, {abs(100 * gain):.2f} points {side} zero-shot CLIP "
        f"({percent(base[kind])}&nbsp;%).</p>"
    )


def warning(total: Mapping[str, Any], method: str) -> str:
    """What training worsened; empty where nothing."""
    clauses = below_zero_shot(total["by_target"])
    if not clauses:
        return ""
    more = f" and {len(clauses) - 6} more" if len(clauses) > 6 else ""
    told = esc("; ".join(clauses[:6])) + more
    return f'<p class="warn">{esc(method)} is below zero-shot: {told}.</p>'


def privacy_note(group: Sequence[Summary]) -> str:
    """What the clients are promised; empty without privacy."""
    found = promise(group)
    return f'<p class="privacy">{esc(found)}</p>' if found else ""


def facts(group: Sequence[Summary]) -> str:
    """What was run."""
    first = group[0]
    targets = dict.fromkeys(str(s.get("target") or NO_TARGET) for s in group)
    seeds = dict.fromkeys(str(s.get("seed", "?")) for s in group)
    rounds = dict.fromkeys(str(s["rounds"]) for s in group)
    clients = dict.fromkeys(str(len(s["result"]["clients"])) for s in group)
    facts = {
        "Algorithm": first["algorithm"],
        "Data set": first["dataset"],
        "Model": first["model"],
        "Weights": first.get("pretrained", "?"),
        "Held out": ", ".join(targets),
        "Clients": ", ".join(clients),
        "Rounds": ", ".join(rounds),
        "Seeds" if len(seeds) > 1 else "Seed": ", ".join(seeds),
    }
    if len(group) == 1:
        facts["Best round"] = first.get("best_round", "?")
    items = (f"<div><dt>{k}</dt><dd>{esc(v)}</dd></div>" for k, v in facts.items())
    return f'<dl class="facts">{"".join(items)}</dl>'


def cards(group: Sequence[Summary], total: Mapping[str, Any], method: str) -> str:
    """Headline figures: accuracies, bytes, seconds."""
    base, got, half = total["mean"]["zero_shot"], total["mean"]["result"], total["ci95"]
    cards = []
    for kind, name in (("target", "Held-out domain"), ("clients", "Clients, mean")):
        gain = lift(got[kind], base[kind])
        if gain is None:
            continue
        spread = f" ± {100 * half[kind]:.2f}" if half[kind] is not None else ""
        tone = "up" if gain >= 0 else "down"
        below = (
            f"zero-shot {percent(base[kind])} %, "
            f'<span class="{tone}" style="display:inline">{points(gain)} points</span>'
        )
        value = f"{percent(got[kind])}<small>{spread} %</small>"
        cards.append(_card(f"{esc(method)}, {name.lower()}", value, below))
    cards.append(_bytes_card(group))
    stages = total["seconds"]
    told = ", ".join(f"{name} {human_seconds(s)}" for name, s in stages.items())
    cards.append(_card("Time, all stages", human_seconds(sum(stages.values())), told))
    return f'<div class="cards">{"".join(cards)}</div>'


def _card(name: str, value: str, below: str) -> str:
    return (
        f'<div class="card"><span class="sub">{name}</span><b>{value}</b>'
        f"<span>{below}</span></div>"
    )


def _bytes_card(group: Sequence[Summary]) -> str:
    ways = {
        w: sum(s["communication"].get(f"bytes_{w}") or 0 for s in group) for w in _WAYS
    }
    visits = sum(s["rounds"] * max(len(s["result"]["clients"]), 1) for s in group)
    up, down = (human_bytes(ways[way] / max(visits, 1)) for way in _WAYS)
    params = group[0]["communication"].get("params") or 0
    value = f"{up}<small> up</small>"
    below = f"{down} down; {params:,} parameters"
    return _card("Sent a round and client, mean", value, below)


# -- tables ---------------------------------------------------------------------------


def results(total: Mapping[str, Any], method: str) -> str:
    """Targets down; held-out, clients and overall accuracies across."""
    names = {"target": "held-out", "clients": "clients"}
    if all(name == NO_TARGET for name in total["by_target"]):
        del names["target"]
    head = ["held out"]
    for kind in names.values():
        head += [f"{kind}: zero-shot", f"{kind}: {method}", "lift"]
    head.append(f"overall: {method}")
    body = [
        _result_row(_target_label(name), row, names)
        for name, row in total["by_target"].items()
    ]
    several = len(body) > 1
    if several:
        row = {**total["mean"], "ci95": total["ci95"]}
        body.append(_result_row("mean", row, names))
    note = ""
    if any(len(row["seeds"]) > 1 for row in total["by_target"].values()):
        text = "± is the half-width of the 95 % confidence interval over seeds."
        note = f'<p class="muted">{text}</p>'
    return table(head, body, total=several) + note


def _target_label(name: str) -> str:
    return "no domain" if name == NO_TARGET else esc(name)


def _result_row(
    label: str, row: Mapping[str, Any], kinds: Mapping[str, str]
) -> list[str]:
    base, got, half = row["zero_shot"], row["result"], row["ci95"]
    cells = [label]
    for kind in kinds:
        cells += [
            percent(base[kind]),
            with_half(got[kind], half[kind]),
            gain(got[kind], base[kind]),
        ]
    return [*cells, with_half(got["mean"], half["mean"])]


def client_matrix(total: Mapping[str, Any], method: str) -> str:
    """Targets x clients; empty with more clients than fit beside each other."""
    rows, names = total["by_target"], client_names(total["by_target"])
    if not names or len(names) > MAX_COLUMNS:
        return ""
    body = [
        [_target_label(target), *(_matrix_cell(row["clients"].get(n)) for n in names)]
        for target, row in rows.items()
    ]
    head = f"<h3>Each client's test accuracy, {esc(method)} and zero-shot</h3>"
    return head + table(["held out", *names], body)


def _matrix_cell(found: Mapping[str, float | None] | None) -> str:
    if found is None:
        return '<span class="sub">held out</span>'
    base = percent(found["zero_shot"])
    return f'{percent(found["result"])}<br><span class="sub">{base}</span>'


def clients_of_run(run: RunRecord) -> str:
    """One run: held-out domain and every client, with the sizes of their splits."""
    base, got = run.summary["zero_shot"], run.summary["result"]
    sizes = run.evaluation.get("clients") or {}
    rows = []
    if run.target != NO_TARGET:
        held = f'{esc(run.target)} <span class="sub">held out</span>'
        rows.append(
            [held, "-", "-", "all", *_scores(base.get("target"), got.get("target"))]
        )
    for name, value in _listed(got["clients"]).items():
        found = sizes.get(name) or {}
        counts = [_count(found.get(split)) for split in ("train", "val", "test")]
        rows.append([esc(name), *counts, *_scores(base["clients"].get(name), value)])
    zero, result = scores(run.summary, "zero_shot"), scores(run.summary, "result")
    rows.append(["mean", "", "", "", *_scores(zero["mean"], result["mean"])])
    head = ("domain", "train", "validation", "test", "zero-shot", "trained", "lift")
    more = len(got["clients"]) - MAX_ROWS
    told = f"the lowest and the highest; {more:,} clients between them are not listed"
    note = f'<p class="muted">{told}</p>' if more > 0 else ""
    shown = table(head, rows, total=True) + note
    return fold(shown, len(rows), f"Table of the {len(got['clients'])} clients")


def _listed(clients: Mapping[str, float | None]) -> Mapping[str, float | None]:
    """All clients; of more than MAX_ROWS the lowest and the highest."""
    if len(clients) <= MAX_ROWS:
        return clients
    known = {name: value for name, value in clients.items() if value is not None}
    names = sorted(known, key=lambda name: known[name])
    half = MAX_ROWS // 2
    return {name: known[name] for name in names[:half] + names[-half:]}


def class_metrics(found: Mapping[str, Any], where: str) -> str:
    """Balanced accuracy, macro F1 and calibration error; empty for older runs.

    ``found`` holds ``METRICS`` of ``zero_shot`` and ``result``; ``where`` tells whose.
    """
    base, got = found["zero_shot"], found["result"]
    if got["balanced_accuracy"] is None:
        return ""
    rows = [[text, percent(base[k]), percent(got[k])] for k, text in METRICS.items()]
    shown = table(("", "zero-shot", "trained"), rows)
    note = '<p class="muted">For the calibration error, lower is better.</p>'
    head = f"<h3>Over classes, {esc(where)}</h3>"
    return f'{head}<div class="narrow">{shown}</div>{note}'


def _scores(base: float | None, got: float | None) -> list[str]:
    return [percent(base), percent(got), gain(got, base)]


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else "-"
