from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedclip_plugin.errors import UpdateError
from fedclip_plugin.wire.message import (
    decode_update,
    encode_update,
    state_bytes,
    update_bytes,
)
from fedclip_plugin.wire.update import ClientUpdate


def make_update(**changes: object) -> ClientUpdate:
    torch.manual_seed(0)
    state = {"0.weight": torch.randn(8, 8), "0.bias": torch.randn(8)}
    fields = {
        "client": "art",
        "state": state,
        "num_examples": 12,
        "metrics": {"loss": 0.5},
    }
    return ClientUpdate(**{**fields, **changes})  # type: ignore[arg-type]


def test_round_trip():
    update = make_update(client='Zo\u00eb "the" client')
    found = decode_update(encode_update(update))
    assert (found.client, found.num_examples) == (update.client, 12)
    assert found.metrics == {"loss": 0.5}
    assert all(torch.equal(found.state[k], v) for k, v in update.state.items())


@pytest.mark.parametrize("client", ["a", "art_painting", 'quoted "\u00e9"'])
def test_counted_bytes_are_the_real_ones(client):
    update = make_update(client=client, metrics={"loss": 1 / 3})
    assert update_bytes(update) == len(encode_update(update))
    assert state_bytes(update.state) > 4 * 72


def test_payload_is_the_adapter_alone():
    update = make_update()
    assert len(encode_update(update)) < 4 * 72 + 600


def test_one_flipped_bit_in_the_tensors_is_noticed():
    data = bytearray(encode_update(make_update()))
    data[-3] ^= 1
    with pytest.raises(UpdateError, match="altered"):
        decode_update(bytes(data), "client art")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_torn_or_foreign_bytes_raise_update_error(data):
    good = encode_update(make_update())
    kind = data.draw(st.sampled_from(["cut", "noise", "flip"]))
    if kind == "cut":
        bad = good[: data.draw(st.integers(0, len(good) - 1))]
    elif kind == "noise":
        bad = data.draw(st.binary(max_size=200))
    else:
        at = data.draw(st.integers(0, len(good) - 1))
        bad = (
            good[:at]
            + bytes([good[at] ^ data.draw(st.integers(1, 255))])
            + good[at + 1 :]
        )
    try:
        found = decode_update(bad)
    except UpdateError:
        return
    # a flip that the checksum cannot see must not have changed anything
    assert found.num_examples == 12
    assert all(torch.equal(found.state[k], v) for k, v in make_update().state.items())


def test_negative_count_is_refused():
    with pytest.raises(UpdateError, match="malformed"):
        decode_update(encode_update(make_update(num_examples=-1)))
