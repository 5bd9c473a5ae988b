"""Compressed updates: bounds, error feedback, malformed payloads, whole runs."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedclip_plugin.algorithms.adapter import initial_state
from fedclip_plugin.config.schema import ServerConfig, WireConfig
from fedclip_plugin.server.aggregation import aggregate
from fedclip_plugin.wire import codec
from fedclip_plugin.wire import codecs as quantization
from fedclip_plugin.wire import codecs as topk
from fedclip_plugin.wire.codecs import CODECS, TopK
from fedclip_plugin.wire.compression import (
    compress,
    decode,
    decoded,
    encode,
    fault,
    payload_keys,
)
from fedclip_plugin.wire.message import decode_update, encode_update, update_bytes
from fedclip_plugin.wire.update import ClientUpdate, State
from tests.wire.coded import NAMES, states

SHAPES = [(), (1,), (7,), (512,), (3, 5), (130, 65), (4, 3, 64), (0,), (0, 4), (4, 0)]


def steps_of(name: str, x: torch.Tensor) -> torch.Tensor:
    """The largest error that rounding ``x`` may make, in float64."""
    if name == "fp16":
        return x.double().abs() * 2**-11 + 2**-25
    top = 7 if name == "int4" else 127
    rows = x.double().reshape(1 if name == "topk" else codec.row_count(x.shape), -1)
    half = rows.abs().amax(dim=1, keepdim=True) / top / 2 * (1 + 1e-5)
    return half.expand_as(rows).reshape(x.shape) + 1e-45


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_what_comes_back_is_within_half_a_step(name, shape):
    sent, state = states(shape)
    codec = TopK(0.25) if name == "topk" else CODECS[name]
    payload, kept = encode(codec, state, sent, {})
    assert set(payload) == set(payload_keys(name, sent))
    assert fault(name, payload, sent) is None
    want = state["w"] - sent["w"]
    got = codec.unpack(tuple(payload.values()), want.shape)
    assert got.dtype == torch.float32
    assert torch.equal(kept["w"], want - got)
    if want.numel() == 0:
        return
    error = (got.double() - want.double()).abs()
    chosen = (got != 0) | (want == 0) if name == "topk" else torch.ones_like(got) > 0
    assert bool((error <= steps_of(name, want))[chosen].all())
    if name == "topk":
        assert int(chosen.sum()) == max(1, round(0.25 * want.numel()))
        smallest = want.abs()[chosen].min()
        assert bool((want.abs()[~chosen] <= smallest).all())
    back = decode(codec, payload, sent)["w"]
    torch.testing.assert_close(back, sent["w"] + got, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "values",
    [
        [0.0] * 129,
        [3.25] * 129,
        [-3.25] * 130,
        [1e-45] * 65,
        [1e-40, -1e-41, 0.0],
        [1e15, -1e15, 1.0],
        [6e4, 1e5, -1e6],
        [1e15, 1e-30],
        [1e-3],
        [-0.0, 0.0, 5e-8],
    ],
)
def test_odd_values_lose_nothing(name, values):
    """Payload and residual add up to the difference, and the payload is sound."""
    x = torch.tensor(values)
    sent = {"w": torch.zeros_like(x)}
    payload, kept = encode(CODECS[name], {"w": x}, sent, {})
    assert fault(name, payload, sent) is None
    got = decode(CODECS[name], payload, sent)["w"]
    assert bool(got.isfinite().all())
    torch.testing.assert_close(got + kept["w"], x, rtol=1e-6, atol=1e-45)
    assert bool((kept["w"].abs() <= x.abs()).all())


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_of_equal_values_the_first_travel(share):
    x = torch.tensor([1.0, -1.0] * 10 + [0.5] * 20)
    codec = TopK(share)
    values, gaps, scale = codec.pack(x)
    count = max(1, round(share * 40))
    assert len(values) == count
    found = codec.unpack((values, gaps, scale), x.shape).nonzero()[:, 0]
    assert found.tolist() == list(range(count))


def test_zeros_do_not_travel():
    x = torch.zeros(1000)
    x[[3, 700]] = torch.tensor([1.0, -2.0])
    values, gaps, _ = TopK(0.5).pack(x)
    assert len(values) == 2
    assert len(gaps) == 2 + (700 - 4) // 255
    assert [len(part) for part in TopK(0.5).pack(0 * x)[:2]] == [0, 0]


@given(st.sets(st.integers(0, 5000), max_size=60))
def test_places_survive_as_gaps(places):
    want = torch.tensor(sorted(places), dtype=torch.int64)
    gaps = topk._gaps(want)
    assert gaps.dtype == torch.uint8
    assert torch.equal(topk._places(gaps), want)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_lost_in_a_round_comes_in_a_later_one(name):
    """The decoded updates of all rounds differ from the true ones by the residual."""
    generator = torch.Generator().manual_seed(0)
    sent = {"w": torch.zeros(40, 70), "b": torch.zeros(70)}
    true = {k: torch.zeros_like(v).double() for k, v in sent.items()}
    came = {k: torch.zeros_like(v).double() for k, v in sent.items()}
    residual: State = {}
    sizes = []
    for _ in range(60):
        step = {k: torch.randn(v.shape, generator=generator) for k, v in sent.items()}
        payload, residual = encode(CODECS[name], step, sent, residual)
        got = decode(CODECS[name], payload, sent)
        for key in sent:
            true[key] += step[key]
            came[key] += got[key]
            gap = (true[key] - came[key] - residual[key]).abs().max()
            assert float(gap) < 1e-4
        sizes.append(float(residual["w"].norm()))
    limit = {"fp16": 0.1, "int8": 2, "int4": 20, "topk": 1000}[name]
    assert max(sizes) < limit  # one step is 53 long; topk keeps some 20 of them
    assert sizes[-1] < 1.5 * sizes[40]


def test_without_error_feedback_nothing_is_kept():
    sent, state = states((5, 70))
    train = WireConfig(compress="int4", error_feedback="off")
    (update,) = compress([ClientUpdate("a", state, 3)], sent, sent, train)
    assert update.kept == {}
    assert update.codec == "int4"


def test_other_tensors_travel_whole():
    sent, state = states((5, 70))
    sent["steps"], state["steps"] = torch.tensor([3]), torch.tensor([4])
    update = ClientUpdate("a", state, 1)
    (coded,) = compress([update], sent, sent, WireConfig(compress="topk"))
    assert fault("topk", coded.state, sent) is None
    (back,) = decoded([coded], sent)
    assert torch.equal(back.state["steps"], state["steps"])
    coded.state["steps"] = torch.tensor([4.0])
    assert "steps (topk): it is (1,) torch.float32" in fault("topk", coded.state, sent)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_state_keeps_its_dtype(dtype):
    sent, state = ({"w": s["w"].to(dtype)} for s in states((6, 80)))
    payload, _ = encode(CODECS["int8"], state, sent, {})
    back = decode(CODECS["int8"], payload, sent)["w"]
    assert back.dtype == dtype
    torch.testing.assert_close(back, state["w"], rtol=1e-2, atol=1e-4)


# ------------------------------------------------------------------------- aggregation


def coded_updates(name: str, count: int = 5) -> tuple[State, list[ClientUpdate]]:
    sent, _ = states((33, 65))
    updates = []
    for i in range(count):
        step = states((33, 65), seed=i + 1)[1]["w"]
        updates.append(ClientUpdate(f"c{i}", {"w": sent["w"] + 1e-2 * step}, i + 1))
    return sent, compress(updates, sent, sent, WireConfig(compress=name))


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("name", NAMES)
def test_the_mean_is_that_of_the_decoded_updates(name, weighting):
    sent, updates = coded_updates(name)
    train = ServerConfig(weighting=weighting)
    weights = [1 if weighting == "uniform" else u.num_examples for u in updates]
    exact = sum(
        w * u.state["w"].double() for w, u in zip(weights, decoded(updates, sent))
    ) / sum(weights)
    got = aggregate(updates, sent, train)["w"]
    torch.testing.assert_close(got.double(), exact, rtol=0, atol=5e-7)


def test_int8_is_averaged_without_decoding(monkeypatch):
    sent, updates = coded_updates("int8")
    want = aggregate(updates, sent, ServerConfig())["w"]
    monkeypatch.setattr(quantization.Int8, "unpack", None)
    assert torch.equal(aggregate(updates, sent, ServerConfig())["w"], want)


@pytest.mark.parametrize("name", NAMES)
def test_order_of_arrival_changes_no_bit(name):
    sent, updates = coded_updates(name, 4)
    train = ServerConfig(weighting="examples")
    means = [aggregate(p, sent, train)["w"] for p in itertools.permutations(updates)]
    assert all(torch.equal(means[0], m) for m in means)


@pytest.mark.parametrize("rule", ["median", "krum", "clipped-mean"])
def test_robust_rules_decode(rule):
    sent, updates = coded_updates("int4")
    train = ServerConfig(aggregation=rule)
    want = aggregate(decoded(updates, sent), sent, train)["w"]
    assert torch.equal(aggregate(updates, sent, train)["w"], want)


# ------------------------------------------------------------------------------- bytes


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("fp16", 2 * 525_312),
        ("int8", 525_312 + 4 * 1026),
        ("int4", 205_000),  # 266,760 before the Huffman codes
        ("topk", 2 * (2 * 13_107 + 2 * 26) + 4 * 4),
    ],
)
def test_the_bytes_are_those_documented(name, size):
    sent = initial_state(512, seed=0)
    generator = torch.Generator().manual_seed(0)
    state = {
        k: v + 1e-3 * torch.randn(v.shape, generator=generator) for k, v in sent.items()
    }
    plain = ClientUpdate("art", state, 1000, {"loss": 0.5})
    (update,) = compress([plain], sent, sent, WireConfig(compress=name))
    data = encode_update(update)
    assert update_bytes(update) == len(data)
    assert size <= len(data) <= size + (15_000 if name == "int4" else 1400)
    ratio = update_bytes(plain) / len(data)
    assert ratio > {"fp16": 1.99, "int8": 3.9, "int4": 8.3, "topk": 35}[name]
    back = replace(decode_update(data), codec=name)
    (one,), (two,) = decoded([back], sent), decoded([update], sent)
    assert all(torch.equal(one.state[k], two.state[k]) for k in sent)
