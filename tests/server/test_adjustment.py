"""FedDG-GA: the weights of the paper, and what becomes of those who are away or lie."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig, ServerConfig
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.engine import Run, RunState, federate
from fedclip_plugin.federation.rounds import train_clients
from fedclip_plugin.server.adjustment import (
    GAP,
    OWN_LOSS,
    WEIGHT,
    adjusted,
    step_size,
    weighed,
)
from fedclip_plugin.server.aggregation import aggregate
from fedclip_plugin.storage.tensors import read_tensors, write_tensors
from fedclip_plugin.wire.update import ClientUpdate, State
from tests.federation.toy import checkpointed, toy_features


def make(**chosen: Any) -> Federation:
    name = chosen.pop("alg", "linear")
    settings = {"rounds": 5, "batch_size": 8, "weighting": "gap", **chosen}
    data = DataConfig("toy", partition="iid", clients=5)
    config = with_values(RunConfig(name, data=data), settings)
    return build_federation(toy_features(), config, "photo", seed=0)


def last_of(**chosen: Any) -> RunState:
    *_, last = federate(make(**chosen))
    return last


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def literal(weights: list[float], gaps: list[float], step: float) -> list[float]:
    """The update of the paper, client after client."""
    mean = sum(gaps) / len(gaps)
    largest = max(abs(g - mean) for g in gaps)
    new = []
    for a, g in zip(weights, gaps):
        new.append(max(0.0, a + (g - mean) / largest * step))
    return [a / sum(new) for a in new]


@pytest.mark.parametrize("step", [0.2, 0.05, 1.0])
def test_weights_are_the_papers(step: float):
    weights, gaps = [0.5, 0.2, 0.2, 0.1], [0.3, -0.1, 1.2, 0.0]
    found = adjusted(weights, gaps, step)
    assert found == pytest.approx(literal(weights, gaps, step))
    assert sum(found) == pytest.approx(1)
    assert min(found) >= 0


def test_the_step_falls_to_nothing():
    config = ServerConfig(weighting="gap", gap_step=0.2)
    steps = [step_size(config, number, 4) for number in (1, 2, 3, 4, 5, 9)]
    assert steps == pytest.approx([0.2, 0.15, 0.1, 0.05, 0, 0])


@pytest.mark.parametrize(
    "gaps",
    [
        [math.nan] * 3,
        [0.4] * 3,
        [0.4, 0.4 + 1e-8, 0.4],
        [math.inf, -math.inf, math.nan],
        [1e308, 1e308, 1.0],
        [math.nan, 1.0, math.nan],
    ],
    ids=str,
)
def test_gaps_that_tell_nothing_move_nothing(gaps: list[float]):
    assert adjusted([0.5, 0.3, 0.2], gaps, 0.2) == [0.5, 0.3, 0.2]


def test_who_tells_no_gap_is_not_adjusted():
    found = adjusted([0.4, 0.3, 0.3], [math.nan, 1.0, 3.0], 0.1)
    moved = [0.4, 0.3 - 0.1, 0.3 + 0.1]
    assert found == pytest.approx([w / sum(moved) for w in moved])


def update(client: str, gap: float | None = None, rows: int = 4) -> ClientUpdate:
    metrics = {} if gap is None else {GAP: gap}
    return ClientUpdate(client, {"w": torch.zeros(1)}, rows, metrics)


def test_who_is_away_keeps_its_weight_and_who_is_new_has_the_mean():
    everybody, memory = weighed([update(c) for c in "abcd"], {}, 0.2)
    assert [u.weight for u in everybody] == [0.25] * 4
    some, memory = weighed([update("a", 1.0), update("b", 0.0)], memory, 0.2)
    assert [u.weight for u in some] == pytest.approx([0.7, 0.3])
    held = {k.removeprefix(WEIGHT): float(v) for k, v in memory.items()}
    assert held == pytest.approx({"a": 0.35, "b": 0.15, "c": 0.25, "d": 0.25})
    more, memory = weighed([update("e"), update("a")], memory, 0.2)
    assert float(memory[WEIGHT + "e"]) == pytest.approx(0.25)
    assert [u.weight for u in more] == pytest.approx([0.25 / 0.6, 0.35 / 0.6])


def test_the_order_of_arrival_does_not_matter_and_no_rows_no_weight():
    updates = [update("b", 0.2), update("a", 0.9), update("z", 5.0, rows=0)]
    one, memory = weighed(updates, {}, 0.2)
    other, again = weighed(updates[::-1], {}, 0.2)
    assert same(memory, again)
    assert {u.client: u.weight for u in one} == {u.client: u.weight for u in other}
    assert one[-1].weight is None


def test_the_mean_is_by_the_weights():
    states = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0, -2.0])}
    updates = [
        ClientUpdate(c, {"w": s}, n, weight=w)
        for (c, s), n, w in zip(states.items(), (1, 9), (0.25, 0.75))
    ]
    server = ServerConfig(weighting="gap")
    found = aggregate(updates, {"w": torch.zeros(2)}, server)
    torch.testing.assert_close(found["w"], 0.25 * states["a"] + 0.75 * states["b"])


def loss(fed: Federation, state: State, client: Any) -> float:
    scores = fed.algorithm.predict(state, client.train.x, fed.task)
    return float(F.cross_entropy(scores.double(), client.train.y))


def test_the_gaps_of_a_run_are_of_the_last_mean_and_the_own_model():
    run = Run(make())
    own: dict[str, float] = {}
    weights: list[float] = [1 / 5] * 5
    for number in range(1, 4):
        opened = run.open_round()
        gaps = [loss(run.fed, opened.sent.seen, c) - own[c.name] for c in opened.cohort
                if own]  # fmt: skip
        updates = train_clients(run.fed, opened.sent.seen, opened.cohort, number)
        assert [u.metrics.get(GAP) for u in updates] == (
            [pytest.approx(g, abs=1e-5) for g in gaps] or [None] * 5
        )
        own = {
            u.client: loss(run.fed, u.state, c) for u, c in zip(updates, opened.cohort)
        }
        run.aggregate(opened, updates, [c.name for c in opened.cohort])
        run.close_round(opened)
        if gaps:
            weights = literal(weights, gaps, 0.2 * (1 - (number - 1) / 5))
        held = [float(run.now.memory[WEIGHT + c.name]) for c in opened.cohort]
        assert held == pytest.approx(weights, abs=1e-3)
        for key, value in run.state.items():
            want = sum(w * u.state[key] for w, u in zip(held, updates))
            torch.testing.assert_close(value, want)
    assert max(weights) > 0.25, "nothing was adjusted: the test says nothing"


OPTIONS: list[dict[str, Any]] = [
    {},
    {"participation": 0.6, "gap_step": 0.5},
    {"alg": "fedclip", "compress": "int8", "server_optimizer": "momentum"},
    {"alg": "fedot", "server_ema": 0.5},
]


@pytest.mark.parametrize("more", OPTIONS, ids=str)
def test_resumed_runs_end_in_the_same_bits(more: dict[str, Any], tmp_path: Path):
    whole, again = last_of(**more), last_of(**more)
    for now in checkpointed(make(**more), Checkpoint(tmp_path, "")):
        if now.progress.round == 3:
            break
    *_, resumed = checkpointed(make(**more), Checkpoint(tmp_path, ""))
    for one in (again, resumed):
        assert same(one.state, whole.state)
        assert same(one.memory, whole.memory)
    assert all(OWN_LOSS in kept for kept in whole.kept.values())
    assert all(OWN_LOSS not in kept for kept in whole.best_kept.values())


def test_what_the_screening_leaves_out_keeps_its_weight():
    run = Run(make())
    for number in (1, 2):
        opened = run.open_round()
        updates = train_clients(run.fed, opened.sent.seen, opened.cohort, number)
        if number == 2:
            before = dict(run.now.memory)
            bad = updates[0]
            state = {k: v * torch.nan for k, v in bad.state.items()}
            told = {GAP: 1e9}
            updates = [replace(bad, state=state, metrics=told), *updates[1:]]
        run.aggregate(opened, updates, [c.name for c in opened.cohort])
        run.close_round(opened)
    after = run.now.memory
    assert torch.equal(after[WEIGHT + bad.client], before[WEIGHT + bad.client])
    assert not same(before, after)
    assert sum(float(v) for v in after.values()) == pytest.approx(1)


def test_silence_is_told(caplog: pytest.LogCaptureFixture):
    _, memory = weighed([update("a"), update("b")], {}, 0.2)
    assert caplog.text == ""
    weighed([update("a"), update("b")], memory, 0.2)
    assert "no client of the round tells its gap" in caplog.text


def test_a_weight_that_is_none_is_damage(tmp_path: Path):
    list(checkpointed(make(), checkpoint := Checkpoint(tmp_path, "")))
    tensors, meta = read_tensors(checkpoint.path)
    name = next(key for key in tensors if key.startswith("memory/weight/"))
    tensors[name] = torch.tensor(math.nan, dtype=torch.float64)
    write_tensors(checkpoint.path, tensors, meta)
    with pytest.raises(RunError, match="is not a weight"):
        checkpoint.load(make())


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match=r"gda makes its state anew .*weighting gap"):
        make(alg="gda")
    with pytest.raises(ConfigError, match="--weighting gap does not go with --dp"):
        make(dp_noise_multiplier=1.0, dp_clip=1.0)
