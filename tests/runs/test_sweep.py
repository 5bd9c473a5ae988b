"""A sweep: its runs, what a failed one costs, the choice, and going on after a kill."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import fedclip_plugin as fc
from fedclip_plugin.cli import main
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.report.records import load_runs
from fedclip_plugin.runs.pool import Outcome, run_tasks
from fedclip_plugin.runs.sweep import choose
from tests.waiting import wait_until

GRID = {"grid": {"lr": [1e-4, 1e-2]}}


def options(features: Path, **more: object) -> dict:
    return {"features": str(features), "target": "photo", "rounds": 2, **more}


LRS = "lr = [1e-4, 1e-2]"


def written(features: Path, folder: Path, grid: str = LRS, **more: object) -> Path:
    lines = [f"{k} = {json.dumps(v)}" for k, v in options(features, **more).items()]
    file = folder / "sweep.toml"
    file.write_text("\n".join(["[options]", *lines, "[grid]", grid]))
    return file


# ---------------------------------------------------------------------------- the runs


def test_a_sweep_has_the_runs_that_fedclip_run_would_have(
    toy: Path, tmp_path: Path
) -> None:
    same = options(toy, target=["photo", "art"])
    out = tmp_path / "sweep"
    result = fc.sweep({"options": same, **GRID}, out=out)
    for lr, trial in zip((1e-4, 1e-2), result["trials"]):
        alone = fc.run(**{**same, "lr": lr}, out=tmp_path / f"{lr}")
        for row, one in zip(trial["runs"], alone["runs"]):
            assert row["target"] == one["target"]
            assert row["result"] == one["result"]["target"]
            name = f"{row['target']}/seed-0/adapter.safetensors"
            folder = out / trial["trial"]
            assert (folder / name).read_bytes() == (
                tmp_path / f"{lr}" / name
            ).read_bytes()
        assert (
            json.loads((folder / "summary.json").read_text())["mean"] == (alone["mean"])
        )
    assert len(load_runs(out)) == 4
    assert not list(out.glob("*/*/seed-0/report.html"))
    page = (out / "report.html").read_text()
    assert "All trials" in page
    assert "lr=0.01" in page
    rows = list(csv.DictReader((out / "sweep.csv").open()))
    assert [row["lr"] for row in rows] == ["0.0001", "0.0001", "0.01", "0.01"]
    for row in rows:
        chosen = result["selected"][row["target"]]["trial"] == row["trial"]
        assert row["chosen"] == str(int(chosen))


def test_the_command_tells_what_was_chosen(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(toy, tmp_path, "lr = [1e-4]\nlocal-epochs = [1]", rounds=1)
    words = ["sweep", str(file), "--out", str(tmp_path / "out"), "--jobs", "1"]
    assert main([*words, "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "Chosen" in said
    assert "lr=0.0001, " in said


@pytest.mark.slow
def test_processes_give_what_one_does_and_one_failure_stops_nothing(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--server-optimizer adam is nothing for gda."""
    text = 'alg = ["fedclip", "gda"]\nserver-optimizer = ["none", "adam"]'
    file = written(toy, tmp_path, text)
    results = []
    for jobs in ("1", "2"):
        out = tmp_path / jobs
        words = ["sweep", str(file), "--out", str(out), "--jobs", jobs, "--quiet"]
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.count("error:") == 1
        assert "alg=gda,server-optimizer=adam" in error
        results.append(json.loads((out / "sweep.json").read_text()))
    one, two = results
    assert [len(trial["runs"]) for trial in one["trials"]] == [1, 1, 1, 0]
    assert [failed["trial"] for failed in two["failed"]] == [
        "alg=gda,server-optimizer=adam"
    ]
    for first, second in zip(one["trials"], two["trials"]):
        for a, b in zip(first["runs"], second["runs"]):
            assert a["validation"] == pytest.approx(b["validation"], abs=0.05)


def test_a_sweep_where_nothing_can_run_is_refused(toy: Path, tmp_path: Path) -> None:
    bad = {"options": options(toy, target="sketch"), **GRID}
    with pytest.raises(
        ConfigError, match=r"none of the sweep.s runs can run: .*sketch"
    ):
        fc.sweep(bad, out=tmp_path / "out")


# -------------------------------------------------------------------------- going on


def test_finished_runs_are_kept_and_other_options_are_refused(
    toy: Path, tmp_path: Path
) -> None:
    out, base = tmp_path / "out", options(toy)
    fc.sweep({"options": base, "grid": {"lr": [1e-4]}}, out=out)
    leaf = out / "lr=0.0001"
    before = {p: p.stat().st_mtime_ns for p in leaf.rglob("*") if p.name != ".lock"}
    more = fc.sweep({"options": base, **GRID}, out=out, resume=True)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert [len(trial["runs"]) for trial in more["trials"]] == [1, 1]
    other = {**base, "batch_size": 8}
    refused = fc.sweep({"options": other, "grid": {"lr": [1e-4]}}, out=out, resume=True)
    assert "another configuration" in refused["failed"][0]["error"]
    with pytest.raises(RunError, match="holds no sweep"):
        fc.sweep({"options": base, **GRID}, out=tmp_path / "new", resume=True)
    with pytest.raises(RunError, match="holds no run"):
        fc.run(out=out, resume=True)


@pytest.mark.slow
def test_kill_9_costs_what_is_not_finished(toy: Path, tmp_path: Path) -> None:
    """Workers end with the first process, and the sweep ends as if unbroken."""
    file, out = written(toy, tmp_path, rounds=45, seed=[0, 1]), tmp_path / "out"
    words = [sys.executable, "-m", "fedclip_plugin.cli", "sweep", str(file), "--quiet"]
    words += ["--jobs", "2", "--out"]
    process = subprocess.Popen([*words, str(out)], start_new_session=True)
    try:
        saved = "*/photo/seed-*/checkpoint/last.safetensors"
        wait_until(lambda: process.poll() is not None or any(out.glob(saved)), 0.01)
        assert process.poll() is None
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = {p: p.read_bytes() for p in out.rglob("summary.json")}
    again = subprocess.run([*words, str(out), "--resume"], check=False)
    assert again.returncode == 0
    assert {p: p.read_bytes() for p in done} == done
    whole = subprocess.run([*words, str(tmp_path / "whole")], check=False)
    assert whole.returncode == 0
    names = [p.relative_to(out) for p in out.rglob("adapter.safetensors")]
    assert len(names) == 4
    for name in names:
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ------------------------------------------------------------------------- the choice


def trial(name: str, *rows: tuple[str, int, float | None, float]) -> dict:
    keys = ("target", "seed", "validation", "result")
    runs = [{**dict(zip(keys, row)), "zero_shot": 0.5} for row in rows]
    return {"trial": name, "options": {}, "runs": runs}


def test_the_choice_sees_validation_alone_and_means_over_seeds() -> None:
    trials = [
        trial("even", ("photo", 0, 0.80, 0.1), ("photo", 1, 0.80, 0.3)),
        trial("uneven", ("photo", 0, 0.99, 0.9), ("photo", 1, 0.50, 0.9)),
        trial("equal", ("photo", 0, 0.70, 0.9), ("photo", 1, 0.90, 0.9)),
        trial("half", ("photo", 0, 0.99, 0.9)),  # its other seed has failed
        trial("unmeasured", ("photo", 0, None, 0.9), ("photo", 1, None, 0.9)),
    ]
    chosen = choose(trials, "photo")
    assert chosen is not None
    assert chosen["trial"] == "even"
    assert chosen["result"] == pytest.approx(0.2)
    assert choose(trials[-1:], "photo") is None


def test_every_held_out_domain_has_its_own_choice() -> None:
    trials = [
        trial("a", ("photo", 0, 0.9, 0.1), ("art", 0, 0.1, 0.1)),
        trial("b", ("photo", 0, 0.8, 0.1), ("art", 0, 0.2, 0.1)),
    ]
    names = [choose(trials, target)["trial"] for target in ("photo", "art")]
    assert names == ["a", "b"]


# ----------------------------------------------------------------------------- workers


def work(task: int, tell: object) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if task == 4:
        raise ConfigError("four is not allowed")
    if task == 5:
        raise ZeroDivisionError("five")
    tell(("begun", task))
    return task * task


@pytest.mark.slow
def test_a_worker_that_dies_takes_only_its_own_task() -> None:
    notes: list = []
    outcomes: dict[int, Outcome] = {}
    run_tasks(
        work, range(7), 2, lambda i, n: notes.append((i, n)), outcomes.__setitem__
    )
    assert {i: o.value for i, o in outcomes.items() if not o.error} == {
        i: i * i for i in (0, 1, 2, 6)
    }
    assert (6, ("begun", 6)) in notes
    assert "SIGKILL" in outcomes[3].error
    assert (outcomes[4].error, outcomes[4].fault) == ("four is not allowed", False)
    assert outcomes[5].fault
