"""Payloads of strangers: judged before they are unpacked."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedclip_plugin.config.schema import ServerConfig, WireConfig
from fedclip_plugin.server.aggregation import aggregate
from fedclip_plugin.server.screening import distances, screen
from fedclip_plugin.wire.codecs import CODECS
from fedclip_plugin.wire.compression import compress, decode, decoded, fault
from fedclip_plugin.wire.update import ClientUpdate
from tests.wire.coded import NAMES, states

# --------------------------------------------------------------------------- strangers


def spoil(key: str, change: Callable[[torch.Tensor], torch.Tensor]):
    return lambda payload: payload.update({key: change(payload[key])})


def full(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda part: torch.full_like(part, value)


def bytes_of(*values: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda part: torch.tensor(values, dtype=torch.uint8)


def bomb() -> torch.Tensor:
    """Bytes that a reader without a limit would blow up to 64 MiB."""
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = press.compress(bytes(64 << 20)) + press.flush()
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


BAD = [
    ("int8", lambda p: p.pop("w:scale"), "keys"),
    ("int8", lambda p: p.update(more=torch.zeros(1)), "keys"),
    ("int8", spoil("w", lambda q: q.float()), "float32"),
    ("int8", spoil("w", lambda q: q[:-1]), r"\(3, 80\)"),
    ("int8", spoil("w", lambda q: q.t()), r"\(80, 4\)"),
    ("int8", spoil("w:scale", lambda s: s[:1]), r"its scale is \(1,\)"),
    ("int8", spoil("w:scale", lambda s: s.double()), "float64"),
    ("int8", spoil("w:scale", full(float("nan"))), "NaN, Inf, negative"),
    ("int8", spoil("w:scale", full(float("inf"))), "NaN, Inf, negative"),
    ("int8", spoil("w:scale", full(-1e-9)), "negative"),
    ("int8", spoil("w:scale", full(1e30)), "too large"),
    ("int4", spoil("w", lambda q: q[:-1]), "does not hold 160 bytes"),
    ("int4", spoil("w", lambda q: torch.cat([q, q])), "does not hold 160 bytes"),
    ("int4", spoil("w", lambda q: bomb()), "does not hold 160 bytes"),
    ("int4", spoil("w", lambda q: q[:0]), "does not hold 160 bytes"),
    ("int4", spoil("w", lambda q: torch.full_like(q, 255)), "is not deflated"),
    ("int4", spoil("w", lambda q: q[None]), r"it is \(1, "),
    ("int4", spoil("w", lambda q: q.view(torch.int8)), "int8"),
    ("int4", spoil("w:scale", full(float("nan"))), "NaN"),
    ("fp16", spoil("w", full(float("nan"))), "NaN or Inf"),
    ("fp16", spoil("w", full(float("inf"))), "NaN or Inf"),
    ("fp16", spoil("w", lambda h: h.float()), "float32"),
    ("fp16", spoil("w", lambda h: h.reshape(-1)), r"\(320,\)"),
    ("topk", spoil("w:gap", lambda g: g.to(torch.int16)), "int16"),
    ("topk", spoil("w:gap", lambda g: g[:-1]), "its gaps place 15"),
    ("topk", spoil("w:gap", lambda g: g.repeat(100)), "<= 320"),
    ("topk", spoil("w:gap", full(255)), "its gaps place 0"),
    ("topk", spoil("w:gap", full(254)), "lead to value 4080 of 320"),
    ("topk", spoil("w", lambda v: v.repeat(50)), "<= 320"),
    ("topk", spoil("w", lambda v: v[None]), r"\(1, 16\)"),
    ("topk", spoil("w", lambda v: v[:3]), "it has 3 values"),
    ("topk", spoil("w:scale", full(float("nan"))), "NaN"),
    ("topk", spoil("w:scale", lambda s: s.expand(0)), r"its scale is \(0,\)"),
]


@pytest.mark.parametrize(("name", "change", "reason"), BAD)
def test_a_malformed_payload_is_left_out_with_the_reason(name, change, reason):
    sent, state = states((4, 80))
    wire, server = WireConfig(compress=name), ServerConfig()
    honest = [ClientUpdate(c, state, 5) for c in ("a", "b")]
    good, bad = compress(honest, sent, sent, wire)
    payload = dict(bad.state)
    change(payload)
    sound, (found,) = screen([good, replace(bad, state=payload)], sent)
    assert [u.client for u in sound] == ["a"]
    assert found.client == "b"
    assert re.search(reason, found.reason), found.reason
    want = aggregate([good], sent, server)["w"]
    assert torch.equal(aggregate(sound, sent, server)["w"], want)


def test_an_unknown_codec_is_named():
    sent, state = states((4, 80))
    _, (found,) = screen([ClientUpdate("a", state, 5, codec="zip")], sent)
    assert "'zip', which is none of fp16, int8" in found.reason


@given(st.binary(max_size=40), st.lists(st.integers(-128, 127), max_size=40))
def test_any_gaps_and_values_are_judged_or_unpacked(gaps, values):
    sent = {"w": torch.zeros(4, 8)}
    payload = {
        "w": torch.tensor(values, dtype=torch.int8),
        "w:gap": torch.tensor(list(gaps), dtype=torch.uint8),
        "w:scale": torch.ones(1),
    }
    if fault("topk", payload, sent) is None:
        got = decode(CODECS["topk"], payload, sent)["w"]
        assert got.shape == (4, 8)
        assert bool(got.isfinite().all())


@pytest.mark.parametrize("name", NAMES)
def test_the_distance_comes_from_the_payload(name):
    updates = []
    for i in range(3):
        sent, state = states((33, 65))
        moved = {"w": sent["w"] + (i + 1) * (state["w"] - sent["w"])}
        updates.append(ClientUpdate(f"c{i}", moved, 5))
    coded = compress(updates, sent, sent, WireConfig(compress=name))
    want = distances(decoded(coded, sent), sent)
    assert distances(coded, sent) == pytest.approx(want, rel=1e-4)
    mixed = distances([coded[0], updates[1], coded[2]], sent)
    assert mixed[1] == pytest.approx(distances(updates, sent)[1])
    far = {"w": sent["w"] + 1e4 * (state["w"] - sent["w"])}
    (absurd,) = compress([ClientUpdate("x", far, 5)], sent, sent, WireConfig())
    (absurd,) = compress([absurd], sent, sent, WireConfig(compress=name))
    _, (found,) = screen([*coded, absurd], sent)
    assert found.client == "x"
    assert found.norm > 100 * found.median_norm
