"""The strategy and the ClientApp, over real Flower messages in one process."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import ConfigRecord
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.federation.build import participants
from fedclip_plugin.registry import flower_host
from fedclip_plugin.registry.flower.records import to_arrays, to_state
from fedclip_plugin.runs.host_run import one_run
from tests.federation.toy import DOMAINS, own_directories, write_toy
from tests.registry.flower.grid import (
    LocalGrid,
    embedded,
    equal,
    grid_of,
    in_training,
    no_answer,
    options,
    partitions,
)

# ------------------------------------------------------------------------- import paths


def test_the_import_paths_are_flower_apps() -> None:
    assert isinstance(flower_host.server_app, ServerApp)
    assert isinstance(flower_host.client_app, ClientApp)


def test_flower_finds_the_paths_without_importing_them() -> None:
    from flwr.supercore.object_ref import validate

    for name in flower_host.__all__:
        assert validate(f"{flower_host.__name__}:{name}") == (True, None)


# ----------------------------------------------------------------------------- equality


def test_clients_with_data_of_their_own_train_the_same(
    toy: Path, tmp_path: Path
) -> None:
    nodes = {
        50 - i: {"partition-id": i, "features": str(path)}
        for i, path in enumerate(own_directories(tmp_path / "own"))
    }
    strategy = flower_host.FedClip(options(None))
    result = strategy.start(LocalGrid(nodes))
    assert equal(to_state(result.arrays), embedded(strategy, toy).state)


def test_a_part_of_the_clients_is_the_same_part(toy: Path) -> None:
    run_config = options(toy, fraction_train=0.67, num_server_rounds=3)
    strategy = flower_host.FedClip(run_config)
    result = strategy.start(grid_of(run_config))
    last = embedded(strategy, toy)
    assert last.result.participants == participants(list(DOMAINS), 0.67, 0, 3)
    assert equal(to_state(result.arrays), last.state)


def test_clients_are_asked_for_scores_every_so_many_rounds(toy: Path) -> None:
    run_config = options(toy, num_server_rounds=5, eval_every=2)
    grid = grid_of(run_config)
    strategy = flower_host.FedClip(run_config)
    result = strategy.start(grid)
    last = embedded(strategy, toy)
    assert equal(to_state(result.arrays), last.state)
    assert [kind for kind, _, _ in grid.traffic].count("evaluate") == 3 * len(DOMAINS)
    assert strategy.host_run is not None
    assert strategy.host_run.now.progress.best_round == last.progress.best_round


def test_at_least_min_train_nodes_train(toy: Path) -> None:
    run_config = options(toy, fraction_train=0.1, min_train_nodes=2)
    result = flower_host.FedClip(run_config).start(grid_of(run_config))
    assert result.train_metrics_clientapp[1]["clients"] == 2


def test_a_held_out_domain_is_scored_on_the_server(toy: Path, tmp_path: Path) -> None:
    run_config = options(
        toy, target="photo", out=str(tmp_path / "out"), personalize="mix"
    )
    grid = LocalGrid(partitions(2), run_config)
    strategy = flower_host.FedClip(run_config)
    result = strategy.start(grid)
    last = embedded(strategy, toy, "photo")
    assert equal(to_state(result.arrays), last.state)
    assert result.evaluate_metrics_clientapp[2]["target-accuracy"] == last.result.target
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["target"] == "photo"
    assert set(summary["metrics"]) == {"fedclip", "zero_shot"}
    assert set(summary["personalization"]["clients"]) == {"art", "cartoon"}
    assert "evaluate" not in {kind for kind, _, _ in grid.traffic}
    other = LocalGrid(
        partitions(2), {"features": str(write_toy(tmp_path / "b", seed=1))}
    )
    with pytest.raises(RunError, match="gives other text features"):
        flower_host.FedClip(run_config).start(other)


def test_a_strategy_of_flower_gets_on_with_the_client(toy: Path) -> None:
    run_config = options(toy, weighting="examples")
    grid = grid_of({**run_config, "fedclip-knows-not": "this"})
    arrays = flower_host.FedClip(run_config).initial_arrays(grid)
    result = FedAvg(min_train_nodes=3, min_evaluate_nodes=3).start(
        grid, arrays, num_rounds=2
    )
    ours = flower_host.FedClip(run_config).start(grid_of(run_config))
    for key, value in to_state(ours.arrays).items():
        torch.testing.assert_close(to_state(result.arrays)[key], value)


# -------------------------------------------------------------------------------- files


def test_only_the_adapter_travels(tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "wide", dim=128)
    run_config = options(toy)
    grid = grid_of(run_config)
    result = flower_host.FedClip(run_config).start(grid)
    size = sum(4 * v.numel() for v in to_state(result.arrays).values())
    small = 2500  # headers of four arrays, metrics, configuration
    for kind, down, up in grid.traffic:
        assert (
            (0 if kind == "query" else size)
            <= down
            <= small + (0 if kind == "query" else size)
        )
        assert up <= small + (size if kind == "train" else 0)
    down, up = (sum(t[i] for t in grid.traffic[3:9]) for i in (1, 2))
    metrics = result.evaluate_metrics_clientapp[1]
    assert metrics["round-bytes-down"] == pytest.approx(down, rel=0.02)
    assert metrics["round-bytes-up"] == pytest.approx(up, rel=0.02)


# --------------------------------------------------------------------- use by hand


def test_a_run_begins_from_given_arrays(toy: Path) -> None:
    run_config = options(toy, lr=0.0)
    grid = grid_of(run_config)
    strategy = flower_host.FedClip(run_config)
    first = {k: v + 1 for k, v in to_state(strategy.initial_arrays(grid)).items()}
    result = strategy.start(grid, to_arrays(first), num_rounds=1)
    torch.testing.assert_close(to_state(result.arrays), first)
    other = to_arrays({k: v[:1] for k, v in first.items()})
    with pytest.raises(ConfigError, match="not an adapter of this run"):
        flower_host.FedClip(run_config).start(grid, other)


def test_a_strategy_around_it_may_change_the_adapter(toy: Path) -> None:
    class Halved(flower_host.FedClip):  # type: ignore[misc]
        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            arrays, metrics = super().aggregate_train(server_round, replies)
            return to_arrays({k: v / 2 for k, v in to_state(arrays).items()}), metrics

    run_config = options(toy, lr=0.0)
    strategy = Halved(run_config)
    grid = grid_of(run_config)
    first = to_state(strategy.initial_arrays(grid))
    result = strategy.start(grid)
    quarter = {k: v / 4 for k, v in first.items()}
    torch.testing.assert_close(to_state(result.arrays), quarter)
    assert equal(strategy.host_run.state, to_state(result.arrays))


def test_the_train_config_of_the_user_travels(toy: Path) -> None:
    run_config = options(toy, num_server_rounds=1)
    seen = []

    def look(message: Any, context: Any, app: Any) -> Any:
        seen.append(message.content["config"].get("mine"))
        return app(message, context)

    grid = grid_of(run_config, faults={99: look})
    flower_host.FedClip(run_config).start(
        grid, train_config=ConfigRecord({"mine": "yes"})
    )
    assert seen == [None, "yes", None]


def idle(reply: Any) -> Any:
    reply.content["metrics"]["num-examples"] = 0
    return reply


@pytest.mark.parametrize("ask_nodes", ["all", "drawn"])
def test_a_round_of_clients_that_tell_of_no_example_ends_the_run(
    toy: Path, tmp_path: Path, ask_nodes: str
) -> None:
    out = tmp_path / "out"
    run_config = options(toy, num_server_rounds=3, out=str(out), ask_nodes=ask_nodes)
    faults = dict.fromkeys(partitions(), in_training(idle, 1))
    with pytest.raises(RunError, match="round 1: no client that answered trained on"):
        flower_host.FedClip(run_config).start(grid_of(run_config, faults=faults))
    assert not (out / "metrics.jsonl").read_text()
    assert not (out / "summary.json").exists()


def test_a_later_round_without_examples_is_told(
    toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Those who have some may be away."""
    out = tmp_path / "out"
    run_config = options(toy, num_server_rounds=3, out=str(out))
    faults = dict.fromkeys(partitions(), in_training(idle, 2))
    flower_host.FedClip(run_config).start(grid_of(run_config, faults=faults))
    assert "round 2: no client that answered trained on an example" in caplog.text
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 3


def test_a_run_has_one_seed() -> None:
    with pytest.raises(ConfigError, match="one seed"):
        flower_host.FedClip({"seed": "0 1"})
    assert one_run(flower_host.FedClip({"seed": 3}).config).seeds == (3,)


def test_an_algorithm_that_sends_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match="sends nothing to a server"):
        flower_host.FedClip({"alg": "local"})


def test_every_site_scores_a_given_state_and_trains_nothing(
    toy: Path, tmp_path: Path
) -> None:
    tracked = {"log": "tensorboard"} if find_spec("tensorboard") else {}
    run_config = options(toy, out=str(tmp_path / "run"), **tracked)
    flower_host.FedClip(run_config).start(grid_of(run_config))
    trained = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list((tmp_path / "run").glob("events.out.*")) or not tracked
    file = str(tmp_path / "run" / "adapter.safetensors")
    job = options(toy, out=str(tmp_path / "job"), evaluate=file, num_server_rounds=1)
    flower_host.FedClip(job).start(grid_of(job))
    found = json.loads((tmp_path / "job" / "summary.json").read_text())
    for which in ("zero_shot", "result"):
        assert found[which]["clients"] == trained[which]["clients"]


# ------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("more", [{}, {"alg": "gda"}, {"compress": "int8"}])
def test_replies_that_memory_does_not_hold_are_put_away_as_they_come(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    run_config = options(toy, **more)

    def played() -> tuple[Any, Any, LocalGrid]:
        grid = grid_of(run_config)
        grid.faults[98] = in_training(no_answer, 1)
        strategy = flower_host.FedClip({**run_config, "round-timeout": 3})
        return strategy, strategy.start(grid), grid

    strategy, expected, grid = played()
    assert not grid.pulled
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path))
    monkeypatch.setenv("FEDCLIP_UPDATE_MEMORY", "0")
    disk, result, grid = played()
    assert grid.pulled == 5  # of three nodes in two rounds, one of which was away
    assert equal(to_state(result.arrays), to_state(expected.arrays))
    for number, metrics in expected.train_metrics_clientapp.items():
        assert result.train_metrics_clientapp[number] == metrics
    assert (
        disk.host_run.now.progress.bytes_up == strategy.host_run.now.progress.bytes_up
    )
