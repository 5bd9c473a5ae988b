"""Figures: one a run's data allows, deterministic, self-contained, ids unique."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from fedclip_plugin import class_plots, plots
from fedclip_plugin.records import RunRecord
from fedclip_plugin.svg import Chart, clean, figure_style

from .synthetic_runs import evaluation_of, leaf_summary, round_metrics

MAKERS = (
    plots.accuracy_curve,
    plots.domain_bars,
    plots.loss_curve,
    plots.bytes_curve,
    plots.stage_bars,
    class_plots.zero_shot_confusion,
    class_plots.method_confusion,
    class_plots.client_sizes,
)


def record(summary: dict[str, Any] | None = None, classes: int = 4) -> RunRecord:
    summary = leaf_summary() if summary is None else summary
    names = [f"class {i}" for i in range(classes)]
    metrics = tuple(round_metrics(summary))
    return RunRecord(Path("run"), summary, metrics, evaluation_of(summary, names), "")


def draw(make: Any, run: RunRecord, key: str = "k") -> Chart | None:
    with figure_style():
        return make(run, key)


def ids(svg: str) -> list[str]:
    return re.findall(r'\bid="([^"]+)"', svg)


@pytest.mark.parametrize("make", MAKERS)
def test_figure_is_inline_svg_of_its_own(make: Any) -> None:
    chart = draw(make, record(), "one")
    assert chart is not None
    svg = chart.svg
    assert svg.startswith("<svg ")
    assert 'aria-label="' in svg
    assert not re.search(r"https?:|<script|<style|font-family|<metadata", svg)
    assert len(set(ids(svg))) == len(ids(svg))
    assert all(name.startswith("one-") for name in ids(svg))
    for name in re.findall(r'(?:url\(|href=")#([^")]+)', svg):
        assert name in ids(svg)
    assert draw(make, record(), "one") == chart  # deterministic
    other = draw(make, record(), "two")
    assert other is not None
    assert not set(ids(other.svg)) & set(ids(svg))


def test_colours_follow_the_theme() -> None:
    chart = draw(plots.accuracy_curve, record())
    assert chart is not None
    assert "var(--method)" in chart.svg
    assert "var(--clients)" in chart.svg
    assert not re.search(r"#0000[0-9a-f]{2}", chart.svg)


def test_nothing_global_changes() -> None:
    matplotlib.use("agg")
    before = dict(matplotlib.rcParams)
    draw(plots.loss_curve, record())
    assert dict(matplotlib.rcParams) == before
    assert "matplotlib.pyplot" not in sys.modules


def test_users_matplotlibrc_has_no_say() -> None:
    expected = draw(plots.loss_curve, record())
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path"}):
        assert draw(plots.loss_curve, record()) == expected


def test_bars_tell_the_summary_numbers() -> None:
    run = record()
    chart = draw(plots.domain_bars, run)
    assert chart is not None
    texts = re.findall(r">([^<>]+)</text>", chart.svg)
    for which in ("zero_shot", "result"):
        assert f"{100 * run.summary[which]['target']:.2f}" in texts
        for value in run.summary[which]["clients"].values():
            assert f"{100 * value:.2f}" in texts


def test_best_round_is_marked() -> None:
    chart = draw(plots.accuracy_curve, record())
    assert chart is not None
    assert "best round 10" in chart.svg


def test_no_data_no_figure() -> None:
    summary = leaf_summary(None, clients=())
    summary["seconds"] = {}
    bare = RunRecord(Path("run"), summary, (), {}, "")
    assert [draw(make, bare) for make in MAKERS] == [None] * len(MAKERS)


@pytest.mark.parametrize("rounds", [1, 2, 300])
def test_nulls_and_any_number_of_rounds(rounds: int) -> None:
    summary = leaf_summary(None, clients=("a", "b"), rounds=rounds)
    summary["result"]["clients"]["b"] = summary["zero_shot"]["clients"]["b"] = None
    for make in MAKERS:
        chart = draw(make, record(summary))
        assert chart is not None
        assert "nan" not in chart.svg.lower()
    bars = draw(plots.domain_bars, record(summary))
    assert bars is not None
    assert "no test images" in bars.svg


def test_names_are_text_not_markup_or_mathematics() -> None:
    names = ("<b>$x$", "_hidden", "\x00&", "数字", "a" * 80)
    chart = draw(plots.domain_bars, record(leaf_summary(None, clients=names)))
    assert chart is not None
    assert "&lt;b&gt;$x$" in chart.svg
    assert "_hidden" in chart.svg
    assert "数字" in chart.svg
    assert "a" * 30 not in chart.svg


def test_many_clients_become_histograms() -> None:
    run = record(leaf_summary("x", clients=[f"c{i}" for i in range(60)]))
    for make in (plots.domain_bars, class_plots.client_sizes):
        chart = draw(make, run)
        assert chart is not None
        assert "60 clients" in chart.title
        assert "c59" not in chart.svg


def test_histogram_of_perfect_clients() -> None:
    run = record(leaf_summary(None, clients=[f"c{i}" for i in range(30)], gain=1.0))
    assert draw(plots.domain_bars, run) is not None


def test_confusion_counts_are_shown() -> None:
    run = record(classes=4)
    chart = draw(class_plots.method_confusion, run)
    matrix = class_plots.confusion_of(run, "result")
    assert chart is not None
    assert matrix is not None
    texts = re.findall(r">([^<>]+)</text>", chart.svg)
    for count in matrix[matrix > 0]:
        assert str(count) in texts
    assert f"{np.trace(matrix)} of {matrix.sum()} images" in chart.note


@pytest.mark.parametrize("classes", [25, 65, 345])
def test_large_confusion_stays_small_and_without_numbers(classes: int) -> None:
    run = record(classes=classes)
    chart = draw(class_plots.method_confusion, run)
    assert chart is not None
    assert len(chart.svg) < 120_000
    assert ("data:image/png;base64," in chart.svg) == (classes > 30)
    assert not re.search(r">\d+</text>", chart.svg)
    sizes = draw(class_plots.client_sizes, run)
    assert sizes is not None
    assert len(sizes.svg) < 60_000


def test_most_confused_pairs() -> None:
    run = record(classes=3)
    run.evaluation["confusion"]["fedclip"] = [[9, 0, 1], [4, 5, 0], [0, 0, 9]]
    run.evaluation["confusion"]["zero_shot"] = [[7, 0, 3], [1, 8, 0], [0, 0, 9]]
    assert class_plots.most_confused(run) == [
        ("class 1", "class 0", 4, 1),
        ("class 0", "class 2", 1, 3),
    ]


def test_clean() -> None:
    assert clean("abc", 3) == "abc"
    assert clean("abcd", 3) == "ab…"
    assert clean("a\nb\x00\ud800") == "a?b??"
