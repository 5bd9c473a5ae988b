"""Compressed updates, and what clients keep, over real Flower messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("flwr")

from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

from fedclip_plugin.federation.engine import federate
from fedclip_plugin.federation.unseen import base_to_novel
from fedclip_plugin.registry import flower_host
from fedclip_plugin.registry.flower.records import KEPT, to_state
from tests.federation.toy import write_toy
from tests.registry.flower.grid import (
    embedded,
    equal,
    grid_of,
    in_training,
    options,
    with_arrays,
)
from tests.registry.flower.world import Messages


def test_what_is_kept_is_that_of_the_embedded_engine(toy: Path) -> None:
    more = {"compress": "topk", "optimizer_state": "keep", "fraction_train": 0.67}
    run_config = options(toy, num_server_rounds=4, **more)
    grid, strategy = grid_of(run_config, reverse=True), flower_host.FedClip(run_config)
    strategy.start(grid)
    last = embedded(strategy, toy)
    for node, state in grid.states.items():
        name = strategy.nodes.roster.cards[node].name
        kept = to_state(state.array_records.get(KEPT))
        assert equal(kept, last.kept.get(name, {}))


def test_what_is_kept_stays_with_the_client(tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "wide", dim=128)
    run_config = options(toy, compress="int8", fraction_evaluate=0.0)
    grid = grid_of(run_config)
    flower_host.FedClip(run_config).start(grid)
    size = 4 * (2 * 128 * 128 + 2 * 128)
    trained = [(down, up) for kind, down, up in grid.traffic if kind == "train"]
    assert len(trained) == 6
    for down, up in trained:
        assert size <= down <= size + 3000
        assert up <= 0.27 * size + 5000


def test_a_compressed_state_takes_fewer_bytes_down(tmp_path: Path) -> None:
    toy = write_toy(tmp_path / "wide", dim=128)
    size = 4 * (2 * 128 * 128 + 2 * 128)
    run_config = options(toy, compress_down="int8", num_server_rounds=2)
    grid = grid_of(run_config)
    flower_host.FedClip(run_config).start(grid)
    kinds = {kind for kind, _, _ in grid.traffic}
    assert {"train", "evaluate"} <= kinds
    for kind, down, _ in grid.traffic:
        if kind != "query":
            assert down <= 0.27 * size + 5000


def other_codec(arrays: dict[str, np.ndarray]) -> None:
    arrays["0.weight"] = arrays["0.weight"].astype(np.float32)


def negative(arrays: dict[str, np.ndarray]) -> None:
    arrays["2.weight:scale"] *= -1


@pytest.mark.parametrize(
    ("change", "reason"), [(other_codec, "float32"), (negative, "negative")]
)
def test_a_bad_payload_is_left_out(
    toy: Path, change: Any, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_config = options(toy, compress="int8", num_server_rounds=3)
    grid = grid_of(run_config, faults={99: in_training(with_arrays(change), 2)})
    result = flower_host.FedClip(run_config).start(grid)
    left_out = [result.train_metrics_clientapp[r]["left-out"] for r in (1, 2, 3)]
    assert left_out == [0, 1, 0]
    assert "update of client cartoon left out" in caplog.text
    assert reason in caplog.text


@pytest.mark.parametrize("way", ["compress", "compress_down"])
def test_a_strategy_that_cannot_decode_gets_a_refusal(toy: Path, way: str) -> None:
    run_config = options(toy, **{way: "int8"})
    grid = grid_of(run_config)
    arrays = flower_host.FedClip(run_config).initial_arrays(grid)
    replies = list(
        grid.send_and_receive(
            FedAvg(min_train_nodes=3, min_available_nodes=3).configure_train(
                1, arrays, _config(), grid
            )
        )
    )
    assert len(replies) == 3
    for reply in replies:
        assert "only fedclip's own strategy" in str(reply.error.reason)


def _config() -> Any:
    from flwr.app import ConfigRecord

    return ConfigRecord()


def test_a_state_that_cannot_be_read_is_named(toy: Path) -> None:
    """A server that says int8 and sends the adapter as it is."""
    run_config = options(toy, compress_down="int8")
    grid = grid_of(run_config)
    strategy = flower_host.FedClip(run_config)
    arrays = strategy.initial_arrays(grid)
    fed = strategy.host_run.fed
    plain = replace(fed.task.wire, compress_down="none")
    strategy.host_run.fed = replace(fed, task=replace(fed.task, wire=plain))
    messages = strategy.configure_train(1, arrays, _config(), grid)
    for reply in grid.send_and_receive(list(messages)):
        assert "what the server sent cannot be read: " in reply.error.reason


@pytest.mark.slow
def test_rays_clients_keep_what_they_lost(
    toy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower's simulation hands a client's state from actor to actor.

    The clients are cut by a protocol, and measured on the classes that none has seen.
    """
    pytest.importorskip("ray")
    from flwr.simulation import run_simulation

    protocol = {"classes": "base", "partition": "dirichlet", "clients": 3, "alpha": 0.5}
    # the clients have no run config
    for name, value in {"features": toy, **protocol}.items():
        monkeypatch.setenv(f"FEDCLIP_{name.upper()}", str(value))
    monkeypatch.setenv("FLWR_HOME", str(toy / "flwr"))
    server, ended = ServerApp(), {}
    out = toy.parent / "out"
    kept = {"compress": "topk", "optimizer_state": "keep", **protocol}

    @server.main()
    def main(grid: Any, context: Any) -> None:
        strategy = flower_host.FedClip(
            options(
                toy,
                num_server_rounds=3,
                min_available_nodes=3,
                out=str(out),
                **kept,
            )
        )
        ended["result"] = strategy.start(grid)

    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}}
    client = flower_host.make_client_app()
    run_simulation(server, client, num_supernodes=3, backend_config=resources)
    setup = Messages(toy).setup(rounds=3, **kept)
    *_, last = federate(setup.fed)
    assert equal(to_state(ended["result"].arrays), last.state)
    found = json.loads((out / "summary.json").read_text())["base_to_novel"]["result"]
    want = base_to_novel(setup.fed, setup.features, None, last.best)["result"]
    assert found == pytest.approx(want)
