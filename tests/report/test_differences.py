"""Methods against the best one, paired by held-out domain and seed."""

from __future__ import annotations

from typing import Any

import pytest

from fedclip_plugin.report.differences import differences
from fedclip_plugin.stats import ci95
from tests.report.synthetic_runs import leaf_summary

Summaries = list[dict[str, Any]]


def runs(name: str, gains: dict[tuple[str | None, int], float]) -> Summaries:
    """``gains`` by held-out domain and seed, less what a seed adds to them."""
    return [
        leaf_summary(t, s, gain=gain - 0.01 * s, algorithm=name, clients=["scan"])
        for (t, s), gain in gains.items()
    ]


def rows(*groups: Summaries) -> list[list[str]]:
    table = differences(groups)
    assert table is not None
    return [[str(cell) for cell in row] for row in table.rows]


def test_by_hand() -> None:
    """Seeds differ by 1 and 3 points, their mean is -2; one of four runs is higher."""
    places = [(t, s) for t in ("photo", "sketch") for s in (0, 1)]
    best = runs("fedclip", dict.fromkeys(places, 0.2))
    other = runs("fedavg", dict(zip(places, (0.21, 0.15, 0.17, 0.19))))
    half = ci95([-0.01, -0.03])
    assert half is not None
    assert rows(other, best) == [
        ["FedAVG", f"-2.00 ± {100 * half:.2f}", "3 of 4 runs", "no"]
    ]


def test_what_is_the_same_for_every_seed_is_beyond_chance() -> None:
    places = [("photo", s) for s in (0, 1, 2)]
    best = runs("fedclip", dict.fromkeys(places, 0.2))
    gains = dict(zip(places, (0.14, 0.15, 0.16)))
    ((_, _, lower, beyond),) = rows(best, runs("fedavg", gains))
    assert (lower, beyond) == ("3 of 3 runs", "yes")


def test_only_runs_that_both_have_are_compared() -> None:
    best = runs("fedclip", {("photo", 0): 0.2, ("sketch", 0): 0.3})
    table = differences([best, runs("fedavg", {("photo", 0): 0.1})])
    assert table is not None
    (row,) = table.rows
    assert [str(cell) for cell in row][1:] == ["-10.00", "1 of 1 run", "-"]
    assert "several seeds" in table.note
    assert differences([best, runs("fedavg", {("scan", 0): 0.1})]) is None
    assert differences([best]) is None


@pytest.mark.parametrize(
    ("target", "what"), [("photo", "held-out"), (None, "clients'")]
)
def test_without_a_held_out_domain_the_clients_count(
    target: str | None, what: str
) -> None:
    groups = [runs(n, {(target, 0): g}) for n, g in (("gda", 0.2), ("fedavg", 0.1))]
    table = differences(groups)
    assert table is not None
    assert f"{what} accuracy in points" in table.title
