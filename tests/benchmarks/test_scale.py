"""Thousands of clients: what grows with the participants, and what must not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.scale import embedded, figures
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.rounds import train_clients
from fedclip_plugin.report.records import MAX_CLIENTS, RunRecord, load_run
from fedclip_plugin.report.tables import MAX_ROWS, clients_of_run
from fedclip_plugin.report.trackers.base import scalars
from tests.federation.toy import toy_features, write_toy
from tests.report.synthetic_runs import leaf_summary, write_leaf
from tests.waiting import SECONDS

WIDTH = 256  # an adapter of 0.5 MB
PARTICIPANTS = 10

# Its own peak: ru_maxrss would count what the parent had when it forked.
_RUN = """
import re, sys
from fedclip_plugin.cli import main
assert main(sys.argv[1:]) == 0
status = open("/proc/self/status").read()
print("peak", re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])
"""


def peak_of_a_run(features: Path, out: Path, clients: int) -> int:
    """Bytes that ``fedclip run`` had in memory at its peak."""
    argv = ["run", "--features", features, "--target", "none", "--rounds", 3]
    argv += ["--partition", "iid", "--clients", clients, "--out", out, "--quiet"]
    argv += ["--participation", PARTICIPANTS / clients]
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return 1024 * int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_clients_that_do_not_train(tmp_path: Path) -> None:
    features = write_toy(tmp_path / "features", rows=4000, dim=WIDTH)
    few, many = (
        peak_of_a_run(features, tmp_path / str(n), n) for n in (PARTICIPANTS, 2000)
    )
    states_of_all = 2000 * 4 * 2 * WIDTH * WIDTH
    assert many - few < states_of_all / 5

    run = tmp_path / "2000"
    lines = [json.loads(s) for s in (run / "metrics.jsonl").read_text().splitlines()]
    assert [len(line["participants"]) for line in lines] == [PARTICIPANTS] * 3
    assert [len(line["clients"]) for line in lines] == [2000] * 3
    page = (run / "report.html").read_text(encoding="utf-8")
    assert len(page) < 500_000
    assert "1,900 clients between them are not listed" in page
    read = load_run(run)
    for line, entry in zip(lines, read.metrics):
        tests = [c["test"] for c in line["clients"].values() if c["test"] is not None]
        kept = [c["test"] for c in entry["clients"].values()]
        assert (min(kept), max(kept)) == (min(tests), max(tests))


def many_clients(count: int) -> RunRecord:
    accuracies = {f"client-{i}": i / count for i in range(count)}
    accuracies["client-0"] = None
    found = {"target": None, "clients": accuracies, "mean": 0.5}
    summary = {"zero_shot": found, "result": found}
    return RunRecord(Path(), summary, (), {}, "")


def test_the_table_of_many_clients_lists_the_lowest_and_the_highest() -> None:
    table = clients_of_run(many_clients(3 * MAX_ROWS))
    names = {row[0].text for row in table.rows}
    half = MAX_ROWS // 2
    listed = [f"client-{i}" in names for i in range(3 * MAX_ROWS)]
    assert listed[1 : 1 + half] == listed[-half:] == [True] * half
    assert sum(listed) == MAX_ROWS
    assert f"{2 * MAX_ROWS} clients between them" in table.note


def test_a_round_of_few_clients_is_read_as_it_is(tmp_path: Path) -> None:
    clients = {f"c{i}": {"val": None, "test": None} for i in range(MAX_CLIENTS)}
    write_leaf(tmp_path, leaf_summary("photo"))
    rounds = [
        {"round": 1, "clients": clients},
        {"round": 2, "clients": {**clients, "one more": {"val": None, "test": None}}},
    ]
    lines = "".join(json.dumps(entry) + "\n" for entry in rounds)
    (tmp_path / "metrics.jsonl").write_text(lines)
    first, second = load_run(tmp_path).metrics
    assert first["clients"] == clients
    assert second["clients"] == {}  # nobody has a test row: nothing to draw


def test_thousands_of_clients_get_no_curve_each() -> None:
    clients = {str(i): {"val": 0.5, "test": 0.5} for i in range(MAX_CLIENTS + 1)}
    tags = list(scalars({"round": 1, "clients": clients, "mean_test": 0.5}))
    assert "accuracy/mean_test" in tags
    assert not [tag for tag in tags if tag.startswith(("test/", "val/"))]


def test_a_round_does_not_depend_on_how_many_train_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = DataConfig(partition="dirichlet", clients=20)
    fed = build_federation(toy_features(), RunConfig(data=data), None, seed=0)
    state = fed.algorithm.init(fed.task)
    whole = train_clients(fed, state, fed.clients, 1)
    monkeypatch.setattr("fedclip_plugin.algorithms.fedclip.AT_ONCE", 3)
    parts = train_clients(fed, state, fed.clients, 1)
    assert [u.client for u in parts] == [c.name for c in fed.clients]
    for one, other in zip(whole, parts):
        assert all(torch.equal(v, other.state[k]) for k, v in one.state.items())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_benchmark_measures_and_draws(tmp_path: Path) -> None:
    features = write_toy(tmp_path / "features", rows=100)
    cell = embedded.in_a_process(
        *("--cell", 20, 5, "--rounds", 2, "--features", features)
    )
    assert (cell["clients"], cell["participants"], cell["rows"]) == (20, 5, 300)
    assert cell["train"] > 0
    assert cell["program_mib"] + cell["data_mib"] <= cell["peak_mib"]
    drawn = figures.embedded_svg({"cells": [cell, {**cell, "clients": 40}]})
    assert "20 clients" in drawn
    run = {"engine": "embedded", "clients": 8, "round_s": 1.0, "peak_mib": 2.0}
    runs = [{**run, "client_round_ms": 3.0}, {**run, "round_s": None}]
    assert "embedded" in figures.hosts_svg(runs)
