from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.federation.build import build_federation, identity, participants
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.engine import Run, federate, run_round
from fedclip_plugin.federation.evaluation import score_zero_shot
from fedclip_plugin.storage.tensors import write_tensors
from fedclip_plugin.wire.compression import RESIDUAL
from fedclip_plugin.wire.update import ClientUpdate
from tests.federation.toy import DOMAINS, checkpointed, toy_features, write_toy


def make_config(**train: object) -> RunConfig:
    return with_values(RunConfig(), {"rounds": 4, "lr": 1e-3, **train})


def make(target: str | None = "photo", **train: object):
    return build_federation(toy_features(), make_config(**train), target, seed=0)


def test_every_source_domain_is_a_client_and_the_target_is_whole():
    fed = make("cartoon")
    assert [c.name for c in fed.clients] == ["art", "photo"]
    assert [c.index for c in fed.clients] == [0, 2]
    assert len(fed.target) == 60
    assert [len(s) for c in fed.clients[:1] for s in (c.train, c.val, c.test)] == [
        36,
        12,
        12,
    ]


def test_training_lifts_target_and_clients_over_zero_shot():
    config = make_config(rounds=30, lr=1e-2, weight_decay=0.0)
    fed = build_federation(toy_features(rows=400), config, "photo", seed=0)
    before: Any = score_zero_shot(fed.clients, fed.target, fed.task)
    standings = list(federate(fed))
    first, last = standings[1].result, standings[-1].result
    assert last.loss < 0.7 * first.loss
    assert last.target > before["target"]
    assert last.mean_test > sum(before["clients"].values()) / 2


def test_best_round_is_the_first_of_the_highest_validation():
    standings = list(federate(make(rounds=8)))
    values = [s.result.mean_val for s in standings[1:]]
    progress = standings[-1].progress
    assert progress.best_round == 1 + values.index(max(values))
    assert progress.best_score == max(values)
    best = standings[progress.best_round].state
    assert all(torch.equal(best[k], v) for k, v in standings[-1].best.items())


def test_same_seed_same_bits_other_seed_others():
    runs = [list(federate(make()))[-1].state for _ in range(2)]
    other = build_federation(toy_features(), make_config(), "photo", seed=1)
    third = list(federate(other))[-1].state
    assert all(torch.equal(runs[0][k], runs[1][k]) for k in runs[0])
    assert not torch.equal(runs[0]["0.weight"], third["0.weight"])


def test_broken_and_resumed_run_ends_in_the_same_bits(tmp_path):
    whole = list(federate(make(rounds=6)))[-1]
    for standing in checkpointed(make(rounds=6), Checkpoint(tmp_path, "id")):
        if standing.progress.round == 4:
            break  # as if killed before the checkpoint of round 4
    resumed = list(checkpointed(make(rounds=6), Checkpoint(tmp_path, "id")))
    assert resumed[0].progress.round == 3
    assert all(torch.equal(whole.state[k], v) for k, v in resumed[-1].state.items())
    assert all(torch.equal(whole.best[k], v) for k, v in resumed[-1].best.items())
    assert resumed[-1].progress.best_round == whole.progress.best_round
    assert resumed[-1].progress.bytes_up == whole.progress.bytes_up


def test_checkpoint_of_another_run_is_refused(tmp_path):
    list(checkpointed(make(), Checkpoint(tmp_path, "one")))
    with pytest.raises(RunError, match="another configuration"):
        next(checkpointed(make(), Checkpoint(tmp_path, "two")))


def test_damaged_checkpoint_is_named(tmp_path):
    checkpoint = Checkpoint(tmp_path, "one")
    list(checkpointed(make(), checkpoint))
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-4])
    with pytest.raises(RunError, match=r"last\.safetensors is damaged"):
        next(checkpointed(make(), checkpoint))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("0.weight", torch.zeros(3)),
        ("0.bias", torch.zeros(16, dtype=torch.float64)),
        ("2.bias", None),
        ("more", torch.zeros(1)),
    ],
)
def test_checkpoint_with_a_right_checksum_and_a_wrong_state_is_named(
    tmp_path, key, value
):
    """Whoever can write the file can write its checksum."""
    checkpoint = Checkpoint(tmp_path, "one")
    *_, last = federate(make())
    state = {**last.state, key: value}
    if value is None:
        del state[key]
    checkpoint.save(replace(last, state=state))
    with pytest.raises(RunError, match=rf"is damaged \(.*{key}"):
        next(checkpointed(make(), checkpoint))


def test_checkpoint_with_a_wrong_residual_is_named(tmp_path):
    checkpoint = Checkpoint(tmp_path, "one")
    *_, last = federate(make())
    kept = {"cartoon": {f"{RESIDUAL}0.bias": torch.zeros(3)}}
    checkpoint.save(replace(last, kept=kept))
    with pytest.raises(RunError, match=r"is damaged \(.*cartoon/residual:0.bias"):
        next(checkpointed(make(), checkpoint))


def test_a_checkpoint_of_an_earlier_version_is_refused_in_one_line(tmp_path):
    checkpoint = Checkpoint(tmp_path, "one")
    *_, last = federate(make())
    tensors = {f"state/{k}": v for k, v in last.state.items()}
    tensors["state/art/residual/0.bias"] = last.state["0.bias"].clone()
    progress = json.dumps(asdict(last.progress))
    write_tensors(checkpoint.path, tensors, {"progress": progress, "identity": "one"})
    with pytest.raises(RunError, match="another version of fedclip-plugin; delete"):
        checkpoint.load(make())


def test_a_clients_name_may_hold_a_slash(tmp_path):
    checkpoint = Checkpoint(tmp_path, "one")
    *_, last = federate(make())
    kept = {"a/b": {"0.bias:exp_avg": torch.ones(16)}, "c": {}}
    checkpoint.save(replace(last, kept=kept))
    found = checkpoint.load(make())
    assert found.kept.keys() == {"a/b"}
    assert torch.equal(found.kept["a/b"]["0.bias:exp_avg"], torch.ones(16))


def test_identity_knows_what_matters():
    features, config = toy_features(), make_config()
    base = identity(features, config, "art")
    assert base == identity(features, make_config(rounds=99), "art")
    assert base != identity(features, config, "photo")
    assert base != identity(features, make_config(lr=1e-4), "art")
    assert base != identity(toy_features(seed=1), config, "art")


def test_partial_participation_draws_by_seed_and_round():
    data = DataConfig(partition="iid", clients=10)
    config = replace(make_config(participation=0.3), data=data)
    fed = build_federation(toy_features(), config, "art", seed=0)
    draws = [[c.name for c in participants(fed.clients, 0.3, 0, r)] for r in range(20)]
    assert all(len(set(d)) == 3 and d == sorted(d) for d in draws)
    assert len({tuple(d) for d in draws}) > 5
    assert {n for d in draws for n in d} == {c.name for c in fed.clients}
    result = run_round(Run(fed))
    assert result.participants == [c.name for c in participants(fed.clients, 0.3, 0, 1)]
    assert len(result.clients) == 10  # all are evaluated


def test_more_clients_than_rows_leaves_empty_ones_harmless():
    data = DataConfig(partition="iid", clients=100)
    config = replace(make_config(rounds=2), data=data)
    fed = build_federation(toy_features(), config, "art", seed=0)
    assert any(len(c.train) == 0 for c in fed.clients)
    standing = list(federate(fed))[-1]
    assert all(torch.isfinite(v).all() for v in standing.state.values())


def test_clients_are_scored_every_so_many_rounds_and_after_the_last():
    whole = list(federate(make(rounds=8, lr=1e-2)))
    fed = make(rounds=8, lr=1e-2, eval_every=3)
    some = list(federate(fed))
    for a, b in zip(whole, some):
        assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)
        number = b.progress.round
        if number in (3, 6, 8):
            assert b.result.clients == a.result.clients
            assert b.result.target == a.result.target
        elif number:
            assert (b.result.clients, b.result.mean_val, b.result.target) == (
                {},
                None,
                None,
            )
            assert b.result.mean_test is None
    scores = {n: whole[n].result.mean_val for n in (3, 6, 8)}
    assert some[-1].progress.best_round == max(scores, key=scores.get)
    assert some[-1].progress.best_score == max(scores.values())
    # until somebody is scored, the last adapter is the best that there is
    assert [s.progress.best_round for s in some[:4]] == [0, 1, 2, 3]


def test_patience_is_judged_where_clients_are_scored():
    settings = {"rounds": 60, "lr": 1e-2, "patience": 4, "eval_every": 3}
    *_, last = federate(make(**settings))
    waited = last.progress.round - last.progress.best_round
    assert last.progress.round < 60
    assert last.progress.round % 3 == 0
    assert 4 <= waited < 4 + 3
    assert last.result.mean_val is not None


def test_scoring_never_is_refused(tmp_path, capsys):
    argv = ["run", "--features", str(write_toy(tmp_path / "f")), "--eval-every", "0"]
    assert main(argv) == 2
    assert "--eval-every 0: expected a whole number >= 1" in capsys.readouterr().err


def test_bad_update_is_screened_and_harms_nothing(monkeypatch):
    fed = make()
    real = type(fed.algorithm).local_round

    def sabotage(self, state, clients, task, number):
        updates = real(self, state, clients, task, number)
        broken = {k: torch.full_like(v, torch.nan) for k, v in updates[0].state.items()}
        return [ClientUpdate(updates[0].client, broken, 5), *updates[1:]]

    monkeypatch.setattr(type(fed.algorithm), "local_round", sabotage)
    standing = list(federate(fed))[-1]
    assert standing.progress.quarantined == 4
    assert all(torch.isfinite(v).all() for v in standing.state.values())


def test_a_round_without_examples_is_refused_where_all_were_asked(caplog):
    fed = make()
    names = [c.name for c in fed.clients]
    nothing = [ClientUpdate(name, fed.first, 0) for name in names]
    run = Run(fed)
    with pytest.raises(RunError, match="round 1: no client that answered trained on"):
        run.aggregate(run.open_round(), nothing, names)
    assert run.done == 0
    for updates, drawn_from in ((nothing[:1], None), (nothing, 3)):
        caplog.clear()  # who did not answer, or was not drawn, may have examples
        run = Run(fed, drawn_from=drawn_from)
        opened = run.open_round()
        run.aggregate(opened, updates, names)
        assert "trained on an example: nothing is learnt in it" in caplog.text
        assert run.close_round(opened).round == 1
    odd = [replace(update, num_examples=-1) for update in nothing]
    caplog.clear()
    run.aggregate(run.open_round(), odd, names)  # the screening names these
    assert "trained on an example" not in caplog.text


def test_bytes_are_those_of_the_adapter():
    fed = make()
    result = run_round(Run(fed))
    adapter = 4 * (2 * 16 * 16 + 2 * 16)
    assert 2 * adapter < result.bytes_down < 2 * (adapter + 400)
    assert 2 * adapter < result.bytes_up < 2 * (adapter + 700)


def test_without_target_all_domains_are_clients():
    fed = make(None)
    assert [c.name for c in fed.clients] == list(DOMAINS)
    result = run_round(Run(fed))
    assert result.target is None


def test_unknown_target_and_missing_cuda_are_told():
    with pytest.raises(ConfigError, match="art"):
        make("nowhere")
    config = replace(make_config(), model=replace(make_config().model, device="cuda"))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="--device cpu"):
            build_federation(toy_features(), config, "art", seed=0)


def test_patience_stops_a_run_that_no_longer_improves(tmp_path):
    fed = make(rounds=60, lr=1e-2, patience=4)
    standings = list(checkpointed(fed, Checkpoint(tmp_path, "id")))
    last = standings[-1]
    assert last.progress.round == last.progress.best_round + 4 < 60
    assert [s.last for s in standings] == [False] * (len(standings) - 1) + [True]
    whole = list(federate(make(rounds=60, lr=1e-2)))
    assert last.progress.best_round == whole[last.progress.round].progress.best_round
    again = list(checkpointed(fed, Checkpoint(tmp_path, "id")))
    assert len(again) == 1  # it stays stopped
