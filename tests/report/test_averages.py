"""Means and intervals over seeds and targets, against numbers worked by hand."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

import pytest

from fedclip_plugin.errors import RunError
from fedclip_plugin.report.averages import aggregate, cost_of, groups
from fedclip_plugin.report.wording import (
    below_zero_shot,
    fell_short,
    human_bytes,
    human_seconds,
    percent,
)
from fedclip_plugin.stats import ci95
from tests.report.synthetic_runs import DOMAINS, leaf_summary


def test_ci95_by_hand() -> None:
    half = 4.302653 / math.sqrt(3)  # mean 2, sample deviation 1, n = 3
    assert ci95([1.0, 2.0, None, 3.0]) == pytest.approx(half, rel=1e-6)
    assert ci95([1.0, None]) is None
    assert ci95([0.5, 0.5]) == 0.0


def test_one_run_is_its_own_mean() -> None:
    summary = leaf_summary("photo")
    total = aggregate([summary])
    assert total["runs"] == [summary]
    for which in ("zero_shot", "result"):
        clients = fmean(summary[which]["clients"].values())
        expected = {**summary[which], "clients": clients}
        assert total["mean"][which] == pytest.approx(expected)
    assert total["ci95"] == {"target": None, "clients": None, "mean": None}
    assert total["seconds"] == summary["seconds"]


def test_mean_goes_per_target_over_seeds_then_over_targets() -> None:
    """Three seeds of one target weigh no more than one of the other."""
    runs = [leaf_summary("scan", s) for s in range(3)] + [leaf_summary("photo", 0)]
    total = aggregate(runs)
    scan = fmean(r["result"]["target"] for r in runs[:3])
    expected = (scan + runs[3]["result"]["target"]) / 2
    assert total["mean"]["result"]["target"] == pytest.approx(expected)
    assert total["by_target"]["scan"]["seeds"] == [0, 1, 2]
    # only seed 0 covers both targets
    assert total["ci95"]["target"] is None
    assert total["by_target"]["scan"]["ci95"]["target"] == pytest.approx(
        4.3027 * 0.01 / math.sqrt(3), rel=1e-4
    )


def test_class_metrics_are_averaged_like_the_accuracies() -> None:
    runs = [leaf_summary("scan", s) for s in range(3)] + [
        leaf_summary("photo", gain=0.3)
    ]
    total = aggregate(runs)
    got, base = total["metrics"]["result"], total["metrics"]["zero_shot"]
    assert got["balanced_accuracy"] == pytest.approx((0.711 + 0.911) / 2)
    assert got["calibration_error"] == pytest.approx((0.297 + 0.097) / 2)
    assert base["macro_f1"] == pytest.approx(0.588)
    scan = total["by_target"]["scan"]["metrics"]["result"]
    assert scan["macro_f1"] == pytest.approx(0.688)


def test_runs_of_an_older_version_have_no_class_metrics() -> None:
    total = aggregate([leaf_summary("photo", metrics={})])
    assert set(total["metrics"]["result"].values()) == {None}


def test_cost_is_that_of_a_run() -> None:
    runs = [leaf_summary("photo", rounds=n) for n in (10, 30)]
    sent, spent = cost_of(runs)
    assert sent == 2 * 20 * 3 * 525_312 * 4  # both ways, 20 rounds, 3 clients
    assert spent == 1.5


def test_fell_short_of_zero_shot_by_more_than_rounding() -> None:
    rows = {
        gain: aggregate([leaf_summary("photo", gain=gain)])["by_target"]["photo"]
        for gain in (-0.01, -0.00001, 0.1)
    }
    assert fell_short(rows[-0.01]) == ["target", "clients"]
    assert fell_short(rows[-0.00001]) == fell_short(rows[0.1]) == []


def test_ci95_is_over_seeds_each_averaged_over_targets() -> None:
    runs = [leaf_summary(t, s) for t in DOMAINS for s in (0, 1)]
    total = aggregate(runs)
    # the seeds differ by 0.01 everywhere: deviation 0.01 / sqrt(2), n = 2
    half = 12.7062 * 0.01 / math.sqrt(2) / math.sqrt(2)
    assert total["ci95"] == pytest.approx(
        {"target": half, "clients": half, "mean": half}, rel=1e-5
    )
    assert total["seconds"]["features"] == pytest.approx(8 * 4.25)


def test_nulls_take_no_part() -> None:
    summary = leaf_summary(None, clients=("a", "b"))
    summary["zero_shot"]["clients"]["b"] = summary["result"]["clients"]["b"] = None
    total = aggregate([summary])
    row = total["by_target"]["none"]
    assert row["result"]["target"] is None
    assert row["result"]["clients"] == summary["result"]["clients"]["a"]
    assert row["clients"]["b"] == {"zero_shot": None, "result": None}
    assert total["mean"]["result"]["target"] is None


def test_overall_mean_is_made_where_the_writer_left_none() -> None:
    summary = leaf_summary("photo")
    expected = summary["zero_shot"].pop("mean")
    mean = aggregate([summary])["mean"]["zero_shot"]["mean"]
    assert mean == pytest.approx(expected)


def test_nothing_to_average() -> None:
    with pytest.raises(RunError, match="no finished run"):
        aggregate([])


def test_groups_hold_apart_what_must_not_be_averaged() -> None:
    one, other = leaf_summary("scan"), leaf_summary("scan", algorithm="fedavg")
    again = leaf_summary("photo")
    named = [[{**one, "variant": ""}, {**again, "variant": ""}]]
    named += [[{**other, "variant": ""}]]
    found = [list(group.values()) for group in groups([one, other, again, one])]
    assert found == named


def recorded(seed: int = 0, **settings: str) -> dict[str, Any]:
    settings = {"rounds": "12", "features": "a" * 64, **settings}
    return leaf_summary("scan", seed, settings=settings)


def test_runs_with_other_settings_are_rows_that_name_them() -> None:
    runs = [recorded(), recorded(1), recorded(), recorded(rounds="30")]
    found = groups(runs)
    assert [list(group) for group in found] == [[0, 1], [3]]
    assert [group[min(group)]["variant"] for group in found] == [
        "rounds 12", "rounds 30",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("sources", "told"),
    [
        ([{"prompt": "a {}"}, {"prompt": "{}"}], ["prompt a {}", "prompt {}"]),
        ([{"root": "/a"}, {"root": "/a"}], ["features aaaaaaaa", "features bbbbbbbb"]),
        (
            [{"pretrained": f"/{n}/epoch_1.pt"} for n in "ab"],
            ["pretrained /a/epoch_1.pt", "pretrained /b/epoch_1.pt"],
        ),
    ],
)
def test_runs_on_other_features_name_what_they_are_of(
    sources: list[dict[str, str]], told: list[str]
) -> None:
    runs = [recorded(features=key * 64) for key in "ab"]
    runs = [{**run, "sources": one} for run, one in zip(runs, sources)]
    assert [group[i]["variant"] for i, group in enumerate(groups(runs))] == told


def test_runs_with_noise_of_their_own_are_no_repeats() -> None:
    private = {"dp-noise-multiplier": "1.0", "dp-seed": "secret"}
    (group,) = groups([recorded(**private), recorded(**private)])
    assert len(group) == 2


def test_runs_of_former_versions_are_repeats_by_their_results() -> None:
    one, other = leaf_summary("scan"), leaf_summary("scan", gain=0.2)
    assert [list(group) for group in groups([one, one, other])] == [[0, 2]]
    named = groups([one, recorded()])
    assert named[0][0]["variant"] == "settings not recorded"


def test_below_zero_shot_names_the_domain() -> None:
    worse, better = leaf_summary("scan", gain=-0.1), leaf_summary("photo")
    clauses = below_zero_shot(aggregate([worse, better])["by_target"])
    assert len(clauses) == 2
    assert clauses[0].startswith("held-out scan (")
    assert below_zero_shot(aggregate([better])["by_target"]) == []


def test_words() -> None:
    assert percent(0.95239) == "95.24"
    assert percent(None) == "-"
    assert human_bytes(512) == "512 B"
    assert human_bytes(525_312 * 4) == "2.0 MiB"
    assert human_bytes(3 * 1024**5) == "3072.0 TiB"
    assert human_seconds(0.4) == "0.40 s"
    assert human_seconds(59.99) == "60.0 s"
    assert human_seconds(185) == "3 min 05 s"
    assert human_seconds(7625) == "2 h 07 min"
