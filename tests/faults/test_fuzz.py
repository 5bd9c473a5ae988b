"""Bytes of strangers: a reader says what is wrong, or takes them for what they are.

Readers and sound bytes are those of ``python -m benchmarks fuzz``, which runs longer.
"""

from __future__ import annotations

import json
import math
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.faults import fuzz_targets as fuzz
from fedclip_plugin.errors import UpdateError
from fedclip_plugin.storage.tensors import (
    TensorBytesError,
    read_safetensors,
    strict_json,
)
from fedclip_plugin.wire.message import (
    MARGIN,
    decode_update,
    encode_update,
    pack,
    size_limit,
    unpack,
    update_bytes,
)
from fedclip_plugin.wire.update import ClientUpdate, State
from tests.faults.fuzzing import few, quiet  # noqa: F401

# ----------------------------------------------------------------------- whole states

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
    *(torch.uint16, torch.uint32, torch.uint64),
    *(torch.float8_e4m3fn, torch.float8_e5m2),
)
NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20
).filter(lambda name: name != "__metadata__")


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=4))
    dtype = draw(st.sampled_from(DTYPES))
    size = math.prod(shape) * torch.empty(0, dtype=dtype).element_size()
    raw = torch.tensor(list(draw(st.binary(min_size=size, max_size=size))))
    if dtype is torch.bool:
        raw = raw % 2
    return raw.to(torch.uint8).view(dtype).reshape(shape)


@few
@given(
    state=st.dictionaries(NAMES, tensors(), max_size=4),
    client=NAMES,
    count=st.integers(0, 2**53),
    metrics=st.dictionaries(NAMES, st.floats(), max_size=3),
)
def test_any_state_comes_back_bit_for_bit(state, client, count, metrics):
    update = ClientUpdate(client, state, count, metrics)
    data = encode_update(update)
    found = decode_update(data, "update", state)
    assert (found.client, found.num_examples) == (client, count)
    finite = {k: v for k, v in metrics.items() if math.isfinite(v)}
    assert found.metrics == finite  # JSON has no NaN
    assert found.state.keys() == state.keys()
    assert all(fuzz._same(found.state[k], v) for k, v in state.items())
    assert update_bytes(update) == len(data)


# ------------------------------------------------------------------------ broken bytes


@st.composite
def broken(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Sound bytes, cut, changed, lengthened or glued; or any at all."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(data)))
        to = draw(st.integers(at, min(len(data), at + 16)))
        other = draw(st.sampled_from(seeds))
        new = draw(
            st.one_of(
                st.binary(max_size=16),
                st.just(other[at:to]),
                st.just(data[at:to] * 2),
                st.sampled_from(WORDS),
            )
        )
        data = draw(st.sampled_from([data[:at] + new + data[to:], data[:at] + new]))
    return draw(st.one_of(st.just(data), st.binary(max_size=64)))


WORDS = [
    *(b"NaN", b"-1", b"true", b"null", b"1e999", b"9" * 30, b"\xff" * 8, b"[" * 2000),
    *(b"{}", b'"a":1,', b"\\ud800", b'"\\u001b[2J"', b"__metadata__", b"\x00" * 8),
]


@pytest.mark.filterwarnings("ignore")  # Pillow's, of broken images
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_broken_bytes_are_refused_by_every_reader(name):
    target = fuzz.TARGETS[name]
    seeds = target.seeds()

    @few
    @given(broken(seeds))
    def check(data: bytes) -> None:
        target(data)

    for seed in seeds:
        target(seed)
    check()


# ----------------------------------------------------------- headers that lie, by hand


def file_of(header: Any, payload: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + payload


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict:
    shape = list(shape) if isinstance(shape, tuple) else shape
    offsets = list(offsets) if isinstance(offsets, tuple) else offsets
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


FOUR = bytes(4)
LIES = {
    "nothing": b"",
    "a length alone": (2**63).to_bytes(8, "little") + b"{}",
    "a length beyond the bytes": (100).to_bytes(8, "little") + b"{}",
    "no JSON object": file_of([1]),
    "huge": file_of({"w": entry(shape=(10**12,), offsets=(0, 4 * 10**12))}, FOUR),
    "huge beside zero": file_of({"w": entry(shape=(0, 2**63), offsets=(0, 0))}),
    "a product that overflows": file_of(
        {"w": entry(shape=(2**32, 2**32), offsets=(0, 0))}
    ),
    "negative": file_of({"w": entry(shape=(-1,), offsets=(0, 4))}, FOUR),
    "negative twice": file_of({"w": entry(shape=(-1, -1), offsets=(0, 4))}, FOUR),
    "a boolean": file_of({"w": entry(shape=[True], offsets=(0, 4))}, FOUR),
    "floats": file_of({"w": entry(shape=[1.0], offsets=[0.0, 4.0])}, FOUR),
    "offsets the wrong way": file_of({"w": entry(offsets=(4, 0))}, FOUR),
    "three offsets": file_of({"w": entry(offsets=(0, 4, 4))}, FOUR),
    "overlap": file_of({"a": entry(), "b": entry()}, FOUR),
    "a hole": file_of({"a": entry(offsets=(4, 8))}, bytes(8)),
    "bytes left over": file_of({"a": entry()}, bytes(8)),
    "an unknown dtype": file_of({"a": entry(dtype="OBJ")}, FOUR),
    "a dtype that is a list": file_of({"a": entry(dtype=["F32"])}, FOUR),
    "a thousand dimensions": file_of({"a": entry(shape=[1] * 1000)}, FOUR),
    "a name twice": file_of(
        b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2), FOUR
    ),
    "more fields": file_of({"a": {**entry(), "call": "os.system"}}, FOUR),
    "metadata of no texts": file_of({"__metadata__": {"fedclip": 1}}),
    "metadata that are a list": file_of({"__metadata__": []}),
    "deep": file_of(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "a number of a million digits": file_of(b'{"a":' + b"9" * 10**6 + b"}"),
    "NaN": file_of(b'{"a": NaN}'),
    "infinity": file_of(b'{"a": 1e999}'),
    "half a character": file_of(b'{"\xff": 1}'),
    "a lone surrogate": file_of(b'{"\\ud800": %s}' % json.dumps(entry()).encode()),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lying_header_is_refused(name):
    with pytest.raises(TensorBytesError):
        read_safetensors(LIES[name])
    with pytest.raises(UpdateError):
        decode_update(LIES[name])


def test_a_header_beyond_its_limit_is_not_parsed():
    padded = file_of(b"{}" + b" " * (5 << 20))
    with pytest.raises(TensorBytesError, match="do not hold the header"):
        read_safetensors(padded)


def forged(fields: Any) -> bytes:
    """An update with a right checksum, whatever its fields are."""
    return pack({"w": torch.ones(1)}, fields)


SOUND = {"client": "art", "num_examples": 1, "metrics": {"loss": 0.5}}


@pytest.mark.parametrize(
    "change",
    [
        {"num_examples": -1},
        {"num_examples": True},
        {"num_examples": 1.0},
        {"num_examples": 2**53 + 1},
        {"num_examples": "1"},
        {"num_examples": 10**400},
        {"client": None},
        {"client": ["a"]},
        {"client": "x" * 300},
        {"client": "art\nround 7: all is well"},
        {"client": "\x1b[2J"},
        {"client": "\ud800"},
        {"metrics": [1]},
        {"metrics": {"loss": True}},
        {"metrics": {"loss": "0.5"}},
        {"metrics": {"a\nb": 0.5}},
        {"more": 1},
    ],
)
def test_a_forged_envelope_is_refused(change):
    assert decode_update(forged(SOUND)).num_examples == 1
    with pytest.raises(UpdateError):
        decode_update(forged({**SOUND, **change}))


def test_fields_that_are_missing():
    for key in SOUND:
        with pytest.raises(UpdateError):
            decode_update(forged({k: v for k, v in SOUND.items() if k != key}))


def test_an_update_larger_than_what_was_sent_is_not_looked_at():
    sent: State = {"w": torch.zeros(10)}
    limit = size_limit(sent)
    assert limit < 2 * MARGIN
    large = encode_update(ClientUpdate("a", {"w": torch.zeros(limit)}, 1))
    with pytest.raises(UpdateError, match=f"expected at most {limit}"):
        decode_update(large, "client a", sent)
    assert len(decode_update(large).state["w"]) == limit


@pytest.mark.parametrize("name", LIES)
def test_refusing_takes_little_memory(name):
    """What a header declares is not reserved; JSON costs a small multiple of it."""
    tracemalloc.start()
    try:
        with pytest.raises(UpdateError):
            decode_update(LIES[name])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20 or peak < 64 * len(LIES[name])


@few
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
))  # fmt: skip
def test_any_json_in_the_envelope(value):
    try:
        data = forged({**SOUND, "metrics": value})
    except ValueError:
        return  # NaN, which pack refuses to write
    try:
        found = decode_update(data)
    except UpdateError:
        return
    assert all(math.isfinite(v) for v in found.metrics.values())


def test_json_with_two_meanings_is_none():
    for text in ('{"a": 1, "a": 2}', "[NaN]", "[1e999]", "[-Infinity]", "[" * 10**5):
        with pytest.raises(TensorBytesError):
            strict_json(text)


def test_metadata_of_other_software_is_no_update():
    data = file_of({"__metadata__": {"format": "pt"}, "w": entry()}, FOUR)
    assert read_safetensors(data)[1] == {"format": "pt"}
    with pytest.raises(UpdateError, match="another software"):
        unpack(data, "x")
