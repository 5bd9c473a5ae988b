"""Compressed updates, and what clients keep, under PersonalizedFL's loop."""

from __future__ import annotations

import pytest
import torch

from fedclip_plugin.algorithms.adapter import KEYS
from fedclip_plugin.federation.downlink import broadcast
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.registry.personalizedfl.algorithm import PersonalizedFedClip
from tests.registry.personalizedfl.world import embedded, make_loaders, open_world, play

VARIANTS = [
    {"compress": "int8"},
    {"compress": "topk", "topk_share": 0.1},
    {"optimizer_state": "keep"},
    {"compress": "int4", "optimizer_state": "keep"},
    {"compress": "int4", "compress_down": "int4"},
]


@pytest.mark.parametrize("wk_iters", [1, 2])
@pytest.mark.parametrize("change", VARIANTS)
def test_the_adapter_is_that_of_the_embedded_engine(
    tmp_path, monkeypatch, change, wk_iters
):
    world = open_world(tmp_path, monkeypatch)
    for name, value in change.items():
        monkeypatch.setenv(f"FEDCLIP_{name.upper()}", str(value))
    algorithm = PersonalizedFedClip(world.args(wk_iters=wk_iters))
    play(algorithm, make_loaders(world), 4, wk_iters)
    algorithm.finish()
    train = dict(rounds=4, local_epochs=wk_iters, batch_size=8, lr=0.01, **change)
    fed = embedded(world.features, train, seed=3)
    *_, last = federate(fed)
    ours, seen = algorithm.server_model.state_dict(), broadcast(fed, last.state).seen
    assert list(ours) == list(KEYS)
    assert all(torch.equal(ours[key], seen[key]) for key in KEYS)
    assert all(torch.equal(algorithm.run.state[k], last.state[k]) for k in KEYS)
    found = algorithm.run.now.result
    assert found.bytes_up == last.result.bytes_up
    assert found.bytes_down == last.result.bytes_down


def test_a_spoilt_model_is_left_out_and_comes_back(tmp_path, monkeypatch, caplog):
    world = open_world(tmp_path, monkeypatch)
    monkeypatch.setenv("FEDCLIP_COMPRESS", "int8")
    algorithm, loaders = PersonalizedFedClip(world.args()), make_loaders(world)
    for spoil in (torch.nn.Linear(3, 3), None):
        for i in range(4):
            algorithm.client_train(i, loaders[0][i], 0)
        if spoil is not None:
            algorithm.client_model[1] = spoil
        algorithm.server_aggre()
    assert caplog.text.count("client cartoon left out: keys") == 1
    algorithm.finish()
