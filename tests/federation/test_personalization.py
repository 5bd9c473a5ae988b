"""Personalization: chosen on validation rows, reported on test rows."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig, TrainConfig
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.federation.evaluation import predict_labels
from fedclip_plugin.federation.metrics import accuracy
from fedclip_plugin.federation.personalization import EPOCHS, SHARES, personalize
from fedclip_plugin.settings.sources import configure
from fedclip_plugin.storage.tensors import read_tensors
from tests.federation.toy import toy_features, write_toy


@pytest.fixture
def trained() -> tuple[Federation, dict]:
    train = TrainConfig(rounds=2, batch_size=8, lr=3e-3, weight_decay=0.0)
    config = RunConfig(data=DataConfig(dataset="toy"), train=train)
    fed = build_federation(toy_features(rows=150), config, "photo", seed=0)
    *_, last = federate(fed)
    return fed, last.best


def run(fed: Federation, shared: dict, method: str) -> tuple[dict, dict]:
    states: dict[str, dict] = {}
    return personalize(fed, shared, method, states.__setitem__), states


def test_finetuning_is_more_local_epochs(trained):
    fed, shared = trained
    summary, states = run(fed, shared, "finetune")
    for client in fed.clients:
        row = summary["clients"][client.name]
        assert row["choice"] in (0, *EPOCHS)
        if row["choice"]:
            longer = replace(fed.task.train, local_epochs=int(row["choice"]))
            task = replace(fed.task, train=longer)
            want = fed.algorithm.local_train(shared, client, task, 3).state
        else:
            want = shared
        assert all(torch.equal(states[client.name][k], want[k]) for k in want)
        y = predict_labels(fed.algorithm, states[client.name], client.test, fed.task)
        assert row["personal"] == accuracy(y, client.test.y)


@pytest.mark.parametrize("method", ["finetune", "mix"])
def test_the_choice_never_loses_on_validation_rows(method, trained):
    fed, shared = trained

    def val(state, client):
        found = predict_labels(fed.algorithm, state, client.val, fed.task)
        return accuracy(found, client.val.y)

    summary, states = run(fed, shared, method)
    for client in fed.clients:
        own = val(states[client.name], client)
        if summary["clients"][client.name]["choice"]:
            assert own > val(shared, client)
        else:
            assert states[client.name] is shared
    moved = [row["choice"] for row in summary["clients"].values()]
    assert any(moved), "nothing was personalized: the test says nothing"


def test_mix_interpolates(trained):
    fed, shared = trained
    summary, states = run(fed, shared, "mix")
    name, row = next((n, r) for n, r in summary["clients"].items() if r["choice"])
    assert row["choice"] in SHARES
    client = next(c for c in fed.clients if c.name == name)
    task = replace(fed.task, train=replace(fed.task.train, local_epochs=EPOCHS[-1]))
    own = fed.algorithm.local_train(shared, client, task, 3).state
    for key, value in states[name].items():
        want = (1 - row["choice"]) * shared[key] + row["choice"] * own[key]
        torch.testing.assert_close(value, want)


def test_the_held_out_domain_is_a_new_client(trained):
    fed, shared = trained
    summary, _ = run(fed, shared, "finetune")
    assert list(summary["new_clients"]) == ["target"]
    alone, _ = run(replace(fed, target=None), shared, "finetune")
    assert alone["new_clients"] == {}
    assert alone["clients"] == summary["clients"]


def test_gains_are_means_over_the_clients(trained):
    fed, shared = trained
    summary, _ = run(fed, shared, "finetune")
    rows = summary["clients"].values()
    gain = sum(r["personal"] - r["shared"] for r in rows) / len(rows)
    assert summary["gain_over_shared"]["mean"] == pytest.approx(gain)
    assert summary["gain_over_shared"]["ci95"] > 0


def test_a_client_without_validation_rows_keeps_the_shared_adapter(trained):
    fed, shared = trained
    first = fed.clients[0]
    bare = replace(first, val=type(first.val)(first.val.x[:0], first.val.y[:0]))
    fed = replace(fed, clients=(bare, *fed.clients[1:]))
    summary, states = run(fed, shared, "mix")
    assert summary["clients"][first.name]["choice"] == 0
    assert states[first.name] is shared


def test_the_command_writes_and_prints_it(tmp_path, capsys):
    argv = ["run", "--features", write_toy(tmp_path / "f"), "--target", "photo"]
    argv += ["--rounds", 2, "--personalize", "finetune", "--out", tmp_path / "out"]
    assert main([str(a) for a in argv]) == 0
    assert "personalized: clients" in capsys.readouterr().out
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert set(summary["personalization"]["clients"]) == {"art", "cartoon"}
    for name in ("art", "cartoon", "target"):
        state, meta = read_tensors(
            tmp_path / "out" / "personal" / f"{name}.safetensors"
        )
        assert set(state) == {"0.weight", "0.bias", "2.weight", "2.bias"}
        assert json.loads(meta["classes"]) == [f"class{i}" for i in range(4)]


@pytest.mark.parametrize("method", ["finetune", "mix"])
def test_what_sends_no_model_cannot_be_personalized(tmp_path, capsys, method):
    argv = ["run", "--features", write_toy(tmp_path / "f"), "--target", "photo"]
    argv += ["--alg", "fedpft", "--personalize", method, "--out", tmp_path / "out"]
    assert main([str(a) for a in argv]) == 2
    assert f"leave out --personalize {method}" in capsys.readouterr().err


@pytest.mark.parametrize("alg", ["gda", "tofa", "linear", "fedot", "fedmedclip"])
def test_whatever_predicts_by_itself_can_be_personalized(alg):
    config = configure({"alg": alg, "rounds": 1, "personalize": "mix"})
    fed = build_federation(toy_features(), config, "photo", seed=0)
    *_, last = federate(fed)
    summary, states = run(fed, last.best, "mix")
    assert set(summary["clients"]) == {client.name for client in fed.clients}
    for client in fed.clients:
        found = predict_labels(
            fed.algorithm, states[client.name], client.test, fed.task
        )
        row = summary["clients"][client.name]
        assert row["personal"] == accuracy(found, client.test.y)
