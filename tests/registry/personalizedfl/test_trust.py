"""Quarantine and privacy under PersonalizedFL's loop."""

from __future__ import annotations

import json

import torch

from fedclip_plugin.algorithms.adapter import KEYS
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.registry.personalizedfl.algorithm import PersonalizedFedClip
from fedclip_plugin.server import privacy
from tests.registry.personalizedfl.world import embedded, make_loaders, open_world, play


def test_who_was_left_out_is_written_down(tmp_path, monkeypatch):
    world = open_world(tmp_path, monkeypatch)
    monkeypatch.setenv("FEDCLIP_OUT", str(tmp_path / "out"))
    algorithm, loaders = PersonalizedFedClip(world.args()), make_loaders(world)
    for i in range(4):
        algorithm.client_train(i, loaders[0][i], 0)
    with torch.no_grad():
        algorithm.client_model[1][0].weight.fill_(torch.nan)
        algorithm.client_model[2][0].weight.mul_(1e6)
    algorithm.server_aggre()
    play(algorithm, loaders, 1)
    algorithm.finish()
    text = (tmp_path / "out" / "quarantined.jsonl").read_text()
    first, second = map(json.loads, text.splitlines())
    assert (first["round"], first["client"]) == (1, "cartoon")
    assert "NaN" in first["reason"]
    assert (second["round"], second["client"]) == (1, "photo")
    assert second["norm"] > 100 * second["median_norm"]


def test_privacy_gives_the_embedded_adapter_and_is_accounted(tmp_path, monkeypatch):
    world = open_world(tmp_path, monkeypatch)
    change = {"dp_noise_multiplier": 2.0, "dp_clip": 0.1, "dp_seed": "run"}
    for name, value in change.items():
        monkeypatch.setenv(f"FEDCLIP_{name.upper()}", str(value))
    algorithm = PersonalizedFedClip(world.args())
    play(algorithm, make_loaders(world), 4)
    algorithm.finish()
    train = dict(rounds=4, batch_size=8, lr=0.01, **change)
    *_, last = federate(embedded(world.features, train, seed=3))
    ours = algorithm.server_model.state_dict()
    assert all(torch.equal(ours[key], last.state[key]) for key in KEYS)
    config = algorithm.run.fed.task.privacy
    spent = algorithm.run.now.progress.epsilon
    assert spent == last.progress.epsilon == privacy.epsilon(config, ((4, 4, 4),))
