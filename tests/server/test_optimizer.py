"""Server optimizers against the papers' formulas, one number after the other."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig, ServerConfig
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.engine import Run, RunState, federate
from fedclip_plugin.federation.evaluation import score_clients
from fedclip_plugin.federation.rounds import train_clients
from fedclip_plugin.server import optimizer
from fedclip_plugin.storage.tensors import read_tensors, write_tensors
from fedclip_plugin.wire.update import State
from tests.federation.toy import checkpointed, resumed, toy_features, write_toy

KINDS = ("momentum", "adagrad", "adam", "yogi")


def make(**chosen: Any) -> Federation:
    name = chosen.pop("alg", "linear")
    settings = {"rounds": 4, "batch_size": 8, **chosen}
    config = with_values(RunConfig(name, data=DataConfig("toy")), settings)
    return build_federation(toy_features(), config, "photo", seed=0)


def last_of(**chosen: Any) -> RunState:
    *_, last = federate(make(**chosen))
    return last


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def literal(kind: str, updates: list[float], x: float, config: ServerConfig) -> float:
    """Algorithm 2 of Reddi et al., and FedAvgM, on one number."""
    b1 = optimizer.beta1(config)
    b2, tau, lr = (
        config.server_beta2,
        config.server_tau,
        optimizer.learning_rate(config),
    )
    m, v = 0.0, tau**2
    for d in updates:
        if kind == "momentum":
            m = b1 * m + d
            x += lr * m
            continue
        m = b1 * m + (1 - b1) * d
        if kind == "adagrad":
            v = v + m**2
        elif kind == "adam":
            v = b2 * v + (1 - b2) * m**2
        else:
            v = v - (1 - b2) * m**2 * math.copysign(1, v - m**2) * (v != m**2)
        x += lr * m / (math.sqrt(v) + tau)
    return x


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "more",
    [{}, {"server_lr": 0.3, "server_momentum": 0.5}, {"server_tau": 0.1}],
    ids=str,
)
def test_steps_are_those_of_the_papers(kind: str, more: dict[str, float]) -> None:
    config = ServerConfig(server_optimizer=kind, **more)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    moves = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    start = torch.randn(5, generator=generator, dtype=torch.float64)
    state: State = {"w": start}
    memory: State = {}
    for d in moves:
        mean = {"w": state["w"] + d}
        state, memory = optimizer.step(mean, state, memory, config)
    for i in range(5):
        want = literal(kind, moves[:, i].tolist(), float(start[i]), config)
        assert float(state["w"][i]) == pytest.approx(want, rel=1e-9, abs=1e-12)


def test_whole_numbers_and_what_is_not_sent_stay_the_means():
    config = ServerConfig(server_optimizer="adam")
    start = {"n": torch.tensor([3]), "w": torch.zeros(2)}
    after = {"n": torch.tensor([5]), "w": torch.ones(2), "server": torch.ones(1)}
    state, memory = optimizer.step(after, start, {}, config)
    assert int(state["n"]) == 5
    assert torch.equal(state["server"], torch.ones(1))
    assert memory.keys() == {"momentum/w", "variance/w"}


def literal_average(states: list[Tensor], decay: float) -> Tensor:
    weights = [decay ** (len(states) - 1 - r) for r in range(len(states))]
    total = sum(w * s for w, s in zip(weights, states))
    return torch.as_tensor(total / sum(weights))


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99])
def test_the_average_forgets_and_the_first_state_counts_for_nothing(decay: float):
    config = ServerConfig(server_ema=decay)
    states = list(torch.randn(7, 4, dtype=torch.float64))
    memory: State = {}
    for number, state in enumerate(states, start=1):
        memory = optimizer.averaged(memory, {"w": state}, config, number)
        want = literal_average(states[:number], decay)
        torch.testing.assert_close(optimizer.judged(memory, {"w": state})["w"], want)


def test_without_the_options_nothing_changes():
    assert last_of().memory == {}
    config, state = ServerConfig(), {"w": torch.ones(2)}
    assert optimizer.step(state, state, {}, config) == (state, {})
    assert optimizer.judged({}, state) is state


def test_the_average_is_scored_kept_and_exported_and_the_raw_state_travels():
    raw, mean = make(), make(server_ema=0.9)
    *_, plain = federate(raw)
    *_, last = federate(mean)
    assert same(plain.state, last.state), "the average has touched the training"
    judged = optimizer.judged(last.memory, last.state)
    assert not same(judged, last.state)
    assert last.result is not None
    scores = score_clients(mean.algorithm, judged, mean.clients, mean.task)
    assert last.result.clients == scores
    if last.progress.best_round == last.progress.round:
        assert same(last.best, judged)


OPTIONS: list[dict[str, Any]] = [
    {"server_optimizer": "adam", "server_lr": 0.1},
    {"server_optimizer": "yogi", "server_ema": 0.5, "participation": 0.5},
    {"server_optimizer": "momentum", "server_momentum": 0.5, "compress": "int8"},
    {"server_lr": 0.5, "compress_down": "fp16", "server_ema": 0.9},
    {"alg": "fedclip", "server_optimizer": "adagrad", "aggregation": "median"},
]


@pytest.mark.parametrize("more", OPTIONS, ids=str)
def test_resumed_runs_end_in_the_same_bits(more: dict[str, Any], tmp_path: Path):
    whole, again = last_of(**more), last_of(**more)
    after = resumed(lambda: make(**more), tmp_path)
    for one in (again, after):
        assert same(one.state, whole.state)
        assert same(one.best, whole.best)
        assert same(one.memory, whole.memory)
    found = Checkpoint(tmp_path, "id").load(make(**more))
    assert found is not None
    assert same(found.best, whole.best)
    assert all(bool(torch.isfinite(v).all()) for v in whole.state.values())


def test_a_memory_of_another_shape_is_damage(tmp_path: Path):
    more = {"server_optimizer": "adam"}
    list(checkpointed(make(**more), checkpoint := Checkpoint(tmp_path, "")))
    tensors, meta = read_tensors(checkpoint.path)
    tensors["memory/variance/weight"] = torch.zeros(1)
    write_tensors(checkpoint.path, tensors, meta)
    with pytest.raises(RunError, match="memory/variance/weight does not fit"):
        checkpoint.load(make(**more))


def one_round(spoilt: str | None, gone: str | None, **more: Any) -> Run:
    run = Run(make(rounds=1, **more))
    opened = run.open_round()
    updates = [
        replace(u, state={k: v * torch.nan for k, v in u.state.items()})
        if u.client == spoilt
        else u
        for u in train_clients(run.fed, opened.sent.seen, opened.cohort, 1)
        if u.client != gone
    ]
    run.aggregate(opened, updates, [c.name for c in opened.cohort])
    run.close_round(opened)
    return run


def test_what_is_left_out_is_not_remembered():
    more = {"server_optimizer": "yogi", "server_ema": 0.5}
    bad, without = one_round("art", None, **more), one_round(None, "art", **more)
    assert same(bad.state, without.state)
    assert same(bad.now.memory, without.now.memory)


def test_a_round_without_a_sound_update_leaves_state_and_memory():
    run = Run(make(server_optimizer="adam", server_ema=0.5))
    opened = run.open_round()
    run.aggregate(opened, [], ["art"])
    run.close_round(opened)
    assert same(run.state, run.fed.first)
    assert all(k.startswith("average/") for k in run.now.memory)


def test_noise_for_privacy_is_in_the_pseudo_gradient():
    private = {"dp_noise_multiplier": 1.0, "dp_clip": 0.1, "weighting": "uniform"}
    plain = last_of(rounds=1, **private)
    moved = last_of(rounds=1, server_lr=2.0, **private)
    for key, start in make().first.items():
        want = start + 2 * (plain.state[key] - start)
        torch.testing.assert_close(moved.state[key], want)
    assert plain.progress.epsilon == moved.progress.epsilon


@pytest.mark.parametrize(
    ("alg", "said"),
    [("gda", "makes its state anew each round"), ("local", "sends nothing")],
)
@pytest.mark.parametrize(
    "more",
    [{"server_optimizer": "adam"}, {"server_lr": 0.5}, {"server_ema": 0.9}],
    ids=str,
)
def test_what_makes_no_sense_is_refused(alg: str, said: str, more: dict[str, Any]):
    with pytest.raises(ConfigError, match=f"--alg {alg} {said}.*: leave out --server"):
        make(alg=alg, **more)


def test_options_in_vain_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    argv = ["run", "--features", write_toy(tmp_path / "f"), "--target", "photo"]
    argv += ["--rounds", 1, "--server-tau", 0.1, "--out", tmp_path / "out"]
    assert main([str(a) for a in argv]) == 0
    said = capsys.readouterr()
    assert "--server-tau 0.1 has no effect" in " ".join((said.out + said.err).split())
