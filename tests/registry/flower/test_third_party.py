"""An algorithm of others over real Flower: its options are keys of the run config."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("flwr")

from fedclip_plugin.registry import flower_host
from fedclip_plugin.registry.flower.records import to_state
from tests.algorithms.installed import install_warm_start
from tests.registry.flower.grid import embedded, equal, grid_of, options


def test_it_trains_with_what_the_run_config_says(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_warm_start(monkeypatch)
    plain = flower_host.FedClip(options(toy))
    run_config = options(toy, alg="warm-start", warm_start_scale=0.5)
    strategy = flower_host.FedClip(run_config)
    result = strategy.start(grid_of(run_config))
    assert strategy.config.params.scale == 0.5
    assert equal(to_state(result.arrays), embedded(strategy, toy).state)
    assert not equal(to_state(result.arrays), embedded(plain, toy).state)
