"""Figures: one a run's data allows, deterministic, self-contained, ids unique."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

from fedclip_plugin.report import classes
from fedclip_plugin.report.classes import skew
from fedclip_plugin.report.figures import classes as class_plots
from fedclip_plugin.report.figures import clients as client_plots
from fedclip_plugin.report.figures import costs as cost_plots
from fedclip_plugin.report.figures import rounds as plots
from fedclip_plugin.report.figures import sweep as sweep_plots
from fedclip_plugin.report.figures.svg import Chart, clean, figure_style
from fedclip_plugin.report.records import RunRecord
from fedclip_plugin.report.tables import Table
from tests.report.synthetic_runs import evaluation_of, leaf_summary, round_metrics

WHICH = ("zero_shot", "result")
MAKERS = (
    plots.accuracy_curve,
    client_plots.domain_bars,
    plots.loss_curve,
    class_plots.zero_shot_confusion,
    class_plots.method_confusion,
    client_plots.client_sizes,
)


def record(summary: dict[str, Any] | None = None, classes: int = 4) -> RunRecord:
    summary = leaf_summary() if summary is None else summary
    names = [f"class {i}" for i in range(classes)]
    metrics = tuple(round_metrics(summary))
    return RunRecord(Path("run"), summary, metrics, evaluation_of(summary, names), "")


def draw(make: Any, run: RunRecord) -> Chart | None:
    with figure_style():
        return make(run)


def ids(svg: str) -> list[str]:
    return re.findall(r'\bid="([^"]+)"', svg)


@pytest.mark.parametrize("make", MAKERS)
def test_figure_is_inline_svg_of_its_own(make: Any) -> None:
    with figure_style():
        chart, other = make(record()), make(record())
    svg = chart.svg
    assert svg.startswith("<svg ")
    assert 'aria-label="' in svg
    assert not re.search(r"https?:|<script|<style|font-family|<metadata|<!--", svg)
    assert len(set(ids(svg))) == len(ids(svg))
    for name in re.findall(r'(?:url\(|href=")#([^")]+)', svg):
        assert name in ids(svg)
    assert draw(make, record()) == chart  # deterministic
    assert not set(ids(other.svg)) & set(ids(svg))


def test_colours_follow_the_theme() -> None:
    chart = draw(plots.accuracy_curve, record())
    assert chart is not None
    assert "var(--method)" in chart.svg
    assert "var(--clients)" in chart.svg
    assert not re.search(r"#0001[0-9a-f]{2}", chart.svg)


def test_no_text_is_left_in_the_black_of_no_colour() -> None:
    chart = draw(client_plots.domain_bars, record())
    assert chart is not None
    texts = re.findall(r"<text[^>]*>", chart.svg)
    assert texts
    assert all("fill:" in text and "var(--" in text for text in texts)


@pytest.mark.parametrize("make", [plots.accuracy_curve, plots.loss_curve])
def test_a_table_stands_behind_a_curve(make: Any) -> None:
    run = record()
    chart = draw(make, run)
    assert chart is not None
    assert chart.table is not None
    rounds = [row[0].text for row in chart.table.rows]
    best = str(run.summary["best_round"])
    assert rounds[0] == "1"
    assert rounds[-1] == str(run.metrics[-1]["round"])
    assert make is plots.loss_curve or best in rounds
    assert len(rounds) <= 13


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
    chart = draw(client_plots.domain_bars, run)
    assert chart is not None
    texts = re.findall(r">([^<>]+)</text>", chart.svg)
    for which in ("zero_shot", "result"):
        assert f"{100 * run.summary[which]['target']:.2f}" in texts
        for value in run.summary[which]["clients"].values():
            assert f"{100 * value:.2f}" in texts
    shown = [
        [name, *(f"{100 * run.summary[w]['clients'][name]:.2f}" for w in WHICH)]
        for name in run.summary["result"]["clients"]
    ]
    assert table_of(chart.table)[1:] == shown


def test_best_round_is_marked() -> None:
    chart = draw(plots.accuracy_curve, record())
    assert chart is not None
    assert "best round 10" in chart.svg


def test_no_data_no_figure() -> None:
    summary = leaf_summary(None, clients=())
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
    bars = draw(client_plots.domain_bars, record(summary))
    assert bars is not None
    assert "no test images" in bars.svg


def test_names_are_text_not_markup_or_mathematics() -> None:
    names = ("<b>$x$", "_hidden", "\x00&", "数字", "a" * 80)
    chart = draw(client_plots.domain_bars, record(leaf_summary(None, clients=names)))
    assert chart is not None
    assert "&lt;b&gt;$x$" in chart.svg
    assert "_hidden" in chart.svg
    assert "数字" in chart.svg
    assert "a" * 30 not in chart.svg


def many(clients: int, classes: int = 4) -> RunRecord:
    names = [f"c{i}" for i in range(clients)]
    return record(leaf_summary("x", clients=names), classes)


def test_accuracies_of_many_clients_become_a_histogram() -> None:
    chart = draw(client_plots.domain_bars, many(60))
    assert chart is not None
    assert "60 clients" in chart.title
    assert "c59" not in chart.svg
    tests = [list(many(60).summary[w]["clients"].values()) for w in WHICH]
    rows = table_of(chart.table)
    for row, pick in ((rows[0], min), (rows[-1], max)):
        assert row[1:] == [f"{100 * pick(values):.2f}" for values in tests]


def test_histogram_of_perfect_clients() -> None:
    run = record(leaf_summary(None, clients=[f"c{i}" for i in range(30)], gain=1.0))
    assert draw(client_plots.domain_bars, run) is not None


@pytest.mark.parametrize(("clients", "classes"), [(21, 2), (100, 7), (1000, 65)])
def test_partition_of_many_clients_is_one_image(clients: int, classes: int) -> None:
    chart = draw(client_plots.client_sizes, many(clients, classes))
    assert chart is not None
    assert "data:image/png;base64," in chart.svg
    assert f"{clients} clients, by their most frequent class" in chart.svg
    assert (chart.table is None) == (classes > 20)
    if chart.table is not None:
        counts = many(clients, classes).evaluation["clients"].values()
        first = [client["train_per_class"][0] for client in counts]
        held = sum(images > 0 for images in first)
        told = [f"{sum(first):,}", f"{held:,}", f"{max(first):,}"]
        assert table_of(chart.table)[0][1:] == told
    assert len(chart.svg) < 80_000


def test_partition_columns_are_sorted_by_their_most_frequent_class() -> None:
    counts = np.array([[1, 9, 0], [8, 0, 2], [10, 0, 0], [0, 0, 0], [0, 10, 0]])
    assert client_plots._by_class(counts).tolist() == [2, 1, 3, 4, 0]


def test_skew_in_words() -> None:
    counts = np.array([[30, 10, 0], [0, 20, 0], [0, 0, 0]])
    assert skew(counts) == (
        "0 to 40 images a client, median 20; on average 1.5 of 3 classes, "
        "88 % of a client's images in its most frequent one"
    )
    assert skew(counts[1:2]).startswith("20 images a client; ")
    assert skew(counts[2:]) == "0 images a client"


def test_cost_curve_ends_at_the_round_that_validation_chose() -> None:
    run = record(leaf_summary(rounds=4))
    for entry, val, target in zip(run.metrics, (0.5, 0.8, 0.8, 0.6), (1, 2, 3, 4)):
        entry |= {"mean_val": val, "target": target / 10, "bytes_up": 10}
        entry |= {"bytes_down": 5, "seconds": {"train": 0.5, "evaluate": 9.0}}
    curve = cost_plots.cost_curve("a", [run], "bytes")
    assert curve.cost.tolist() == [15, 30, 45, 60]
    assert curve.accuracy.tolist() == [0.1, 0.2, 0.2, 0.2]
    spent = cost_plots.cost_curve("a", [run], "seconds").cost
    assert spent.tolist() == [0.5, 1.0, 1.5, 2.0]


def test_cost_curve_passes_over_rounds_that_were_not_scored() -> None:
    run = record(leaf_summary(rounds=4))
    for entry, val in zip(run.metrics, (None, 0.5, None, 0.7)):
        entry |= {"mean_val": val, "target": val}
    curve = cost_plots.cost_curve("a", [run], "bytes")
    np.testing.assert_array_equal(curve.accuracy, [np.nan, 0.5, 0.5, 0.7])


def test_cost_curve_is_the_mean_of_the_runs_as_far_as_all_go() -> None:
    runs = [record(leaf_summary(rounds=n)) for n in (3, 5)]
    curve = cost_plots.cost_curve("a", runs, "bytes", "clients")
    single = [cost_plots.cost_curve("a", [r], "bytes", "clients") for r in runs]
    both = np.array([s.accuracy[:3] for s in single]).mean(axis=0)
    np.testing.assert_allclose(curve.accuracy, both)
    assert len(curve.cost) == 3


def compare(*curves: cost_plots.CostCurve, cost: str = "bytes") -> Chart | None:
    with figure_style():
        return cost_plots.compare_costs(curves, cost, "title", 0.5)


def line(label: str, *cost: float) -> cost_plots.CostCurve:
    return cost_plots.CostCurve(label, np.array(cost), np.linspace(0.6, 0.8, len(cost)))


def test_methods_are_numbered_and_zero_shot_is_the_guard() -> None:
    chart = compare(line("A", 1e3, 1e6), line("local", 0, 0), line("<B>", 2e5, 4e9))
    assert chart is not None
    texts = [key.text for key in chart.legend]
    assert texts == ["1 A", "2 local (free)", "3 <B>", "zero-shot"]
    shown = re.findall(r">([^<>]+)</text>", chart.svg)
    assert {"1", "2", "3"} <= set(shown)
    assert any(text.endswith(" KiB") for text in shown)
    assert any(text.endswith(" MiB") for text in shown)
    assert "nan" not in chart.svg.lower()
    assert table_of(chart.table) == [
        ["A", "976.6 KiB", "60.00", "80.00"],
        ["local", "nothing", "-", "80.00"],
        ["<B>", "3.7 GiB", "60.00", "80.00"],
        ["zero-shot", "nothing", "-", "50.00"],
    ]
    assert compare(line("local", 0, 0)) is None
    assert compare() is None


def test_time_has_a_scale_in_powers_of_ten() -> None:
    chart = compare(line("A", 0.5, 20), line("B", 3, 900), cost="seconds")
    assert chart is not None
    shown = re.findall(r">([^<>]+)</text>", chart.svg)
    assert {"1", "10", "100"} <= set(shown)


def test_costs_of_one_round_have_a_mark_and_a_scale() -> None:
    chart = compare(line("gda", 0.16), line("A", 0.2, 0.75), cost="seconds")
    assert chart is not None
    shown = re.findall(r">([^<>]+)</text>", chart.svg)
    ticks = [float(text) for text in shown if re.fullmatch(r"0\.\d+", text)]
    assert len(ticks) >= 2
    assert ticks == sorted(ticks)
    assert "<use " in chart.svg  # a marker


def test_confusion_counts_are_shown() -> None:
    run = record(classes=4)
    chart = draw(class_plots.method_confusion, run)
    matrix = classes.confusion_of(run, "result")
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
    assert "data:image/png;base64," in chart.svg
    assert not re.search(r">\d+</text>", chart.svg)
    sizes = draw(client_plots.client_sizes, run)
    assert sizes is not None
    assert len(sizes.svg) < 60_000


def table_of(found: Table | None) -> list[list[str]]:
    assert found is not None
    return [[cell.text for cell in row] for row in found.rows]


def test_most_frequent_mistakes() -> None:
    run = record(classes=3)
    run.evaluation["confusion"]["fedclip"] = [[9, 0, 1], [4, 5, 0], [0, 0, 9]]
    run.evaluation["confusion"]["zero_shot"] = [[7, 0, 3], [1, 8, 0], [0, 0, 9]]
    assert table_of(classes.frequent_mistakes(run)) == [
        ["class 1", "class 0", "4", "1"],
        ["class 0", "class 2", "1", "3"],
    ]


def test_classes_below_zero_shot() -> None:
    run = record(classes=3)
    run.evaluation["confusion"]["fedclip"] = [[9, 0, 1], [4, 4, 0], [1, 0, 8]]
    run.evaluation["confusion"]["zero_shot"] = [[7, 0, 3], [1, 7, 0], [0, 0, 9]]
    assert table_of(classes.worsened_classes(run)) == [
        ["class 1", "8", "87.50", "50.00", "-37.50"],
        ["class 2", "9", "100.00", "88.89", "-11.11"],
    ]
    assert classes.worsened_classes(record()) is None


def test_each_class_has_recall_before_and_after_and_precision() -> None:
    run = record(classes=3)
    run.evaluation["confusion"]["fedclip"] = [[9, 0, 1], [4, 0, 4], [0, 0, 0]]
    run.evaluation["confusion"]["zero_shot"] = [[7, 0, 3], [1, 7, 0], [0, 0, 0]]
    assert table_of(classes.each_class(run)) == [
        ["class 0", "10", "70.00", "90.00", "+20.00", "69.23"],
        ["class 1", "8", "87.50", "0.00", "-87.50", "-"],
        ["class 2", "0", "-", "-", "-", "0.00"],
    ]
    del run.evaluation["confusion"]["zero_shot"]
    assert classes.each_class(run) is None
    many = record(classes=classes.MAX_CLASSES + 1)
    assert classes.each_class(many) is None


def test_a_run_without_zero_shot_matrices_tells_nothing_of_classes() -> None:
    run = record()
    del run.evaluation["confusion"]["zero_shot"]
    assert classes.worsened_classes(run) is classes.frequent_mistakes(run) is None


def test_clean() -> None:
    assert clean("abc", 3) == "abc"
    assert clean("abcd", 3) == "ab…"
    assert clean("a\nb\x00\ud800") == "a?b??"


def trial(options: dict[str, Any], *scores: tuple[float | None, float]) -> dict:
    runs = [
        {"target": "photo", "validation": validation, "result": result}
        for validation, result in scores
    ]
    return {"trial": str(options), "options": options, "runs": runs}


def swept(*trials: dict[str, Any]) -> dict[str, Any]:
    return {"trials": list(trials), "selected": {"photo": None}}


def test_each_searched_option_of_a_sweep_has_a_chart_and_its_numbers() -> None:
    result = swept(
        trial({"alg": "fedclip", "lr": 1e-2}, (0.5, 0.4), (0.7, 0.6)),
        trial({"alg": "fedclip", "lr": 1e-5}, (0.8, 0.6), (0.8, 0.6)),
        trial({"alg": "gda", "lr": 1e-2}, (0.9, 0.7), (0.9, 0.5)),
        trial({"alg": "gda", "lr": 1e-5}, (0.9, 0.7)),  # has lost a seed
    )
    with figure_style():
        alg, rate = sweep_plots.option_charts(result)
    assert (alg.title, rate.title) == ("alg, accuracy in %", "lr, accuracy in %")
    assert [[str(cell) for cell in row] for row in alg.table.rows] == [
        ["fedclip", "2", "70.00", "80.00", "55.00"],
        ["gda", "1", "90.00", "90.00", "60.00"],
    ]
    assert [str(row[0]) for row in rate.table.rows] == ["1e-05", "0.01"]  # by size
    assert [str(row[1]) for row in rate.table.rows] == ["1", "2"]
    assert "highest at gda" in alg.svg
    assert "held-out accuracy" in [key.text for key in rate.legend]


def test_options_with_nothing_to_compare_have_no_chart() -> None:
    one = trial({"lr": 1e-3}, (0.5, 0.4))
    lost = trial({"lr": 1e-2}, (None, 0.4))
    prompts = [trial({"prompt": [p, "b {}"]}, (0.5, 0.4)) for p in ("a {}", "{}")]
    with figure_style():
        assert sweep_plots.option_charts(swept()) == []
        assert sweep_plots.option_charts(swept(one, lost)) == []
        (chart,) = sweep_plots.option_charts(swept(*prompts))
    assert [str(row[0]) for row in chart.table.rows] == ["a {} b {}", "{} b {}"]


def test_values_that_lie_close_are_not_written_over_each_other() -> None:
    rates = (1e-5, 2.86935e-4, 2.9e-4, 3.1e-4, 1e-2)
    result = swept(*(trial({"lr": lr}, (0.5, 0.4)) for lr in rates))
    with figure_style():
        (chart,) = sweep_plots.option_charts(result)
    assert "0.000286935" not in chart.svg
    assert "mathdefault" not in chart.svg
    assert len(chart.table.rows) == 5


def test_the_numbers_behind_the_partition_are_there() -> None:
    chart = draw(client_plots.client_sizes, record())
    counts = [[int(str(cell)) for cell in row[1:]] for row in chart.table.rows]
    clients = record().evaluation["clients"]
    assert counts == [client["train_per_class"] for client in clients.values()]
