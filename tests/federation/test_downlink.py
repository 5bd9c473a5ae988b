"""The state on its way down in fewer bytes: what clients see, and what is not lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.config.schema import DOWN_COMPRESSIONS, RunConfig, WireConfig
from fedclip_plugin.errors import ConfigError, UpdateError
from fedclip_plugin.federation import downlink
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.checkpoint import Checkpoint
from fedclip_plugin.federation.engine import Run, federate, run_round
from fedclip_plugin.federation.rounds import next_state, screen_round
from fedclip_plugin.wire.message import state_bytes
from fedclip_plugin.wire.update import ClientUpdate, State
from tests.federation.toy import checkpointed, toy_features

DOWN = [name for name in DOWN_COMPRESSIONS if name != "none"]


def make(algorithm: str = "fedclip", dim: int = 64, **train: Any) -> Federation:
    train = {"rounds": 6, "lr": 1e-3, **train}
    config = with_values(RunConfig(algorithm), train)
    return build_federation(toy_features(dim=dim), config, "photo", seed=0)


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def moved(state: State, size: float = 1e-2) -> State:
    generator = torch.Generator().manual_seed(7)
    return {
        k: v + size * torch.randn(v.shape, generator=generator)
        for k, v in state.items()
    }


@pytest.mark.parametrize("codec", DOWN)
def test_clients_see_the_first_state_exactly_and_others_nearly(codec: str) -> None:
    fed = make(compress_down=codec)
    first = fed.algorithm.init(fed.task)
    assert same(downlink.broadcast(fed, first).seen, first)
    state = moved(first)
    seen = downlink.broadcast(fed, state).seen
    step = {"fp16": 2.0**-10, "int8": 1 / 127, "int4": 1 / 7}[codec]
    for key, value in state.items():
        largest = float((value - first[key]).abs().max())
        assert float((seen[key] - value).abs().max()) <= 0.51 * step * largest + 1e-7
    assert not same(seen, state)


@pytest.mark.parametrize("codec", DOWN)
def test_bytes_down_are_those_of_the_payload(codec: str) -> None:
    fed = make(compress_down=codec)
    run = Run(fed)
    run_round(run)
    state = run.state
    second = run_round(run)
    whole = state_bytes(state)
    assert second.bytes_down == 2 * state_bytes(downlink.payload(fed, state))
    assert second.bytes_down < 2 * whole / {"fp16": 1.9, "int8": 3, "int4": 5}[codec]


@pytest.mark.parametrize("codec", DOWN)
def test_what_was_not_seen_stays_with_the_server(codec: str) -> None:
    """Clients that did not move leave the server's state as it is."""
    fed = make(compress_down=codec)
    state = moved(fed.algorithm.init(fed.task))
    seen = downlink.broadcast(fed, state).seen
    updates = [ClientUpdate(c.name, seen, 10) for c in fed.clients]
    screened = screen_round(
        fed, downlink.broadcast(fed, state), updates, [c.name for c in fed.clients]
    )
    assert len(screened.sound) == 2
    after = next_state(fed, screened, state, 1)[0]
    for key, value in state.items():
        torch.testing.assert_close(after[key], value, rtol=0, atol=1e-7)


def test_a_round_without_an_answer_leaves_the_state_bit_for_bit() -> None:
    fed = make(compress_down="int4")
    state = moved(fed.algorithm.init(fed.task))
    nan = {k: v * torch.nan for k, v in state.items()}
    names = [c.name for c in fed.clients]
    screened = screen_round(
        fed,
        downlink.broadcast(fed, state),
        [ClientUpdate(n, nan, 10) for n in names],
        names,
    )
    assert len(screened.quarantined) == 2
    assert same(next_state(fed, screened, state, 1)[0], state)


@pytest.mark.parametrize("codec", DOWN)
def test_the_run_ends_near_the_one_in_fp32(codec: str) -> None:
    plain, coded = ([*federate(make(compress_down=c))][-1] for c in ("none", codec))
    first = make().algorithm.init(make().task)
    share = {"fp16": 0.01, "int8": 0.05, "int4": 0.35}[codec]
    apart = [
        float((coded.state[key] - value).norm() / (value - first[key]).norm())
        for key, value in plain.state.items()
    ]
    assert 0.01 * share < max(apart) < share


@pytest.mark.parametrize("train", [{}, {"compress": "topk", "lr": 3e-2}], ids=str)
def test_broken_and_resumed_run_ends_in_the_same_bits(train, tmp_path) -> None:
    """Also where the best round is not the last, and its adapter is in the file."""
    fed = make(compress_down="int4", **train)
    whole = [*federate(fed)]
    for standing in checkpointed(fed, Checkpoint(tmp_path, "id")):
        if standing.progress.round == 4:
            break
    resumed = [*checkpointed(fed, Checkpoint(tmp_path, "id"))]
    assert resumed[0].progress.round == 3
    assert same(resumed[0].best, whole[3].best)
    assert same(resumed[-1].state, whole[-1].state)
    assert same(resumed[-1].best, whole[-1].best)


def test_the_best_adapter_is_the_one_that_clients_saw_and_measured() -> None:
    fed = make(compress_down="int4")
    standings = [*federate(fed)]
    best = standings[-1].progress.best_round
    state = standings[best].state
    assert same(standings[-1].best, downlink.broadcast(fed, state).seen)
    assert not same(standings[-1].best, state)


def test_a_payload_that_cannot_be_read_is_named() -> None:
    fed = make(compress_down="int4")
    sent = downlink.payload(fed, moved(fed.algorithm.init(fed.task)))
    for torn in ({**sent, "0.weight": sent["0.weight"][:-3]}, {}):
        with pytest.raises(UpdateError, match="what the server sent cannot be read"):
            downlink.received(fed, torn)


def test_local_adapters_send_nothing_and_stay_the_same() -> None:
    plain, coded = ([*federate(make("local", compress_down=c))][-1]
                    for c in ("none", "int4"))  # fmt: skip
    assert plain.kept.keys() == coded.kept.keys() == {"art", "cartoon"}
    assert all(same(plain.kept[c], coded.kept[c]) for c in plain.kept)
    assert coded.progress.bytes_down == 0


def test_another_algorithms_state_goes_down_compressed_too() -> None:
    plain, coded = (
        [*federate(make("linear", compress_down=codec, rounds=2))][-1]
        for codec in ("none", "fp16")
    )
    assert coded.progress.bytes_down < 0.6 * plain.progress.bytes_down
    assert coded.result.mean_val == pytest.approx(plain.result.mean_val, abs=0.1)


def test_topk_does_not_go_down() -> None:
    with pytest.raises(ConfigError, match="compress_down"):
        WireConfig(compress_down="topk")


def test_privacy_is_of_what_clients_did_to_what_they_saw() -> None:
    fed = make(compress_down="int4", dp_noise_multiplier=1e-3, dp_clip=1e-3)
    state = moved(fed.algorithm.init(fed.task))
    seen = downlink.broadcast(fed, state).seen
    updates = [ClientUpdate(c.name, seen, 10) for c in fed.clients]
    screened = screen_round(
        fed, downlink.broadcast(fed, state), updates, [c.name for c in fed.clients]
    )
    after = next_state(fed, screened, state, 1)[0]
    for key, value in state.items():  # noise of 1e-3 * 1e-3 over two clients
        assert 0 < float((after[key] - value).abs().max()) < 1e-5
