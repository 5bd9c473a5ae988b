"""Screening by distance, and what a run keeps of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fedclip_plugin.algorithms import FedClip
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig, TrainConfig
from fedclip_plugin.features.encode import EncodeStats
from fedclip_plugin.features.feature_set import load_features
from fedclip_plugin.runs.directory import prepare_out
from fedclip_plugin.runs.experiment import run_experiment
from fedclip_plugin.server.screening import screen
from fedclip_plugin.wire.update import ClientUpdate
from tests.federation.toy import write_toy

SENT = {"w": torch.ones(4, 5), "b": torch.zeros(5)}


def moved(name: str, length: float, count: int = 5) -> ClientUpdate:
    step = torch.full((4, 5), length / 20**0.5)
    return ClientUpdate(name, {"w": SENT["w"] + step, "b": SENT["b"]}, count)


def left_out(lengths: list[float], ratio: float = 100.0) -> list[str]:
    updates = [moved(f"c{i}", length) for i, length in enumerate(lengths)]
    sound, bad = screen(updates, SENT, ratio)
    assert len(sound) + len(bad) == len(updates)
    return [q.client for q in bad]


def test_the_distance_is_to_what_was_sent_against_the_median():
    assert left_out([1.0, 1.2, 0.8, 150.0]) == ["c3"]
    assert left_out([1.0, 1.2, 0.8, 90.0]) == []
    assert left_out([1.0, 1.2, 0.8, 90.0], ratio=10.0) == ["c3"]
    assert left_out([1.0, 1.2, 0.8, 1e9], ratio=0.0) == []
    assert left_out([1.0, 1e6]) == ["c1"]  # of two the larger is the absurd one
    assert left_out([1e6]) == []  # alone there is nothing to compare with


def test_a_majority_of_large_updates_is_the_measure():
    assert left_out([1e6, 1.1e6, 0.9e6, 1.0]) == []


def test_updates_that_did_not_move_are_no_measure():
    assert left_out([0.0, 0.0, 3.0]) == []
    idle = [moved(f"i{i}", 1e-9, count=0) for i in range(5)]
    _, bad = screen([*idle, moved("a", 1.0), moved("b", 1.1)], SENT)
    assert bad == []


def test_values_whose_squares_overflow_are_named():
    huge = {"w": torch.full((4, 5), 1e30), "b": torch.zeros(5)}
    _, bad = screen([ClientUpdate("huge", huge, 1), moved("a", 1.0)], SENT)
    assert bad[0].client == "huge"
    assert "overflow" in bad[0].reason


def test_a_count_that_is_none_is_left_out():
    _, bad = screen([moved("a", 1.0, -1), moved("b", 1.0, 10**300)], SENT)
    assert [q.client for q in bad] == ["a", "b"]
    assert "num_examples is -1" in bad[0].reason


def test_the_figures_are_kept():
    _, (found,) = screen([moved("a", 1.0), moved("b", 2.0), moved("c", 1e4)], SENT)
    assert found.norm == pytest.approx(1e4, rel=1e-4)
    assert found.median_norm == pytest.approx(2.0, rel=1e-4)
    assert "5e+03 times the round's median" in found.reason


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client ``art`` scales its update by a million in every second round."""
    honest = FedClip.local_round

    def local_round(self, state, clients, task, round_number):
        updates = honest(self, state, clients, task, round_number)
        if round_number % 2:
            return updates
        return [
            replace(u, state={k: 1e6 * v for k, v in u.state.items()})
            if u.client == "art"
            else u
            for u in updates
        ]

    monkeypatch.setattr(FedClip, "local_round", local_round)


def run(features: Path, out: Path, rounds: int, resume: bool = False) -> dict:
    data = DataConfig(dataset="toy", features=str(features), targets=("photo",))
    config = RunConfig(data=data, train=TrainConfig(rounds=rounds, lr=1e-3))
    out = prepare_out(out, "", resume)
    stats = EncodeStats()
    return run_experiment(config, load_features(features), stats, out, resume)


@pytest.mark.usefixtures("hostile")
def test_a_run_writes_down_who_was_left_out_and_loses_nothing(tmp_path):
    features = write_toy(tmp_path / "f")
    summary = run(features, tmp_path / "out", 4)
    assert summary["quarantined"] == 2
    assert summary["result"]["target"] >= summary["zero_shot"]["target"]
    path = tmp_path / "out" / "quarantined.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(x["round"], x["client"]) for x in lines] == [(2, "art"), (4, "art")]
    assert all(x["norm"] > 100 * x["median_norm"] for x in lines)
    longer = run(features, tmp_path / "out", 6, resume=True)
    assert longer["quarantined"] == 3
    again = [json.loads(line)["round"] for line in path.read_text().splitlines()]
    assert again == [2, 4, 6]
