"""FedML's own defenses and privacy around the adapter exchange, in real processes."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin.registry.fedml.settings import bind
from fedclip_plugin.wire.update import State
from tests.registry.fedml.runs import (
    adapter,
    close,
    finish,
    namespace,
    options,
    silo_commands,
    write_addresses,
    write_yaml,
)

EXAMPLE = Path(__file__).resolve().parents[3] / "examples/fedml/defense.py"


def example() -> Any:
    spec = importlib.util.spec_from_file_location("fedml_defense_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_example_shows_a_defense_at_work(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    defense = example()
    found = {
        name: defense.run(defense.VARIATIONS[name], tmp_path / str(i), 3)
        for i, name in enumerate(("2 of 8 lie", "2 of 8 lie, Multi-Krum"))
    }
    (_, undefended), (_, defended) = found.values()
    assert defended > undefended + 0.02


def silo(features: Path, tmp_path: Path, **more: Any) -> State:
    """The adapter of one cross-silo round with two clients."""
    path = write_addresses(tmp_path / "grpc_ipconfig.csv", 3)
    values = options(
        features, training_type="cross_silo", backend="GRPC", fedclip_out="out",
        grpc_ipconfig_path=str(path), fedclip_target="photo", comm_round=1, **more,
    ) | {"client_num_in_total": 2, "client_num_per_round": 2}  # fmt: skip
    cf = write_yaml(tmp_path / "fedml_config.yaml", values)
    results = finish(tmp_path, silo_commands(cf, 3))
    assert [code for code, _ in results] == [0, 0, 0], results[0][1]
    return adapter(tmp_path / "out")


def honest(features: Path) -> tuple[Any, State, list[State]]:
    """What two clients send in the first round, and what they were sent."""
    args = namespace(features, fedclip_target="photo")
    args.client_num_in_total = args.client_num_per_round = 2
    fed = bind(args).setup.fed
    sent = fed.algorithm.init(fed.task)
    updates = fed.algorithm.local_round(sent, fed.clients, fed.task, 1)
    return fed, sent, [u.state for u in updates]


def test_clipping_in_cross_silo(features, tmp_path):
    """FedML's norm_diff_clipping, of the updates that came over the wire."""
    _, sent, states = honest(features)
    bound = 1e-3

    def clipped(state: State) -> State:
        moved = torch.cat([(state[k] - sent[k]).flatten() for k in sent])
        factor = max(1.0, float(moved.norm()) / bound)
        assert factor > 2
        return {k: sent[k] + (state[k] - sent[k]) / factor for k in sent}

    parts = [clipped(state) for state in states]
    want = {k: (parts[0][k] + parts[1][k]) / 2 for k in sent}
    secured = {
        "enable_defense": True, "defense_type": "norm_diff_clipping",
        "norm_bound": bound,
    }  # fmt: skip
    assert close(silo(features, tmp_path, **secured), want)


def test_local_privacy_in_cross_silo(features, tmp_path):
    """Each client adds its noise before it sends: the server sees no adapter bare."""
    _, sent, states = honest(features)
    keys = {"epsilon": 0.9, "delta": 1e-5, "sensitivity": 1e-3}
    found = silo(
        features, tmp_path, enable_dp=True, dp_solution_type="ldp",
        mechanism_type="gaussian", **keys,
    )  # fmt: skip
    bare = {k: (states[0][k] + states[1][k]) / 2 for k in sent}
    off = torch.cat([(found[k] - bare[k]).flatten() for k in sent])
    scale = math.sqrt(2 * math.log(1.25 / 1e-5)) * 1e-3 / 0.9
    assert float(off.std()) == pytest.approx(scale / math.sqrt(2), rel=0.15)


def test_a_liar_cannot_stop_a_defense_that_needs_many(features, caplog):
    """Without its update Krum has too few: the model stays, and the server runs on."""
    from fedml.core.security.fedml_defender import FedMLDefender

    from fedclip_plugin.registry import fedml_host

    args = namespace(features, comm_round=2)
    args.enable_defense, args.defense_type = True, "krum"
    args.byzantine_client_num = 0
    try:
        server = fedml_host.FedCLIPAggregator(fedml_host.create_model(args), args)
        sent = dict(fedml_host.create_model(args).state_dict())
        states = [dict(sent) for _ in range(3)]
        states[0] = {k: v * float("nan") for k, v in sent.items()}
        after = server.close_round([(5, state) for state in states[:2]])
        assert close(after, sent)
        assert "a defense of FedML's refuses" in caplog.text
        FedMLDefender.get_instance().defender.byzantine_client_num = 5
        with pytest.raises(ValueError, match="byzantine_client_num"):
            server.close_round([(5, sent)] * 3)
    finally:
        FedMLDefender._defender_instance = None
