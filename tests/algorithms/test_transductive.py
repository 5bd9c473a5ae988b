"""Who may see unlabelled features of others: FACMIC and FAA-CLIP."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.algorithms.aligned import unlabelled_batches
from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import PrivacyConfig, RunConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.engine import federate
from tests.algorithms.test_aligned import NAMES, make
from tests.federation.toy import toy_features


@pytest.mark.parametrize("name", NAMES)
def test_a_held_out_domain_is_refused_without_leave(name):
    with pytest.raises(ConfigError, match=r"unlabelled.*\(photo\).*--transductive"):
        make(name, allow=False)


def test_clients_are_given_the_held_out_features():
    fed = make("facmic")
    assert all(torch.equal(c.unlabelled, fed.target.x) for c in fed.clients)
    assert all(c.unlabelled is None for c in make("fedclip").clients)


def test_without_a_held_out_domain_they_are_given_the_others_validation_features():
    fed = make("facmic", target=None, allow=False)
    assert len(fed.clients) == 3
    for client in fed.clients:
        rows = {tuple(row) for row in client.unlabelled.tolist()}
        want = [c.val.x for c in fed.clients if c is not client]
        assert rows == {tuple(row) for x in want for row in x.tolist()}
        assert len(client.unlabelled) == sum(map(len, want))
    *_, last = federate(fed)
    assert last.result.clients.keys() == {"art", "cartoon", "photo"}


def test_features_of_others_need_others():
    features = toy_features(rows=50)
    data = DataConfig(dataset="toy", partition="iid", clients=1)
    with pytest.raises(ConfigError, match="one client alone"):
        build_federation(features, RunConfig("facmic", data=data), None, seed=0)


def test_privacy_of_clients_is_not_promised_where_their_features_go_round():
    privacy = PrivacyConfig(dp_noise_multiplier=1.0, dp_clip=0.1)
    config = RunConfig("facmic", data=DataConfig(dataset="toy"), privacy=privacy)
    config = with_values(config, {"weighting": "uniform"})
    with pytest.raises(ConfigError, match="each other's features"):
        build_federation(toy_features(), config, None, seed=0)


def test_a_client_without_features_of_others_says_so():
    fed = make("facmic")
    client = replace(fed.clients[0], unlabelled=None)
    with pytest.raises(ConfigError, match="client art has no features of others"):
        fed.algorithm.local_train(fed.first, client, fed.task, 1)


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_few_rows_without_labels_are_borne(rows):
    fed = make("facmic")
    client = replace(fed.clients[0], unlabelled=fed.target.x[:rows])
    update = fed.algorithm.local_train(fed.first, client, fed.task, 1)
    assert all(bool(v.isfinite().all()) for v in update.state.values())


def test_every_row_without_labels_is_seen_once_a_pass():
    fed = make("facmic")
    client = replace(fed.clients[0], unlabelled=torch.arange(24.0)[:, None])
    batches = unlabelled_batches(client, fed.task, 1)
    passes = [torch.cat([next(batches) for _ in range(3)]) for _ in range(2)]
    for one in passes:
        assert sorted(one.flatten().tolist()) == list(range(24))
    assert not torch.equal(*passes)


def run(*argv: object) -> int:
    return main(["run", "--quiet", *map(str, argv)])


def test_the_command_refuses_and_marks(toy, tmp_path, capsys):
    common = ("--features", toy, "--rounds", 1, "--batch-size", 8)
    facmic = (*common, "--alg", "facmic", "--out", tmp_path / "facmic")
    assert run(*facmic, "--target", "photo") == 2
    assert "--transductive" in capsys.readouterr().err
    assert not (tmp_path / "facmic").exists()
    assert run(*facmic, "--target", "photo", "--transductive") == 0
    summary = json.loads((tmp_path / "facmic" / "summary.json").read_text())
    assert summary["transductive"] is True
    assert any("--transductive" in note for note in summary["notes"])
    assert "FACMIC (transductive)" in page(tmp_path / "facmic")
    fedclip = (*common, "--alg", "fedclip", "--out", tmp_path / "fedclip")
    assert run(*fedclip, "--target", "photo", "--transductive") == 0
    summary = json.loads((tmp_path / "fedclip" / "summary.json").read_text())
    assert summary["transductive"] is False
    assert any("--transductive" in n and "no effect" in n for n in summary["notes"])
    capsys.readouterr()
    both = [str(tmp_path / name) for name in ("facmic", "fedclip")]
    for style in ("markdown", "latex"):
        assert main(["report", *both, "--format", style]) == 0
        assert "FACMIC (transductive" in capsys.readouterr().out
    assert main(["report", *both]) == 0
    assert "FACMIC (transductive" in capsys.readouterr().out
    assert main(["report", *both, "--format", "csv"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.endswith(",transductive")
    assert {row.rsplit(",", 1)[1] for row in rows if ",facmic," in row} == {"1"}
    assert {row.rsplit(",", 1)[1] for row in rows if ",fedclip," in row} == {"0"}


def test_without_a_held_out_domain_the_run_says_what_was_shared(toy, tmp_path):
    out = tmp_path / "out"
    assert run("--features", toy, "--rounds", 1, "--alg", "faa-clip", "--target",
               "none", "--out", out) == 0  # fmt: skip
    summary = json.loads((out / "summary.json").read_text())
    assert summary["transductive"] is False
    assert any("validation features" in note for note in summary["notes"])


def page(directory: Path) -> str:
    return (directory / "report.html").read_text()
