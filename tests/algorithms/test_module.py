"""A state as a module, as hosts pass it on."""

from __future__ import annotations

import pytest
import torch

from fedclip_plugin.algorithms.module import StateModule


def test_a_state_is_held_under_its_own_keys():
    state = {"share": torch.rand(3), "image.0.weight": torch.rand(2, 2)}
    state["steps"] = torch.tensor(3)
    module = StateModule(state)
    held = module.state_dict()
    assert set(held) == set(state)
    assert all(held[key].equal(value) for key, value in state.items())
    assert all(held[key].dtype == value.dtype for key, value in state.items())
    state["share"] += 1
    assert not held["share"].equal(state["share"])  # a copy


def test_it_takes_over_whatever_it_is_given():
    module = StateModule({"a.b": torch.zeros(2), "c": torch.zeros(1)})
    module.load_state_dict({"c": torch.ones(4), "d.e.f": torch.ones(1)})
    held = module.state_dict()
    assert set(held) == {"c", "d.e.f"}
    assert held["c"].equal(torch.ones(4))
    module.load_state_dict(held)  # its own tensors
    assert module.state_dict()["d.e.f"].equal(torch.ones(1))


def test_it_predicts_nothing():
    with pytest.raises(NotImplementedError, match="predict"):
        StateModule({})(torch.zeros(1))
