"""Compressed updates in the real FedML, in one process."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import pytest
import torch

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin.errors import ConfigError
from fedclip_plugin.federation.downlink import broadcast
from fedclip_plugin.federation.rounds import train_clients
from fedclip_plugin.registry import fedml_host
from fedclip_plugin.wire import spool
from fedclip_plugin.wire.compression import decoded
from fedclip_plugin.wire.update import State
from tests.registry.contract import distance
from tests.registry.fedml.runs import namespace, options
from tests.registry.fedml.world import fresh_fedml, secured, simulate, state_of

__all__ = ["fresh_fedml"]  # a fixture for every test here too

VARIANTS = [
    {"fedclip_compress": "fp16"},
    {"fedclip_compress": "int8"},
    {"fedclip_compress": "int4", "client_num_per_round": 2},
    {"fedclip_compress": "topk", "fedclip_topk_share": 0.1},
    {"fedclip_compress": "int4", "fedclip_compress_down": "int4"},
    {"fedclip_optimizer_state": "keep"},
    {"fedclip_compress": "topk", "fedclip_optimizer_state": "keep"},
]


class OneByOne(fedml_host.FedCLIPTrainer):  # type: ignore[misc]
    """A trainer that FedML's loop asks client by client, as MPI does."""


@pytest.mark.parametrize("change", VARIANTS)
def test_a_derived_trainer_sends_the_same(features, change):
    values = options(features, **change)
    one = simulate(namespace(features, **values), client_trainer=OneByOne)
    two = simulate(namespace(features, **values))
    assert distance(state_of(one), state_of(two)) == 0
    sizes = [a.server_aggregator.run.now.result.bytes_up for a in (one, two)]
    assert one.server_aggregator.run.now.progress.quarantined == 0
    assert sizes[0] <= sizes[1]  # FedML's loop hands over no metrics


@pytest.mark.parametrize("change", [{}, VARIANTS[1], {"fedclip_alg": "gda"}])
def test_a_round_that_waits_on_the_disk_ends_in_the_same_bits(
    features, change, tmp_path, monkeypatch
):
    values = options(features, **change)
    one = simulate(namespace(features, **values))
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path))
    monkeypatch.setenv("FEDCLIP_UPDATE_MEMORY", "0")
    two = simulate(namespace(features, **values))
    assert (tmp_path / "spool").is_dir()
    assert distance(state_of(one), state_of(two)) == 0


@pytest.mark.parametrize("change", [{}, VARIANTS[1]])
def test_what_ranks_send_waits_on_the_disk(features, change, tmp_path, monkeypatch):
    """As the servers of MPI and cross-silo take it in, one after the other."""
    states = []
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path))
    for limit in ("", "0"):
        monkeypatch.setenv("FEDCLIP_UPDATE_MEMORY", "")
        args = namespace(features, **options(features, **change))
        fedml_host.load(args)
        server = fedml_host.FedCLIPAggregator(fedml_host.create_model(args), args)
        fed, opened = server.binding.setup.fed, server.opened
        updates = train_clients(fed, opened.sent.seen, fed.clients, 1)
        monkeypatch.setenv("FEDCLIP_UPDATE_MEMORY", limit)
        raw = [(u.num_examples, server.keep(OrderedDict(u.state))) for u in updates]
        assert server.keep(None) is None
        assert spool.on_disk() == bool(limit)
        states.append(server.close_round(raw))
    assert distance(*states) == 0


def test_a_trainer_that_does_not_compress_is_refused(features):
    from fedml.core import ClientTrainer

    class Plain(ClientTrainer):  # type: ignore[misc]
        def get_model_params(self) -> Any:
            return self.model.state_dict()

        def set_model_params(self, model_parameters: Any) -> None:
            self.model.load_state_dict(model_parameters)

        def train(self, train_data: Any, device: Any, args: Any) -> None:
            pass

    args = namespace(features, fedclip_compress="int8")
    with pytest.raises(ConfigError, match="derived from FedCLIPTrainer"):
        simulate(args, client_trainer=Plain)


@pytest.mark.parametrize("codec", ["int8", "topk"])
def test_fedmls_hooks_see_decoded_adapters(features, codec, monkeypatch):
    from fedml.core.security.defense.norm_diff_clipping_defense import (
        NormDiffClippingDefense,
    )

    args = secured(
        features, enable_defense=True, defense_type="norm_diff_clipping",
        norm_bound=5.0, fedclip_compress=codec,
    )  # fmt: skip
    seen: list[State] = []
    honest = NormDiffClippingDefense.defend_before_aggregation

    def watch(self: Any, raw_client_grad_list: Any, extra_auxiliary_info: Any) -> Any:
        seen.extend(state for _, state in raw_client_grad_list)
        return honest(self, raw_client_grad_list, extra_auxiliary_info)

    monkeypatch.setattr(NormDiffClippingDefense, "defend_before_aggregation", watch)
    model = fedml_host.create_model(args)
    server = fedml_host.FedCLIPAggregator(model, args)
    fed = server.binding.setup.fed
    updates = train_clients(fed, dict(model.state_dict()), fed.clients, 1)
    server.close_round([(u.num_examples, u.state) for u in updates])
    want = decoded(updates, fed.algorithm.init(fed.task))
    assert len(seen) == 3
    for got, update in zip(seen, want):
        assert distance(dict(got), update.state) == 0


def test_a_defense_keeps_what_the_clients_did_not_see(features):
    args = secured(
        features, enable_defense=True, defense_type="norm_diff_clipping",
        norm_bound=5.0, fedclip_compress_down="int4",
    )  # fmt: skip
    model = fedml_host.create_model(args)
    server = fedml_host.FedCLIPAggregator(model, args)
    fed = server.binding.setup.fed
    draw = torch.Generator().manual_seed(3)
    state = {
        key: value + 1e-2 * torch.randn(value.shape, generator=draw)
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    seen = broadcast(fed, state).seen
    assert distance(seen, state) > 1e-3
    server.close_round([(10, seen) for _ in fed.clients])  # nobody moved
    assert distance(dict(model.state_dict()), state) <= 1e-6


@pytest.mark.parametrize("codec", ["int8", "topk"])
def test_a_payload_that_is_none_is_named(features, codec, caplog):
    args = namespace(features, fedclip_compress=codec, fedclip_max_norm_ratio=0)
    model = fedml_host.create_model(args)
    server = fedml_host.FedCLIPAggregator(model, args)
    fed, sent = server.binding.setup.fed, dict(model.state_dict())
    first, second, third = train_clients(fed, sent, fed.clients, 1)
    plain = {key: value.clone() for key, value in sent.items()}
    torn = {**second.state, "0.weight:scale": torch.tensor([torch.nan])}
    raw = [(10, plain), (10, torn), (third.num_examples, third.state)]
    server.close_round(raw)
    want = decoded([third], fed.algorithm.init(fed.task))[0].state
    assert distance(dict(model.state_dict()), want) <= 1e-6
    assert f"client {first.client} left out: keys" in caplog.text
    assert f"client {second.client} left out: 0.weight ({codec})" in caplog.text
