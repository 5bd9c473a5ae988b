"""Names to select by: duplicates, spelling, and what other packages add."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fedclip_plugin.algorithms import (
    ALGORITHMS,
    ELSEWHERE,
    FedClip,
    get_algorithm,
    with_values,
)
from fedclip_plugin.algorithms.adapter import ADAPTERS, AttentionAdapter, initial_state
from fedclip_plugin.algorithms.plugins import Registry
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.settings.sources import configure
from tests.algorithms.installed import install, write_plugin
from tests.federation.toy import toy_features

THIRD_PARTY = """
from fedclip_plugin.algorithms import FedClip

class Mine(FedClip):
    name = "mine"

not_an_algorithm = "a string"
"""


@pytest.fixture
def third_party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution with entry points, as pip would leave it."""
    entries = (
        "mine = third_party:Mine\n"
        "odd = third_party:not_an_algorithm\n"
        "gone = third_party:missing\n"
    )
    write_plugin(tmp_path, "third_party", THIRD_PARTY, entries)
    install(monkeypatch, tmp_path, "third_party")


@pytest.mark.usefixtures("third_party")
def test_an_entry_point_adds_an_algorithm():
    assert {"fedclip", "mine"} <= set(ALGORITHMS)
    assert get_algorithm("Mine").name == "mine"


@pytest.mark.usefixtures("third_party")
def test_a_broken_entry_point_is_named():
    with pytest.raises(ConfigError, match=r"'gone' of third_party:missing cannot be"):
        get_algorithm("gone")
    with pytest.raises(ConfigError, match="not a subclass"):
        get_algorithm("odd")
    assert isinstance(get_algorithm("fedclip"), FedClip)  # the others still work


def test_names_are_lower_case_and_given_once():
    registry: Registry[str] = Registry("alg", "no.such.group")
    registry.register("one", "first")
    registry.register("one", "first")  # the same thing again is no harm
    with pytest.raises(ConfigError, match="'one' is registered already"):
        registry.register("one", "second")
    for name in ("Two", "", " "):
        with pytest.raises(ConfigError, match="expected a lower-case name"):
            registry.register(name, "x")
    assert registry.get("ONE") == "first"
    assert (list(registry), len(registry)) == (["one"], 1)
    assert "One" in registry
    assert "two" not in registry
    with pytest.raises(ConfigError, match="unknown --alg 'onne'; did you mean one"):
        registry.get("onne")


@pytest.mark.parametrize(
    ("name", "use"),
    [
        ("feddg-ga", "use --weighting gap"),
        ("FedDG_GA", "use --weighting gap"),
        ("fedyogi", "use --server-optimizer yogi"),
        ("ggeur", "use --augment ggeur"),
        ("hlora", "use --alg fedavg-lora --lora-mean products"),
    ],
)
def test_a_method_that_is_an_option_is_told_as_one(name: str, use: str) -> None:
    with pytest.raises(ConfigError, match=use):
        get_algorithm(name)


def test_what_is_told_of_methods_that_are_options_can_be_typed() -> None:
    for use in ELSEWHERE.values():
        flags, values = words_of(use)[::2], words_of(use)[1::2]
        configure({flag[2:].replace("-", "_"): v for flag, v in zip(flags, values)})


def words_of(use: str) -> list[str]:
    return use.partition("use ")[2].split()


class Bias(nn.Module):
    """An adapter without kernels: a learned shift."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(x + self.shift, dim=1)


@pytest.fixture
def more_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ADAPTERS, "_items", dict(ADAPTERS._items))
    ADAPTERS.register("bias", Bias)
    ADAPTERS.register("eager", AttentionAdapter)


def last_state(adapter: str, **train: object) -> dict[str, Tensor]:
    settings = {"rounds": 3, "adapter": adapter, "batch_size": 8, **train}
    config = with_values(RunConfig(data=DataConfig(dataset="toy")), settings)
    fed = build_federation(toy_features(), config, "photo", seed=0)
    *_, last = federate(fed)
    return last.state


@pytest.mark.usefixtures("more_adapters")
def test_an_adapter_of_others_is_trained():
    state = last_state("bias", lr=0.05)
    assert set(state) == {"shift"}
    assert float(state["shift"].abs().max()) > 0.05


@pytest.mark.usefixtures("more_adapters")
def test_autograd_and_the_fused_kernels_train_alike():
    fused = last_state("attention", lr=1e-3, local_epochs=2)
    eager = last_state("eager", lr=1e-3, local_epochs=2)
    start = initial_state(16, seed=0)
    for key, value in fused.items():
        moved = float((value - start[key]).norm())
        assert float((value - eager[key]).norm()) < 1e-3 * moved


def test_an_unknown_adapter_is_one_line():
    with pytest.raises(ConfigError, match="unknown --adapter 'atention'; did you mean"):
        last_state("atention")
