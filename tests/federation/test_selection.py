"""Which round is the best, by what, and that the last one is kept beside it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score

import fedclip_plugin as fc
from fedclip_plugin.algorithms import with_values
from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import RunError
from fedclip_plugin.export.trained import read_trained
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.federation.evaluation import predict_labels, score_clients
from tests.federation.toy import toy_features

BY = {
    "balanced-accuracy": balanced_accuracy_score,
    "macro-f1": lambda y, said: f1_score(y, said, average="macro"),
}


@pytest.mark.parametrize("by", BY)
def test_the_best_round_has_the_best_score_over_classes(by: str) -> None:
    config = with_values(
        RunConfig(data=DataConfig(dataset="toy")),
        {"rounds": 4, "lr": 3e-2, "select_by": by},
    )
    fed = build_federation(toy_features(), config, "photo", 0)
    scores = []
    for now in federate(fed):
        if now.result is None:
            continue
        judge = []
        for c in fed.clients:
            said = predict_labels(fed.algorithm, now.state, c.val, fed.task)
            judge.append(BY[by](c.val.y.numpy(), said.numpy()))
        scores.append(sum(judge) / len(judge))
        assert now.result.selection[by] == pytest.approx(scores[-1])
        assert now.progress.best_score == pytest.approx(max(scores))
        assert now.progress.best_round == scores.index(max(scores)) + 1


def test_a_client_without_validation_rows_has_no_say() -> None:
    config = with_values(RunConfig(), {"select_by": "macro-f1"})
    fed = build_federation(toy_features(), config, "photo", 0)
    nobody = replace(fed.clients[0], val=fed.clients[0].val[:0])
    found = score_clients(fed.algorithm, fed.first, [nobody], fed.task)
    assert found[nobody.name]["selection"] is None


def test_best_and_final_state_are_both_kept(toy: Path, tmp_path: Path) -> None:
    """At so high a rate that the last round is not the best."""
    out = tmp_path / "out"
    common = {"features": toy, "target": "photo", "lr": 0.3, "rounds": 6}
    summary = fc.run(**common, out=out)
    lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    assert summary["best_round"] < 6, "the toy data are too easy to tell the two apart"
    assert summary["validation"] == max(line["mean_val"] for line in lines)
    assert summary["final"]["target"] == lines[-1]["target"]
    assert summary["result"]["target"] == lines[summary["best_round"] - 1]["target"]
    best, final = read_trained(out).state, read_trained(out, state="final").state
    assert any(not torch.equal(best[key], final[key]) for key in best)
    again = tmp_path / "again"
    fc.run(**{**common, "rounds": 3}, out=again)
    fc.run(**common, out=again, resume=True)
    for name in ("adapter.safetensors", "final.safetensors"):
        assert (out / name).read_bytes() == (again / name).read_bytes()


def test_commands_take_either_state(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    fc.run(features=toy, target="photo", lr=0.3, rounds=6, out=out)

    def mean_of(*words: str) -> float:
        line = ["evaluate", str(out), "--features", str(toy), "--format", "json"]
        assert main([*line, "--quiet", *words]) == 0
        found: float = json.loads(capsys.readouterr().out)["mean"]["result"]
        return found

    final = str(out / "final.safetensors")
    assert mean_of("--state", "final") == mean_of("--state", final) != mean_of()
    (out / "final.safetensors").unlink()
    with pytest.raises(RunError, match="an earlier version"):
        read_trained(out, state="final")
