"""Quarantine and privacy in the real FedML, in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin.errors import ConfigError
from fedclip_plugin.registry import fedml_host
from fedclip_plugin.registry.fedml.settings import bind
from fedclip_plugin.server import privacy
from tests.registry.fedml.runs import namespace

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


def test_fedmls_sampling_is_public_and_saves_nothing(features):
    values = {**PRIVATE, "client_num_per_round": 2, "comm_round": 2}
    flow = simulate(namespace(features, **values))
    config = bind(flow.args).setup.fed.task.privacy
    found = flow.server_aggregator.run.now.progress.epsilon
    assert found == privacy.epsilon(config, ((2, 2, 2),))


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
