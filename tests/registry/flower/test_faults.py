"""Clients that fail, and clients that do not fit: over real Flower messages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr")


from fedclip_plugin.errors import RunError
from fedclip_plugin.features.feature_set import load_features, save_features
from fedclip_plugin.registry import flower_host
from fedclip_plugin.registry.flower.records import to_state
from tests.federation.toy import own_directories, toy_features
from tests.registry.flower import grid as flower_grid
from tests.registry.flower.grid import (
    LocalGrid,
    embedded,
    equal,
    grid_of,
    in_training,
    options,
    partitions,
    without,
)

# ------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (flower_grid.no_arrays, "keys []"),
        (flower_grid.no_metrics, "num_examples is -1"),
        (flower_grid.torn_bytes, "keys []"),
        (flower_grid.nan_rows, "num_examples is -1"),
        (flower_grid.no_answer, "no answer within 7 s"),
        (flower_grid.crash, "out of memory"),
    ],
)
def test_a_bad_client_is_named_and_left_out(
    toy: Path,
    change: Callable[..., Any],
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run_config = options(toy, round_timeout=7.0)
    grid = grid_of(run_config, faults={99: in_training(change, 1)})
    strategy = flower_host.FedClip(run_config)
    result = strategy.start(grid)
    assert equal(
        to_state(result.arrays),
        without(strategy.config, load_features(toy), "cartoon", 1),
    )
    assert result.train_metrics_clientapp[1]["left-out"] == 1
    assert result.train_metrics_clientapp[2]["left-out"] == 0
    (line,) = [r.getMessage() for r in caplog.records if told in r.getMessage()]
    assert "client cartoon" in line
    assert "\n" not in line


def test_a_loss_that_is_no_number_is_not_written(toy: Path, tmp_path: Path) -> None:
    def nan_loss(reply: Any) -> Any:
        reply.content["metrics"]["loss"] = float("nan")
        return reply

    run_config = options(toy, out=str(tmp_path / "out"))
    grid = grid_of(run_config, faults={99: in_training(nan_loss, 1)})
    strategy = flower_host.FedClip(run_config)
    result = strategy.start(grid)
    assert equal(to_state(result.arrays), embedded(strategy, toy).state)
    assert result.train_metrics_clientapp[1]["loss"] > 0


def test_a_client_that_cannot_be_scored_does_not_stop_the_round(toy: Path) -> None:
    def mute(message: Any, context: Any, app: Any) -> Any:
        return None if message.metadata.message_type == "evaluate" else app(
            message, context
        )  # fmt: skip

    run_config = options(toy)
    strategy = flower_host.FedClip(run_config)
    result = strategy.start(grid_of(run_config, faults={99: mute}))
    assert equal(to_state(result.arrays), embedded(strategy, toy).state)
    assert "cartoon/val-accuracy" not in result.evaluate_metrics_clientapp[2]
    assert "photo/val-accuracy" in result.evaluate_metrics_clientapp[2]


# ---------------------------------------------------------------------------- handshake


def test_a_client_with_other_classes_is_refused_by_name(
    toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    paths = own_directories(tmp_path / "own")
    other = replace(load_features(paths[1]), classes=("a", "b", "c", "d"))
    save_features(other, tmp_path / "other")
    paths[1] = tmp_path / "other"
    nodes = {i: {"partition-id": i, "features": str(p)} for i, p in enumerate(paths, 7)}
    result = flower_host.FedClip(options(None)).start(LocalGrid(nodes))
    assert result.train_metrics_clientapp[1]["clients"] == 2
    assert (
        "client cartoon (node 8) refused: its classes are a, b, c, d, while the run "
        "has class0, class1, class2, class3"
    ) in caplog.messages


def test_a_client_with_another_model_is_refused(tmp_path: Path) -> None:
    paths = own_directories(tmp_path / "own")
    whole = toy_features(seed=1)
    alone = {k: {"photo": getattr(whole, k)["photo"]} for k in ("image", "label")}
    save_features(replace(whole, domains=("photo",), **alone), tmp_path / "other")
    paths[2] = tmp_path / "other"
    nodes = {i: {"partition-id": i, "features": str(p)} for i, p in enumerate(paths)}
    strategy = flower_host.FedClip(options(None))
    strategy.start(LocalGrid(nodes))
    (line,) = strategy.nodes.roster.refusals()
    assert "client photo" in line
    assert "gives other text features" in line


def test_two_nodes_cannot_be_one_client(toy: Path) -> None:
    run_config = options(toy)
    grid = LocalGrid({**partitions(), 7: {"partition-id": 1}}, run_config)
    strategy = flower_host.FedClip(run_config)
    result = strategy.start(grid)
    assert equal(to_state(result.arrays), embedded(strategy, toy).state)
    (line,) = strategy.nodes.roster.refusals()
    assert "node 99 is client cartoon already" in line


def test_a_restarted_client_takes_its_place_again(toy: Path) -> None:
    run_config = options(toy)
    grid = grid_of(run_config)

    def restart(message: Any, context: Any, app: Any) -> Any:
        reply = app(message, context)
        if message.metadata.message_type == "evaluate":
            grid.offline.add(99)
            grid.nodes[12] = {"partition-id": 1}
        return reply

    grid.faults[98] = restart
    strategy = flower_host.FedClip(run_config)
    result = strategy.start(grid)
    assert equal(to_state(result.arrays), embedded(strategy, toy).state)


def test_nobody_fit_is_one_clear_error(toy: Path) -> None:
    run_config = options(toy)
    grid = LocalGrid({5: {"partition-id": 8}, 6: {}}, run_config)
    with pytest.raises(RunError, match="no client can take part") as caught:
        flower_host.FedClip(run_config).start(grid)
    assert "client 8: this run has 3 (art, cartoon, photo)" in str(caught.value)
    assert "no partition-id" in str(caught.value)


def test_too_few_nodes_is_one_clear_error(toy: Path) -> None:
    run_config = options(toy, min_available_nodes=4, start_timeout=0.1)
    with pytest.raises(RunError, match=r"3 of 4 nodes connected in 0\.1 s"):
        flower_host.FedClip(run_config).start(grid_of(run_config))


def test_too_few_supernodes_for_the_data_are_told(
    toy: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_config = options(toy, num_server_rounds=1)
    flower_host.FedClip(run_config).start(LocalGrid(partitions(2), run_config))
    assert "the data make 3 clients, 2 take part" in caplog.text
