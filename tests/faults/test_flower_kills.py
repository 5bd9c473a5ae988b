"""Flower servers that are killed: submitted again, the run goes on, bit for bit.

A few kills here; ``python -m benchmarks kills`` makes many.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when Flower is imported
pytest.importorskip("flwr")

from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.registry import flower_host
from fedclip_plugin.registry.flower.records import to_state
from tests.faults.flower_kills import break_deployment, break_strategy
from tests.faults.kills import Toll, rounds_in
from tests.registry.flower.grid import embedded, equal, grid_of, options

pytestmark = pytest.mark.slow


def test_a_killed_strategy_goes_on_to_the_same_bits(toy: Path, tmp_path: Path) -> None:
    toll = Toll(seed=6)
    break_strategy(tmp_path, toy, toll, kills=3)
    assert toll.kills == {"Flower strategy": 3}


def test_a_killed_server_app_is_submitted_again(tmp_path: Path) -> None:
    toll = Toll(seed=7)
    break_deployment(tmp_path, toll, ["ServerApp"])
    assert toll.kills == {"ServerApp": 1}


def test_a_run_can_be_made_longer_and_submitted_when_it_is_over(
    toy: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    more = {"out": str(out), "resume": True, "fraction_train": 0.6}
    for rounds in (2, 5, 5):
        run_config = options(toy, num_server_rounds=rounds, **more)
        strategy = flower_host.FedClip(run_config)
        result = strategy.start(grid_of(run_config))
        assert rounds_in(out / "metrics.jsonl") == rounds
    assert equal(to_state(result.arrays), embedded(strategy, toy).state)


def test_a_run_of_another_configuration_does_not_go_on(
    toy: Path, tmp_path: Path
) -> None:
    more = {"out": str(tmp_path / "out"), "resume": True}
    first, other = options(toy, **more), options(toy, **more, local_epochs=3)
    flower_host.FedClip(first).start(grid_of(first))
    with pytest.raises(RunError, match="another configuration"):
        flower_host.FedClip(other).start(grid_of(other))
    with pytest.raises(ConfigError, match="resume: expected true or false"):
        flower_host.FedClip(options(toy, resume="maybe"))
    nowhere = options(toy, resume=True)
    with pytest.raises(ConfigError, match="needs the output directory"):
        flower_host.FedClip(nowhere).start(grid_of(nowhere))
