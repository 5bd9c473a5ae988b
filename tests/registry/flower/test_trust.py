"""Quarantine and privacy over real Flower messages in one process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("flwr")

from fedclip_plugin.errors import ConfigError
from fedclip_plugin.registry import flower_host
from fedclip_plugin.registry.flower.records import to_state
from fedclip_plugin.server import privacy
from tests.registry.flower import grid as flower_grid
from tests.registry.flower.grid import (
    embedded,
    equal,
    grid_of,
    in_training,
    options,
    with_arrays,
)

PRIVATE = {"dp_noise_multiplier": 2.0, "dp_clip": 0.1}


def lines_of(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def scaled(arrays: dict[str, np.ndarray]) -> None:
    for key in arrays:
        arrays[key] = np.float32(1e6) * arrays[key]


def test_who_was_left_out_is_written_down(toy: Path, tmp_path: Path) -> None:
    run_config = options(toy, out=str(tmp_path / "out"))
    faults = {
        99: in_training(with_arrays(flower_grid.nan), 1),
        98: in_training(with_arrays(scaled), 2),
    }
    flower_host.FedClip(run_config).start(grid_of(run_config, faults=faults))
    first, second = lines_of(tmp_path / "out" / "quarantined.jsonl")
    assert (first["round"], first["client"]) == (1, "cartoon")
    assert "NaN" in first["reason"]
    assert (second["round"], second["client"]) == (2, "photo")
    assert second["norm"] > 100 * second["median_norm"]


@pytest.mark.parametrize("share", [1.0, 0.67])
def test_privacy_gives_the_embedded_adapter_and_is_accounted(
    toy: Path, tmp_path: Path, share: float
) -> None:
    run_config = options(
        toy, out=str(tmp_path / "out"), fraction_train=share, dp_seed="run", **PRIVATE
    )
    strategy = flower_host.FedClip(run_config)
    result = strategy.start(grid_of(run_config))
    last = embedded(strategy, toy)
    assert equal(to_state(result.arrays), last.state)
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    spent = privacy.epsilon(strategy.config.privacy, ((3, round(3 * share), 2),))
    assert summary["privacy"]["epsilon"] == spent == last.progress.epsilon
    assert summary["best_round"] == 2


def test_noise_and_draw_are_secret_by_default(toy: Path) -> None:
    run_config = options(toy, **PRIVATE)
    runs = [flower_host.FedClip(run_config) for _ in range(2)]
    states = [to_state(r.start(grid_of(run_config)).arrays) for r in runs]
    assert runs[0].config.privacy.dp_seed == "secret"
    assert not equal(*states)


def test_a_budget_that_is_too_small_is_told_before_the_first_round(toy: Path) -> None:
    config = flower_host.FedClip(options(toy, **PRIVATE)).config.privacy
    budget = 1.001 * privacy.epsilon(config, ((3, 3, 1),))
    run_config = options(toy, dp_epsilon_budget=budget, **PRIVATE)
    with pytest.raises(ConfigError, match="set its rounds to 1"):
        flower_host.FedClip(run_config).start(grid_of(run_config))
