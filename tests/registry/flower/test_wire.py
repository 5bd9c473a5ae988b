"""Arrays of strangers in Flower's messages: checked before memory is taken for them."""

from __future__ import annotations

import io
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("flwr", reason="needs Flower: pip install 'fedclip-plugin[flower]'")

from flwr.app import Array, ArrayRecord, ConfigRecord, Message

from fedclip_plugin.errors import UpdateError
from fedclip_plugin.features.feature_set import load_features
from fedclip_plugin.registry.flower.records import count_bytes, read_array, to_state
from fedclip_plugin.registry.flower_host import FedClip
from tests.registry.flower.grid import equal, grid_of, in_training, options, without


def npy(header: str, payload: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin-1") + b"\n"
    size = len(text).to_bytes(2 if version == 1 else 4, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + payload


def described(descr: object = "<f4", shape: object = (1,)) -> str:
    return repr({"descr": descr, "fortran_order": False, "shape": shape})


def array(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array("float32", (1,), stype, data)


class Runs:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("ran"),))


def objects() -> bytes:
    """An array of objects, as NumPy writes it where pickles are allowed."""
    out = io.BytesIO()
    np.save(out, np.array([Runs()], dtype=object), allow_pickle=True)
    return out.getvalue()


LIES = {
    "nothing": b"",
    "a pickle": pickle.dumps(Runs()),
    "an array of objects": objects(),
    "four terabytes": npy(described(shape=(10**12,)), bytes(4)),
    "more than there are addresses": npy(described(shape=(2**70,)), bytes(4)),
    "negative": npy(described(shape=(-1,)), bytes(4)),
    "negative twice": npy(described(shape=(-1, -1)), bytes(4)),
    "a boolean": npy(described(shape=(True,)), bytes(4)),
    "too short": npy(described(shape=(2,)), bytes(4)),
    "too long": npy(described(shape=(1,)), bytes(8)),
    "texts": npy(described("<U1"), bytes(4)),
    "a record": npy(described([("a", "<f4")]), bytes(4)),
    "complex": npy(described("<c8"), bytes(8)),
    "many dimensions": npy(described(shape=(1,) * 33), bytes(4)),
    "a program": npy("__import__('os').system('touch ran')", bytes(4)),
    "a chain of signs": npy("-" * 9000 + "1", bytes(4)),
    "deep brackets": npy("(" * 9000, bytes(4)),
    "an unknown version": npy(described(), bytes(4), version=9),
    "no header": b"\x93NUMPY\x01\x00\xff\xff",
}


@pytest.mark.parametrize("name", LIES)
def test_what_is_no_array_of_numbers_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tracemalloc.start()
    try:
        with pytest.raises(UpdateError, match="w is not an array"):
            read_array("w", array(LIES[name]))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20
    assert not (tmp_path / "ran").exists()


def test_another_serialisation_is_refused():
    good = npy(described(), bytes(4))
    assert read_array("w", array(good)).shape == (1,)
    with pytest.raises(UpdateError):
        read_array("w", array(good, "pickle"))


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i1", "u2", "i8", "?", ">f4"])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (0, 5)])
def test_arrays_come_back_as_flower_reads_them(dtype, shape):
    values = np.ones(shape, dtype=dtype)
    for kept in (values, np.asfortranarray(values)):
        sent = Array(kept)
        found = read_array("w", sent)
        assert np.array_equal(found, sent.numpy())
        assert found.flags.writeable
        assert torch.from_numpy(found).shape == kept.shape


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_broken_arrays_are_refused_or_are_numbers(data):
    good = Array(np.arange(6, dtype=np.float32).reshape(2, 3)).data
    at = data.draw(st.integers(0, len(good)))
    to = data.draw(st.integers(at, len(good)))
    broken = good[:at] + data.draw(st.binary(max_size=12)) + good[to:]
    try:
        found = to_state(ArrayRecord({"w": array(broken)}))
    except UpdateError:
        return
    assert found["w"].numel() * found["w"].element_size() <= len(broken)


@pytest.mark.parametrize("name", ["four terabytes", "a chain of signs", "a pickle"])
def test_a_hostile_array_costs_only_its_update(toy, name):
    def change(reply: Message) -> Message:
        reply.content["arrays"] = ArrayRecord({"0.weight": array(LIES[name])})
        return reply

    config = options(toy)
    grid = grid_of(config, faults={99: in_training(change, 1)})
    strategy = FedClip(config)
    found = to_state(strategy.start(grid).arrays)
    want = without(strategy.config, load_features(toy), "cartoon", 1)
    assert equal(found, want)
    assert strategy.host_run.now.progress.quarantined == 1


def test_empty_texts_do_not_stop_the_counting(toy):
    def change(reply: Message) -> Message:
        reply.content["more"] = ConfigRecord({"a": "", "b": []})
        return reply

    config = options(toy)
    grid = grid_of(config, faults={99: in_training(change, 1)})
    strategy = FedClip(config)
    strategy.start(grid)
    assert strategy.host_run.now.progress.quarantined == 0
    assert count_bytes([]) == 0


@pytest.mark.parametrize(
    "change",
    [
        {"embed_dim": 10**12}, {"embed_dim": 0}, {"logit_scale": 0.0},
        {"logit_scale": float("nan")}, {"sketch": ["a"]}, {"sketch": [float("nan")]},
        {"classes": [1, 2]}, {"classes": ["a\x1b[2J"]}, {"rows": [-1, 0, 0]},
        {"rows": [0.5]}, {"name": "a\nb"}, {"index": -1}, {"zero_shot": 7.0},
    ],
    ids=str,
)  # fmt: skip
def test_a_hostile_introduction_is_refused(toy, change, caplog):
    """A card decides what the run takes for its model: no value of it is believed."""

    def fault(message: Message, context: Any, app: Any) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == "query":
            reply.content["config"] = ConfigRecord(
                {**reply.content["config"], **change}
            )
        return reply

    config = options(toy, num_server_rounds=1)
    strategy = FedClip(config)
    strategy.start(grid_of(config, faults={100: fault}))
    assert "node 100 refused: its answer" in caplog.text
    assert strategy.host_run.now.result.participants == ["cartoon", "photo"]
