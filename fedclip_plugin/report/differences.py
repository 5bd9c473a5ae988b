"""Methods against the best one of them, run by run: what is more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..stats import ci95, mean
from .averages import aggregate, scores
from .records import Summary, target_name
from .tables import Cell, Table, kind_of, overall
from .wording import VISIBLE, half_width, method_label, points

Run = tuple[str, Any]  # held-out domain, seed

_PAIRED = "Paired by held-out domain and seed"
_NOTE = (
    f"{_PAIRED}; ± is the half-width of the 95 % interval over seeds, each averaged "
    "over its domains. Beyond chance: that interval leaves 0 out, without correction "
    "for the number of methods."
)
_NO_INTERVAL = f"{_PAIRED}; several seeds (--seed 0 1 2) tell what is beyond chance."


def differences(groups: Sequence[Sequence[Summary]]) -> Table | None:
    """How far each method is below the best one, over the runs that both have.

    ``groups`` are the summaries of each method, on the same data and model.  Accuracy
    is that of the held-out domains, of the clients where there is none.  None where
    fewer than two methods share a run.
    """
    if len(groups) < 2:
        return None
    rows = [overall(aggregate(group)) for group in groups]
    kind = kind_of(rows)
    best = max(range(len(rows)), key=lambda i: rows[i]["result"][kind] or 0.0)
    first = _by_run(groups[best], kind)
    body = []
    for i, group in enumerate(groups):
        other = _by_run(group, kind)
        pairs = {run: other[run] - first[run] for run in first if run in other}
        if i != best and pairs:
            body.append([Cell(method_label(group[0])), *_against(pairs)])
    what = "held-out accuracy" if kind == "target" else "the clients' accuracy"
    head = ("method", "difference", "lower in", "beyond chance")
    title = f"Against {method_label(groups[best][0])}, {what} in points"
    note = _NOTE if any(row[1].sub for row in body) else _NO_INTERVAL
    return Table(head, body, title, note) if body else None


def _by_run(group: Sequence[Summary], kind: str) -> dict[Run, float]:
    """The accuracy of each run; of several with one domain and seed their mean."""
    values: dict[Run, list[float]] = {}
    for summary in group:
        score = scores(summary, "result")[kind]
        if score is not None:
            run = target_name(summary), summary.get("seed")
            values.setdefault(run, []).append(score)
    return {run: sum(each) / len(each) for run, each in values.items()}


def _against(pairs: Mapping[Run, float]) -> list[Cell]:
    """Mean difference, in how many runs it is below 0, whether seeds agree."""
    of_seed: dict[Any, list[float]] = {}
    for (_, seed), difference in pairs.items():
        of_seed.setdefault(seed, []).append(difference)
    most = max(map(len, of_seed.values()))  # seeds with fewer domains do not compare
    seeds = [mean(each) for each in of_seed.values() if len(each) == most]
    middle, half = mean(pairs.values()), ci95(seeds)
    lower = sum(difference < -VISIBLE for difference in pairs.values())
    beyond = "-" if half is None or middle is None else _yes(abs(middle) > half)
    return [
        Cell(points(middle), half_width(half)),
        Cell(f"{lower} of {len(pairs)} run{'s' * (len(pairs) > 1)}"),
        Cell(beyond),
    ]


def _yes(true: bool) -> str:
    return "yes" if true else "no"
