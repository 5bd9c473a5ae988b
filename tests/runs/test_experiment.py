"""Runs from features to files: layout, resuming after kill -9, bad places."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path

import pytest
from safetensors import safe_open

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import RunError
from fedclip_plugin.features.obtain import obtain_features
from fedclip_plugin.runs.directory import drop_if_empty, hold, prepare_out
from fedclip_plugin.runs.experiment import run_experiment
from fedclip_plugin.runs.files import MetricsFile
from fedclip_plugin.settings.sources import load_config
from tests.faults.brake import RELEASED, Brake, brake
from tests.federation.toy import write_toy
from tests.waiting import SECONDS, wait_until


def make_config(features: Path, **changes: object) -> RunConfig:
    data = DataConfig(
        dataset="toy",
        features=str(features),
        targets=changes.pop("targets", ("photo",)),  # type: ignore[arg-type]
    )
    train = {"rounds": 3, "lr": 1e-3, **changes.pop("train", {})}  # type: ignore[dict-item]
    return with_values(RunConfig(data=data, **changes), train)  # type: ignore[arg-type]


def run(config: RunConfig, out: Path, resume: bool = False) -> dict:
    features, stats = obtain_features(config)
    out = prepare_out(out, "unused", resume)
    with hold(out):
        return run_experiment(config, features, stats, out, resume)


def test_leaf_leaves_the_documented_files(tmp_path):
    features = write_toy(tmp_path / "f")
    config = make_config(features)
    summary = run(config, tmp_path / "out")
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {
        "config.toml", "metrics.jsonl", "adapter.safetensors", "checkpoint",
        "report.html", "summary.json", "evaluation.json", ".lock", "final.safetensors",
    }  # fmt: skip
    assert json.loads((tmp_path / "out" / "summary.json").read_text()) == summary
    assert set(summary) >= {
        "algorithm", "dataset", "model", "pretrained", "seed", "target", "rounds",
        "best_round", "zero_shot", "result", "communication", "seconds", "quarantined",
    }  # fmt: skip
    text = (tmp_path / "out" / "metrics.jsonl").read_text()
    lines = [json.loads(x) for x in text.splitlines()]
    assert [line["round"] for line in lines] == [1, 2, 3]
    best = lines[summary["best_round"] - 1]
    assert summary["result"]["target"] == best["target"]
    assert summary["result"]["clients"] == {
        n: c["test"] for n, c in best["clients"].items()
    }
    assert summary["communication"]["bytes_up"] == sum(x["bytes_up"] for x in lines)
    assert load_config(tmp_path / "out" / "config.toml") == config
    with safe_open(tmp_path / "out" / "adapter.safetensors", "pt") as file:
        assert set(file.keys()) == {"0.weight", "0.bias", "2.weight", "2.bias"}
        assert json.loads(file.metadata()["fedclip"])["target"] == "photo"


def test_confusion_sums_to_the_target(tmp_path):
    run(make_config(write_toy(tmp_path / "f")), tmp_path / "out")
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    for name, score in (("fedclip", "result"), ("zero_shot", "zero_shot")):
        matrix = evaluation["confusion"][name]
        total = sum(map(sum, matrix))
        hits = sum(matrix[i][i] for i in range(4))
        assert total == 60
        assert hits / total == pytest.approx(summary[score]["target"])
    assert sum(evaluation["clients"]["art"]["train_per_class"]) == 36


def test_every_target_and_seed_gets_its_directory(tmp_path):
    config = make_config(write_toy(tmp_path / "f"), targets=(), seeds=(0, 1))
    total = run(config, tmp_path / "out")
    assert len(total["runs"]) == 6
    assert {"mean", "ci95"} <= set(total)
    for target in ("art", "cartoon", "photo"):
        for seed in (0, 1):
            leaf = tmp_path / "out" / target / f"seed-{seed}"
            assert json.loads((leaf / "summary.json").read_text())["target"] == target
    assert (tmp_path / "out" / "report.html").is_file()
    assert sum(r["seconds"]["features"] > 0 for r in total["runs"]) == 1


def test_former_run_is_moved_aside_not_lost(tmp_path):
    config = make_config(write_toy(tmp_path / "f"))
    run(config, tmp_path / "out")
    before = (tmp_path / "out" / "summary.json").read_text()
    run(config, tmp_path / "out")
    run(config, tmp_path / "out")
    assert (tmp_path / "out.previous-1" / "summary.json").read_text() == before
    assert (tmp_path / "out.previous-2").is_dir()


def test_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunError, match="no fedclip run"):
        prepare_out(tmp_path, "x", resume=False)
    with pytest.raises(RunError, match="is a file"):
        prepare_out(tmp_path / "thesis.txt", "x", resume=False)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("resume", [False, True])
def test_the_directory_of_a_run_at_work_is_refused_and_left_alone(tmp_path, resume):
    config, out = make_config(write_toy(tmp_path / "f")), tmp_path / "out"
    run(config, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with hold(out), pytest.raises(RunError, match=r"another run is writing to .*out:"):
        hold(prepare_out(out, "x", resume))
    assert before == {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    assert prepare_out(out, "x", resume) == out  # it has ended


def test_a_second_run_leaves_one_that_has_written_nothing_yet(tmp_path):
    """As while its images are encoded: there is a lock, and nothing else."""
    features, out = write_toy(tmp_path / "f"), tmp_path / "out"
    with hold(out):
        assert main(["run", "--features", str(features), "--out", str(out)]) == 2
        assert [path.name for path in out.iterdir()] == [".lock"]


def test_what_a_run_killed_at_once_left_is_no_run_and_in_nobodys_way(tmp_path):
    out = tmp_path / "out"
    hold(out).release()
    assert prepare_out(out, "x", resume=False) == out
    drop_if_empty(out)
    assert not out.exists()


def test_default_directory_is_numbered_and_resume_takes_the_newest(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    first = prepare_out(None, "fedclip-toy", False)
    assert first == Path("runs/fedclip-toy")
    second = prepare_out(None, "fedclip-toy", False)
    assert second == Path("runs/fedclip-toy-2")
    (first / "config.toml").write_text("")
    assert prepare_out(None, "fedclip-toy", True) == first
    (second / "config.toml").write_text("")
    os.utime(first / "config.toml", (1, 1))
    assert prepare_out(None, "fedclip-toy", True) == second


def test_resume_of_nothing_is_told(tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        prepare_out(tmp_path / "nowhere", "x", resume=True)


def test_resume_of_a_finished_run_changes_nothing(tmp_path):
    config = make_config(write_toy(tmp_path / "f"))
    first = run(config, tmp_path / "out")
    stamp = (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns
    assert run(config, tmp_path / "out", resume=True) == first
    assert (tmp_path / "out" / "metrics.jsonl").stat().st_mtime_ns == stamp


def test_resume_with_more_rounds_equals_a_longer_run(tmp_path):
    features = write_toy(tmp_path / "f")
    run(make_config(features), tmp_path / "out")
    longer = make_config(features, train={"rounds": 7})
    run(longer, tmp_path / "out", resume=True)
    run(longer, tmp_path / "whole")
    assert same_results(tmp_path / "out", tmp_path / "whole")


def same_results(one: Path, other: Path) -> bool:
    def timeless(path: Path) -> list:
        lines = [
            json.loads(x) for x in (path / "metrics.jsonl").read_text().splitlines()
        ]
        return [{**line, "seconds": None} for line in lines]

    def scores(path: Path) -> list:
        summary = json.loads((path / "summary.json").read_text())
        return [summary[k] for k in ("best_round", "result", "communication", "rounds")]

    adapters = [(p / "adapter.safetensors").read_bytes() for p in (one, other)]
    return (
        adapters[0] == adapters[1]
        and timeless(one) == timeless(other)
        and scores(one) == scores(other)
    )


def child_run(features: str, out: str, resume: bool, stop: str) -> None:
    brake(Path(stop))
    config = make_config(Path(features), train={"rounds": 120})
    run(config, Path(out), resume)


def test_kill_9_at_random_moments_and_resume_gives_the_same_bits(tmp_path):
    features = write_toy(tmp_path / "f")
    run(make_config(features, train={"rounds": 120}), tmp_path / "whole")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["fedclip_plugin.runs.experiment", "tests.runs.test_experiment"]
    )
    out, rng, kills = tmp_path / "broken", random.Random(5), 0
    metrics, stop = out / "metrics.jsonl", Brake(tmp_path / "brake")
    while True:
        goal = rounds_in(metrics) + rng.randint(1, 15)
        stop.let(goal + 3 if kills < 5 else RELEASED)
        process = context.Process(
            target=child_run,
            args=(
                *(str(features), str(out), (out / "config.toml").exists()),
                str(stop.file),
            ),
        )
        process.start()
        if kills == 5:
            break
        wait_until(lambda g=goal: rounds_in(metrics) >= g)
        time.sleep(rng.random() * 0.01)
        os.kill(process.pid, signal.SIGKILL)
        kills += 1
        process.join()
    process.join(SECONDS)
    assert process.exitcode == 0
    assert same_results(tmp_path / "whole", out)


def rounds_in(metrics: Path) -> int:
    return metrics.read_bytes().count(b"\n") if metrics.exists() else 0


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n{"round": 2}\n{"rou')
    with MetricsFile(path) as metrics:
        metrics.cut(1)
        metrics.add({"round": 2})
    assert path.read_text() == '{"round": 1}\n{"round": 2}\n'


def test_a_run_that_stopped_early_counts_as_finished(tmp_path):
    features, out = write_toy(tmp_path / "f"), tmp_path / "out"
    config = make_config(
        features,
        targets=("photo", "art"),
        train={"rounds": 60, "lr": 1e-2, "patience": 2},
    )
    first = run(config, out)
    assert max(s["rounds"] for s in first["runs"]) < 60
    before = {p: p.stat().st_mtime_ns for p in out.rglob("adapter.safetensors")}
    assert run(config, out, resume=True)["runs"] == first["runs"]
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("*adapter*")}


def test_the_summary_tells_what_was_changed(tmp_path):
    features = write_toy(tmp_path / "f")
    usual = run(make_config(features, train={"lr": 5e-5}), tmp_path / "a")
    assert usual["variant"] == ""
    other = run(make_config(features, train={"weight_decay": 0.0}), tmp_path / "b")
    assert other["variant"] == "lr 0.001, weight-decay 0.0"
    evaluation = json.loads((tmp_path / "a" / "evaluation.json").read_text())
    assert set(evaluation["metrics"]) == {"fedclip", "zero_shot"}


@pytest.mark.parametrize(("alg", "share"), [("gda", 0.5), ("gda", 1), ("linear", 0.5)])
def test_clients_that_the_one_round_leaves_out_are_told_of(tmp_path, alg, share):
    config = make_config(
        write_toy(tmp_path / "f"),
        algorithm=alg,
        train={"rounds": 1, "participation": share},
    )
    notes = run(config, tmp_path / "out")["notes"]
    left_out = alg == "gda" and share < 1
    assert any("the clients of one round" in note for note in notes) == left_out
