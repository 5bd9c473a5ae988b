"""The console table and the merged texts tell the summaries' numbers."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from rich.console import Console

from fedclip_plugin.errors import RunError
from fedclip_plugin.report.averages import aggregate
from fedclip_plugin.report.console import print_table
from fedclip_plugin.report.records import load_runs
from fedclip_plugin.report.text import merge
from tests.report.synthetic_runs import DOMAINS, dump, leaf_summary, write_leaf

GAINS = ((0.1, "fedclip"), (0.05, "fedavg"))
SUMMARIES = [leaf_summary(t, s) for t in DOMAINS for s in (0, 1, 2)]


def printed(summaries: list, width: int = 80, terminal: bool = False) -> str:
    out = io.StringIO()
    print_table(Console(file=out, width=width, force_terminal=terminal), summaries)
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 120])
def test_fits_the_width_and_stays_ascii_in_a_pipe(width: int) -> None:
    text = printed(SUMMARIES, width)
    assert text.isascii()
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "95 % interval over seeds" in text


def test_every_number_stands_in_one_row() -> None:
    rows = {
        line.split()[0]: line.split()
        for line in printed(SUMMARIES).splitlines()
        if line.split()
    }
    total = aggregate(SUMMARIES)["mean"]
    assert rows["mean"][1] == f"{100 * total['zero_shot']['target']:.2f}"
    assert rows["mean"][2].startswith(f"{100 * total['result']['target']:.2f}+-")
    assert rows["mean"][4].startswith(f"{100 * total['result']['clients']:.2f}+-")
    assert rows["mean"][5].startswith(f"{100 * total['result']['mean']:.2f}+-")


def test_bytes_per_run_and_round_and_seconds() -> None:
    text = printed([leaf_summary("photo", rounds=10)])
    assert "sent a run:   60.1 MiB up, 60.1 MiB down" in text
    assert "sent a round: 6.0 MiB up, 6.0 MiB down (525,312 parameters" in text
    assert "features 4.25 s, train 1.50 s, evaluate 0.50 s" in text
    assert "+-" not in text  # one seed has no interval


def test_terminal_gets_colour_and_boxes() -> None:
    text = printed(SUMMARIES, terminal=True)
    assert "\x1b[32m" in text
    assert "─" in text


def test_warns_below_zero_shot() -> None:
    text = printed([leaf_summary("photo", gain=-0.1)], 200)
    assert "warning: FedCLIP is below zero-shot: held-out photo (49.80 < 59.80)" in text
    assert "warning" not in printed(SUMMARIES)


def test_nulls_and_markup_in_names() -> None:
    summary = leaf_summary(None, clients=("[red]a[/red]", "b"), quarantined=2)
    summary["result"]["clients"]["b"] = summary["zero_shot"]["clients"]["b"] = None
    text = printed([summary])
    assert "[red]a[/red]" in text
    assert "2 updates were left out" in text
    assert "nan" not in text.lower()


def test_many_clients_become_a_spread() -> None:
    summary = leaf_summary(None, clients=[f"c{i}" for i in range(50)])
    text = printed([summary])
    assert "median" in text
    assert "c49" not in text
    highest = max(summary["result"]["clients"].values())
    assert f"{100 * highest:.2f}" in text


def test_algorithms_get_a_table_each() -> None:
    text = printed([leaf_summary("photo"), leaf_summary("photo", algorithm="fedavg")])
    assert "FedCLIP on digits" in text
    assert "FedAVG on digits" in text


def test_methods_on_the_same_data_are_compared() -> None:
    methods = [leaf_summary("photo", gain=g, algorithm=a) for g, a in GAINS]
    text = printed(methods, 120)
    compared = text[text.index("Methods on digits, fedclip-tiny") :]
    assert compared.index("FedCLIP") < compared.index("FedAVG")
    assert "Against FedCLIP, held-out accuracy in points" in compared
    other = {**methods[1], "dataset": "pacs"}
    assert "Methods on" not in printed([methods[0], other])


def test_wide_intervals_lose_no_digit() -> None:
    """They go below their values where a row is too narrow."""
    wide = [leaf_summary(t, s, gain=0.1 * s - 0.3) for t in DOMAINS for s in (0, 1)]
    half = f"+-{100 * aggregate(wide)['ci95']['target']:.2f}"
    assert len(half) > len("+-9.99")
    assert any(line.split()[:1] == [half] for line in printed(wide, 60).splitlines())
    assert any("mean" in x and half in x for x in printed(wide, 140).splitlines())


def test_merge_to_markdown(tmp_path: Path) -> None:
    write_leaf(tmp_path / "a", leaf_summary("photo"))
    write_leaf(tmp_path / "b", leaf_summary("photo", algorithm="fed|x"))
    lines = merge(load_runs(tmp_path)).splitlines()
    assert len(lines) == 4
    assert lines[2].startswith(
        "| FedCLIP | digits | fedclip-tiny | photo | 1 | 59.80 |"
    )
    assert r"fed\|x" in lines[3]
    assert "| +10.00 |" in lines[2]


def test_merge_tells_class_metrics_costs_and_what_fell_below(tmp_path: Path) -> None:
    worse = leaf_summary("photo", algorithm="fedavg", gain=-0.1)
    write_leaf(tmp_path / "a", leaf_summary("photo"))
    write_leaf(tmp_path / "b", worse)
    text = merge(load_runs(tmp_path))
    better, short = text.splitlines()[2:]
    costs = "| 144.3 MiB | 1.50 s |"
    assert better.endswith(f"| 71.10 | 68.80 | 29.70 {costs} - |")
    assert short.endswith(f"{costs} held-out and clients |")
    found = list(csv.DictReader(io.StringIO(merge(load_runs(tmp_path), "csv"))))
    below = {row["algorithm"]: row["below_zero_shot"] for row in found}
    assert below == {"fedclip": "0", "fedavg": "1"}
    target = found[0]
    assert float(target["macro_f1"]) == pytest.approx(0.688)
    assert int(target["bytes_up"]) == worse["communication"]["bytes_up"]
    assert float(target["train_seconds"]) == 1.5
    assert found[1]["macro_f1"] == ""  # a client's row: the metrics are the target's


def test_class_metrics_on_the_console() -> None:
    text = printed([leaf_summary("photo")], 120)
    assert "over classes: balanced accuracy 61.10 -> 71.10, macro F1 58.80" in text
    assert "over classes" not in printed([leaf_summary("photo", metrics={})])


def test_merge_to_csv_is_a_row_a_domain_in_full_precision(tmp_path: Path) -> None:
    summary = leaf_summary("photo")
    summary["result"]["clients"]["scan"] = None
    dump(tmp_path / "summary.json", summary)
    rows = list(csv.DictReader(io.StringIO(merge(load_runs(tmp_path), "csv"))))
    assert [(r["role"], r["domain"]) for r in rows] == [
        ("target", "photo"),
        ("client", "scan"),
        ("client", "negative"),
        ("client", "sketch"),
    ]
    assert float(rows[0]["result"]) == summary["result"]["target"]
    assert rows[1]["result"] == ""


def test_merge_to_latex_escapes_and_keeps_the_columns(tmp_path: Path) -> None:
    write_leaf(tmp_path / "a", leaf_summary("art_painting", seed=0))
    write_leaf(tmp_path / "b", leaf_summary("art_painting", seed=1))
    lines = merge(load_runs(tmp_path), "latex").splitlines()
    assert lines[0].startswith("%")
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 2  # the head, and both seeds in one
    columns = lines[1].removeprefix(r"\begin{tabular}{").removesuffix("}")
    assert {row.count(" & ") + 1 for row in rows} == {len(columns)}
    assert r"art\_painting" in rows[1]
    assert r"$\pm$" in rows[1]
    assert lines[-1] == r"\end{tabular}"


def test_runs_with_other_settings_are_not_averaged(tmp_path: Path) -> None:
    write_leaf(tmp_path / "a", leaf_summary("photo", variant=""))
    write_leaf(tmp_path / "b", leaf_summary("photo", variant="lr 0.1", gain=0.2))
    text = merge(load_runs(tmp_path))
    assert "| FedCLIP |" in text
    assert "| FedCLIP (lr 0.1) |" in text


def test_merge_to_something_else() -> None:
    with pytest.raises(RunError, match="expected markdown, latex or csv"):
        merge([], "yaml")
