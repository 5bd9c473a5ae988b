"""The public face: the page is written whole, TensorBoard gets every round."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedclip_plugin.cli import main
from fedclip_plugin.errors import RunError
from fedclip_plugin.report import averages
from fedclip_plugin.report import write as report
from fedclip_plugin.report.trackers import tensorboard
from tests.report.synthetic_runs import (
    leaf_summary,
    round_metrics,
    write_leaf,
    write_tree,
)


def test_write_html_for_a_leaf_and_a_tree(tmp_path: Path) -> None:
    write_leaf(tmp_path / "leaf")
    write_tree(tmp_path / "tree", seeds=(0,), domains=("scan", "photo"))
    for name in ("leaf", "tree"):
        path = report.write_html(tmp_path / name)
        assert path == tmp_path / name / "report.html"
        assert path.read_text(encoding="utf-8").endswith("</html>\n")
        assert not list(path.parent.glob("*.partial"))


def test_write_html_again_gives_the_same_bytes(tmp_path: Path) -> None:
    write_leaf(tmp_path)
    first = report.write_html(tmp_path).read_bytes()
    assert report.write_html(tmp_path).read_bytes() == first


def test_write_html_where_it_cannot(tmp_path: Path) -> None:
    write_leaf(tmp_path)
    (tmp_path / "report.html").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*report\.html"):
        report.write_html(tmp_path)


@pytest.mark.parametrize(
    ("style", "expected"),
    [("html", "</html>"), ("markdown", "| FedAVG |"), ("csv", ",fedavg,")],
)
def test_the_command_merges_runs_into_a_file(
    style: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [tmp_path / name for name in ("fedclip", "fedavg")]
    for run in runs:
        write_leaf(run, leaf_summary("photo", algorithm=run.name))
    to = tmp_path / "merged" / "file"
    argv = ["report", *map(str, runs), "--format", style, "--to", str(to)]
    assert main(argv) == 0
    assert expected in to.read_text(encoding="utf-8")
    assert not list(tmp_path.glob("*/report.html"))
    assert capsys.readouterr().out == ""


def test_a_table_goes_to_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_leaf(tmp_path)
    assert main(["report", str(tmp_path), "--to", str(tmp_path / "x")]) == 2
    assert "--to FILE needs --format" in capsys.readouterr().err


def test_top_summary_is_strict_json() -> None:
    total = averages.aggregate([leaf_summary(None, clients=("a",))])
    assert json.loads(json.dumps(total, allow_nan=False)) == total


def test_tensorboard_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    entries = round_metrics(leaf_summary(None, clients=("a", "b"), rounds=3))
    with tensorboard.TensorBoardLog(tmp_path) as log:
        for entry in entries:
            log.log(entry)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"loss", "accuracy/mean_val", "test/a", "val/b", "bytes/up"} <= set(tags)
    assert "accuracy/target" not in tags  # null in every round
    losses = events.Scalars("loss")
    assert [e.step for e in losses] == [1, 2, 3]
    assert losses[2].value == pytest.approx(entries[2]["loss"], rel=1e-6)


def test_tensorboard_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorboard.TensorBoardLog, "package", "not_there_at_all")
    with pytest.raises(RunError, match=r"pip install fedclip-plugin\[tensorboard\]"):
        tensorboard.TensorBoardLog(tmp_path)
