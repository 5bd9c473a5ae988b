"""What clients keep predicts for them; a held-out domain sees the shared state."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedclip_plugin.algorithms import ALGORITHMS, with_values
from fedclip_plugin.algorithms.base import kept_state
from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.export.trained import read_trained
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.federation.evaluation import predict_labels, score_clients
from fedclip_plugin.federation.metrics import accuracy
from fedclip_plugin.federation.personalization import personalize
from fedclip_plugin.federation.rounds import as_sent
from fedclip_plugin.wire.compression import RESIDUAL
from fedclip_plugin.wire.update import flatten, private_part
from tests.federation.personal import OwnBias
from tests.federation.toy import checkpointed, toy_features, write_toy


@pytest.fixture(autouse=True)
def own_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ALGORITHMS._items, OwnBias.name, OwnBias)


def make(target: str | None = "photo", **chosen: Any) -> Federation:
    settings = {"rounds": 4, "batch_size": 8, **chosen}
    config = with_values(RunConfig("own-bias", data=DataConfig("toy")), settings)
    return build_federation(toy_features(), config, target, seed=0)


def test_a_client_predicts_with_what_it_keeps():
    fed = make()
    *_, last = federate(fed)
    assert last.result is not None
    for client in fed.clients:
        own = {**last.state, "own": last.kept[client.name]["own"]}
        found = predict_labels(fed.algorithm, own, client.test, fed.task)
        scores = last.result.clients[client.name]
        assert scores["test"] == accuracy(found, client.test.y)
    shared = score_clients(fed.algorithm, last.state, fed.clients, fed.task)
    assert shared != last.result.clients, "what is kept changes nothing: no test"


def test_the_target_is_judged_by_the_shared_state():
    fed = make()
    *_, last = federate(fed)
    assert last.result is not None
    found = predict_labels(fed.algorithm, last.state, fed.target, fed.task)
    assert last.result.target == accuracy(found, fed.target.y)


def test_residuals_do_not_predict():
    fed = make(compress="int8", rounds=2)
    *_, last = federate(fed)
    for name, kept in last.kept.items():
        assert {"own", RESIDUAL + "weight"} <= kept.keys()
        assert private_part(kept).keys() == {"own"} == last.best_kept[name].keys()
    client = fed.clients[0].with_kept(last.kept)
    assert fed.algorithm.client_state(last.state, client).keys() == {
        *last.state,
        "own",
    }


def test_the_best_round_keeps_its_own_and_resumes(tmp_path):
    fed = make(participation=0.5, rounds=6)
    *_, whole = federate(fed)
    for now in checkpointed(
        make(participation=0.5, rounds=6), Checkpoint(tmp_path, "")
    ):
        if now.progress.round == 3:
            break
    *_, resumed = checkpointed(
        make(participation=0.5, rounds=6), Checkpoint(tmp_path, "")
    )
    for one in ("kept", "best_kept"):
        a, b = flatten(getattr(whole, one)), flatten(getattr(resumed, one))
        assert a.keys() == b.keys()
        assert a
        assert all(torch.equal(a[k], b[k]) for k in a)
    again = Checkpoint(tmp_path, "").load(make())
    assert again is not None
    assert flatten(again.best_kept).keys() == flatten(whole.best_kept).keys()


def test_training_that_ends_in_nan_leaves_what_was_kept():
    fed = make(compress="int8")
    client = fed.clients[0]
    update = fed.algorithm.local_train(fed.first, client, fed.task, 1)
    (sound,) = as_sent(fed, fed.first, [update], {})
    assert "own" in sound.kept
    for spoilt in (
        replace(update, kept={"own": update.kept["own"] * torch.nan}),
        replace(update, state={k: v * torch.nan for k, v in update.state.items()}),
    ):
        (sent,) = as_sent(fed, fed.first, [spoilt], {})
        assert "own" not in sent.kept


def test_what_is_kept_has_to_fit():
    client = replace(make().clients[0], kept={"own": torch.zeros(3)})
    with pytest.raises(RunError, match=r"own, kept from the round before, is \(3,\)"):
        kept_state(client, {"own": torch.zeros(4)})


def test_privacy_is_refused():
    with pytest.raises(ConfigError, match="own-bias: what its clients keep ties"):
        make(dp_noise_multiplier=1.0, dp_clip=1.0)


@pytest.mark.parametrize("method", ["finetune", "mix"])
def test_personalization_starts_from_what_is_kept(method):
    fed = make()
    *_, last = federate(fed)
    fed, states = fed.with_kept(last.best_kept), {}
    summary = personalize(fed, last.best, method, states.__setitem__)
    for client in fed.clients:
        row, state = summary["clients"][client.name], states[client.name]
        own = fed.algorithm.client_state(last.best, client)
        found = predict_labels(fed.algorithm, own, client.test, fed.task)
        assert row["shared"] == accuracy(found, client.test.y)
        assert "own" in state
        if not row["choice"]:
            assert torch.equal(state["own"], own["own"])
    assert set(summary["new_clients"]) == {"target"}


def run(tmp_path: Path, alg: str) -> Path:
    out = tmp_path / alg
    argv = ["run", "--features", write_toy(tmp_path / "f"), "--target", "photo"]
    argv += ["--rounds", 2, "--alg", alg, "--out", out]
    assert main([str(a) for a in argv]) == 0
    return out


def test_files_hold_both_parts(tmp_path):
    out = run(tmp_path, "own-bias")
    trained = read_trained(out)
    assert trained.shared.keys() == {"weight", "bias"}
    assert trained.width == 16
    assert "art/own" in trained.state
    art = read_trained(out, "art").state
    assert torch.equal(art["own"], trained.state["art/own"])
    assert art.keys() == {"weight", "bias", "own"}
    with pytest.raises(RunError, match="no adapter of a client 'horse'"):
        read_trained(out, "horse")
    assert json.loads((out / "summary.json").read_text())["notes"] == []


def test_where_each_client_has_a_model_there_is_no_shared_one(tmp_path):
    out = run(tmp_path, "local")
    with pytest.raises(ConfigError, match="name a client, one of art, cartoon"):
        _ = read_trained(out).shared
    assert read_trained(out, "art").shared.keys() == {
        "0.weight", "0.bias", "2.weight", "2.bias"
    }  # fmt: skip
