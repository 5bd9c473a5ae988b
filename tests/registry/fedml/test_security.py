"""FedML's own defenses and privacy around FedCLIP, in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin.registry import fedml_host
from fedclip_plugin.registry.fedml.settings import bind
from tests.registry.fedml.runs import close, namespace
from tests.registry.fedml.world import fresh_fedml, secured, simulate, state_of  # noqa: F401


def test_norm_clipping_bounds_every_update(features):
    """FedML's clipped updates move the model by the bound at most."""
    plain = simulate(namespace(features, comm_round=1))
    start = dict(fedml_host.create_model(namespace(features)).state_dict())

    def moved(api: Any) -> float:
        diff = [(state_of(api)[k] - start[k]).flatten() for k in start]
        return float(torch.cat(diff).norm())

    bound = moved(plain) / 10
    args = secured(
        features, enable_defense=True, defense_type="norm_diff_clipping",
        norm_bound=bound,
    )  # fmt: skip
    clipped = moved(simulate(args))
    assert 0 < clipped <= bound * 1.001


def test_krum_chooses_one_update(features):
    from fedml.core.security.defense.krum_defense import KrumDefense

    args = secured(
        features, enable_defense=True, defense_type="krum", byzantine_client_num=0,
    )  # fmt: skip
    api = simulate(args)
    fed = bind(args).setup.fed
    sent = fed.algorithm.init(fed.task)
    updates = fed.algorithm.local_round(sent, fed.clients, fed.task, 1)
    raw = [(u.num_examples, u.state) for u in updates]
    ((_, chosen),) = KrumDefense(args).defend_before_aggregation(raw)
    assert close(state_of(api), chosen)


def test_a_defense_inside_aggregation_runs_with_our_weights(features):
    args = secured(features, enable_defense=True, defense_type="wise_median")
    api = simulate(args)
    fed = bind(args).setup.fed
    sent = fed.algorithm.init(fed.task)
    updates = fed.algorithm.local_round(sent, fed.clients, fed.task, 1)
    median = {
        key: torch.stack([u.state[key] for u in updates]).median(dim=0).values
        for key in sent
    }
    assert close(state_of(api), median)
    assert args.federated_optimizer == "FedCLIP"


@pytest.mark.parametrize("kind", ["cdp", "ldp"])
def test_privacy_noise_is_added(features, kind):
    """Central: to the average; local: by each client, so its mean is smaller."""
    plain = state_of(simulate(namespace(features, comm_round=1)))
    args = secured(
        features, enable_dp=True, dp_solution_type=kind, mechanism_type="gaussian",
        epsilon=0.9, delta=1e-5, sensitivity=1e-3,
    )  # fmt: skip
    torch.manual_seed(0)
    noisy = state_of(simulate(args))
    off = torch.cat([(noisy[key] - plain[key]).flatten() for key in plain])
    from fedml.core.dp.fedml_differential_privacy import FedMLDifferentialPrivacy

    privacy = FedMLDifferentialPrivacy.get_instance().dp_solution
    scale = (privacy.cdp or privacy.ldp).dp.scale
    want = float(scale) / (1 if kind == "cdp" else 3**0.5)
    assert float(off.std()) == pytest.approx(want, rel=0.15)
