"""Quarantine and privacy in the real FedML, in one process."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin.errors import ConfigError
from fedclip_plugin.registry import fedml_host
from fedclip_plugin.registry.fedml.settings import bind
from fedclip_plugin.server import privacy
from tests.registry.fedml.runs import distance, embedded, namespace, options

PRIVATE = {
    "fedclip_dp_noise_multiplier": 2.0,
    "fedclip_dp_clip": 0.1,
    "fedclip_dp_seed": "run",
}


@pytest.fixture(autouse=True)
def fresh_fedml(features):
    """FedML keeps its privacy in a singleton; it outlives a run.

    Without ``pre_setup`` it would ask its servers at the first log line.
    """
    import fedml
    from fedml.core.dp.fedml_differential_privacy import FedMLDifferentialPrivacy
    from fedml.core.security.fedml_defender import FedMLDefender

    fedml.mlops.pre_setup(namespace(features))
    yield
    FedMLDifferentialPrivacy._dp_instance = None
    FedMLDefender._defender_instance = None


def simulate(args: Any) -> Any:
    """FedML's sp simulation by hand: nothing is patched."""
    import fedml

    dataset, _ = fedml_host.load(args)
    device, model = torch.device("cpu"), fedml_host.create_model(args)
    flow = fedml_host.FedCLIPAPI(args, device, dataset, model)
    fedml.FedMLRunner(args, device, dataset, model, algorithm_flow=flow).run()
    return flow


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_who_was_left_out_is_written_down(features, tmp_path):
    args = namespace(features, comm_round=1, fedclip_out="out")
    setup, model = bind(args).setup, fedml_host.create_model(args)
    fed, sent = setup.fed, dict(model.state_dict())
    server = fedml_host.FedCLIPAggregator(model, args)
    updates = fed.algorithm.local_round(sent, fed.clients, fed.task, 1)
    states = [u.state for u in updates]
    states[1] = {k: torch.full_like(v, torch.nan) for k, v in states[1].items()}
    states[2] = {k: 1e6 * v for k, v in states[2].items()}
    server.close_round([(u.num_examples, s) for u, s in zip(updates, states)])
    first, second = lines_of(tmp_path / "out" / "quarantined.jsonl")
    assert (first["round"], first["client"]) == (1, "cartoon")
    assert "NaN" in first["reason"]
    assert second["client"] == "photo"
    assert second["norm"] > 100 * second["median_norm"]


def test_privacy_gives_the_embedded_adapter_and_is_accounted(features, tmp_path):
    values = options(features, fedclip_out="out", **PRIVATE)
    flow = simulate(namespace(features, **values))
    last = embedded(values)
    assert distance(dict(flow.model.state_dict()), last.state) <= 1e-6
    lines = lines_of(tmp_path / "out" / "metrics.jsonl")
    assert [line["epsilon"] for line in lines] == [
        privacy.epsilon(bind(flow.args).setup.fed.task.privacy, ((3, 3, n),))
        for n in (1, 2, 3)
    ]
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["privacy"]["epsilon"] == last.progress.epsilon


def test_fedmls_sampling_is_public_and_saves_nothing(features):
    values = {**PRIVATE, "client_num_per_round": 2, "comm_round": 2}
    flow = simulate(namespace(features, **values))
    config = bind(flow.args).setup.fed.task.privacy
    found = flow.server_aggregator.run.now.progress.epsilon
    assert found == privacy.epsilon(config, ((2, 2, 2),))


def test_noise_comes_even_if_nobody_is_sound(features):
    args = namespace(features, comm_round=1, **PRIVATE)
    model = fedml_host.create_model(args)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    server = fedml_host.FedCLIPAggregator(model, args)
    bad = {key: torch.full_like(value, torch.nan) for key, value in before.items()}
    assert distance(server.close_round([(5, bad)] * 3), before) > 0


@pytest.mark.parametrize(
    "theirs",
    [
        {
            "enable_dp": True,
            "dp_solution_type": "cdp",
            "sensitivity": 1e-3,
            "mechanism_type": "gaussian",
            "epsilon": 0.9,
            "delta": 1e-5,
        },
        {"enable_defense": True, "defense_type": "krum", "byzantine_client_num": 0},
    ],
    ids=["dp", "defense"],
)
def test_fedmls_privacy_and_ours_do_not_go_together(features, theirs):
    args = namespace(features, **PRIVATE)
    model = fedml_host.create_model(namespace(features))
    vars(args).update(theirs)
    with pytest.raises(ConfigError, match=f"{next(iter(theirs))}.*choose one"):
        fedml_host.FedCLIPTrainer(model, args)
