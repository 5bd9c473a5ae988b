"""Reading run directories: what is found, and what is said when it is not whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fedclip_plugin.errors import RunError
from fedclip_plugin.report.records import load_run, load_runs
from tests.report.synthetic_runs import dump, leaf_summary, write_leaf, write_tree


def test_leaf_is_read_whole(tmp_path: Path) -> None:
    summary = write_leaf(tmp_path)
    run = load_run(tmp_path)
    assert run.summary == summary
    assert [entry["round"] for entry in run.metrics] == list(range(1, 13))
    assert run.evaluation["classes"] == list("0123456789")
    assert "seeds" in run.config
    assert run.target == "sketch"


def test_class_metrics_come_from_the_evaluation_where_the_summary_has_none(
    tmp_path: Path,
) -> None:
    summary = write_leaf(tmp_path)
    dump(
        tmp_path / "summary.json", {k: v for k, v in summary.items() if k != "metrics"}
    )
    assert load_run(tmp_path).summary == summary


def test_only_the_summary_is_required(tmp_path: Path) -> None:
    dump(tmp_path / "summary.json", leaf_summary(None))
    run = load_run(tmp_path)
    assert (run.metrics, run.evaluation, run.config) == ((), {}, "")
    assert run.target == "none"


def test_tree_keeps_the_order_of_the_run(tmp_path: Path) -> None:
    write_tree(tmp_path, seeds=(2, 10, 1), domains=("sketch", "photo"))
    found = [(r.target, r.summary["seed"]) for r in load_runs(tmp_path)]
    assert found == [(t, s) for t in ("sketch", "photo") for s in (2, 10, 1)]


def test_tree_without_a_top_summary_sorts_seeds_as_numbers(tmp_path: Path) -> None:
    for seed in (10, 2):
        write_leaf(tmp_path / "a" / f"seed-{seed}", leaf_summary("a", seed))
    assert [r.summary["seed"] for r in load_runs(tmp_path)] == [2, 10]


def test_several_directories_are_read_in_turn(tmp_path: Path) -> None:
    write_leaf(tmp_path / "two", leaf_summary("photo"))
    write_leaf(tmp_path / "one", leaf_summary("scan"))
    runs = load_runs(tmp_path / "two", tmp_path / "one")
    assert [r.target for r in runs] == ["photo", "scan"]


def test_leaves_of_an_earlier_run_are_passed_over(tmp_path: Path) -> None:
    write_leaf(tmp_path)  # once a leaf, then a tree of more seeds, then of fewer
    write_tree(tmp_path, seeds=(0, 1), domains=("scan", "photo"))
    write_tree(tmp_path, seeds=(0,), domains=("photo",))
    assert [r.path for r in load_runs(tmp_path)] == [tmp_path / "photo" / "seed-0"]
    write_leaf(tmp_path)
    assert [r.path for r in load_runs(tmp_path)] == [tmp_path]


def test_checkpoints_are_not_runs(tmp_path: Path) -> None:
    write_leaf(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "metrics.jsonl").write_text("")
    assert len(load_runs(tmp_path)) == 1


def test_unfinished_leaf_names_the_command_that_finishes_it(tmp_path: Path) -> None:
    write_tree(tmp_path, seeds=(0,))
    (tmp_path / "photo" / "seed-0" / "summary.json").unlink()
    with pytest.raises(RunError, match=r"unfinished.*run --resume --out") as caught:
        load_runs(tmp_path)
    assert str(caught.value).endswith(f"--out {tmp_path}`")
    assert "\n" not in str(caught.value)


def test_empty_and_missing_directories(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"holds no summary\.json.*fedclip run --out"):
        load_runs(tmp_path)
    with pytest.raises(RunError, match="is not a directory"):
        load_run(tmp_path / "nowhere")


def test_tree_given_as_a_leaf(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    write_tree(tree, seeds=(0,))
    said = "holds runs: name one of them, such as "
    folders = ((tree, "negative"), (tree / "photo", "photo"), (tmp_path, "negative"))
    for folder, leaf in folders:
        with pytest.raises(RunError, match=said) as caught:
            load_run(folder)
        assert str(caught.value).endswith(str(tree / leaf / "seed-0"))


@pytest.mark.parametrize("text", ["{", "[1]", "\xff"])
def test_damaged_summary_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "summary.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=r"summary\.json") as caught:
        load_runs(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["zero_shot", "rounds", "seconds"])
def test_incomplete_summary_names_the_key(tmp_path: Path, key: str) -> None:
    summary = leaf_summary()
    del summary[key]
    dump(tmp_path / "summary.json", summary)
    with pytest.raises(RunError, match=f"{key} is missing"):
        load_run(tmp_path)


def test_damaged_metrics_name_the_line(tmp_path: Path) -> None:
    write_leaf(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"round": 13, "lo')
    with pytest.raises(RunError, match=r"metrics\.jsonl line 13 is not valid JSON"):
        load_run(tmp_path)


def test_a_round_written_twice_counts_once_and_nan_is_null(tmp_path: Path) -> None:
    write_leaf(tmp_path)
    path = tmp_path / "metrics.jsonl"
    again = {"round": 3, "loss": float("nan")}
    path.write_text(path.read_text() + json.dumps(again) + "\n")
    run = load_run(tmp_path)
    assert [entry["round"] for entry in run.metrics] == list(range(1, 13))
    assert run.metrics[2] == {"round": 3, "loss": None}
