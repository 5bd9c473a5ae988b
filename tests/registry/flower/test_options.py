"""Flower's settings and the roster of clients; none of it needs Flower."""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedclip_plugin.algorithms import get_algorithm
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError, UpdateError
from fedclip_plugin.registry import flower_host
from fedclip_plugin.registry.common.options import shared_text
from fedclip_plugin.registry.common.roster import (
    Card,
    Roster,
    common_model,
    difference,
    make_card,
    read_card,
    setup_without_data,
)
from fedclip_plugin.registry.flower.options import (
    client_settings,
    server_settings,
)
from fedclip_plugin.runs.host_run import Setup, open_setup
from fedclip_plugin.settings.sources import Output
from tests.federation.toy import write_toy


@pytest.fixture(autouse=True)
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def toy_setup(tmp_path: Path, **kwargs: int) -> Setup:
    path = write_toy(tmp_path / "-".join(["toy", *map(str, kwargs.values())]), **kwargs)
    return open_setup(RunConfig(data=DataConfig(dataset="toy", features=str(path))))


def cards(tmp_path: Path, **kwargs: int) -> list[Card]:
    setup = toy_setup(tmp_path, **kwargs)
    return [make_card(setup, client, False) for client in setup.fed.clients]


def test_without_flower_the_module_imports_and_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in [n for n in sys.modules if n.partition(".")[0] == "flwr"]:
        monkeypatch.delitem(sys.modules, name)
    for part in ("client", "strategy", "nodes", "records"):
        name = f"fedclip_plugin.registry.flower.{part}"
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "flwr", None)
    for name in flower_host.__all__:
        with pytest.raises(ConfigError, match=r"fedclip-plugin\[flower\]"):
            getattr(flower_host, name)
    with pytest.raises(AttributeError, match="no attribute 'apps'"):
        flower_host.apps  # noqa: B018


# --------------------------------------------------------------------------- run config


def test_every_option_is_a_key_by_its_long_name(tmp_path: Path) -> None:
    config, out, sampling = server_settings(
        {
            "num-server-rounds": 7,
            "fraction-train": 0.5,
            "local-epochs": 2,
            "lr": 1,
            "seed": 3,
            "target": "photo",
            "prompt": "'a {}' 'the {}'",
            "train-precision": "bf16",
            "model": "",
            "out": "runs/x",
            "min-available-nodes": 4,
            "round-timeout": 30,
        }
    )
    assert (config.train.rounds, config.server.participation) == (7, 0.5)
    assert (config.train.local_epochs, config.train.lr) == (2, 1.0)
    assert config.train.precision == "bf16"
    assert config.seeds == (3,)
    assert config.data.targets == ("photo",)
    assert config.data.prompts == ("a {}", "the {}")
    assert config.model.name == "auto"
    assert out == Output(tmp_path / "runs/x")
    assert (sampling.min_available_nodes, sampling.round_timeout) == (4, 30.0)


def test_the_run_config_is_over_variables_and_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fedclip.toml").write_text("[train]\nlr = 0.1\nbatch_size = 8\n")
    (tmp_path / "other.toml").write_text("[train]\nbatch_size = 9\n")
    monkeypatch.setenv("FEDCLIP_LR", "0.2")
    monkeypatch.setenv("FEDCLIP_WEIGHT_DECAY", "0.3")
    train = server_settings({"lr": 0.4})[0].train
    assert (train.lr, train.weight_decay, train.batch_size) == (0.4, 0.3, 8)
    assert server_settings({"config": "other.toml"})[0].train.batch_size == 9


@pytest.mark.parametrize(
    ("run_config", "told"),
    [
        ({"learning-rate": 1.0}, "run config: unknown key 'learning-rate'"),
        ({"num-server-round": 1}, "did you mean num-server-rounds"),
        ({"lr": "fast"}, "run config: lr = 'fast': expected a number >= 0"),
        ({"seed": "one"}, "seed = 'one': expected a whole number"),
        ({"config": True}, "run config: config = True: expected a text"),
        ({"config": "$NOT_SET_HERE"}, "the variable $NOT_SET_HERE is not set"),
        ({"round-timeout": 0}, "run config: round-timeout = 0: expected a number > 0"),
        (
            {"min-available-nodes": 0},
            "min-available-nodes = 0: expected a whole number >= 1",
        ),
        (
            {"fraction-evaluate": 2.0},
            "fraction-evaluate = 2.0: expected a number in [0, 1]",
        ),
        ({"fraction-train": 0.0}, "fraction-train = 0.0: expected a number in (0, 1]"),
    ],
)
def test_a_wrong_key_or_value_is_told(run_config: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        server_settings(run_config)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


# -------------------------------------------------------------------------- node config


def shared(**run_config: Any) -> str:
    return shared_text(server_settings(run_config)[0])


def test_the_server_decides_how_and_the_node_where(tmp_path: Path) -> None:
    sent = shared(lr=0.5, seed=4, dataset="mine", features="/of/the/server")
    config = client_settings(sent, {"lr": 0.1}, {"root": "data", "device": "cpu"})
    assert config.train.lr == 0.5
    assert config.seeds == (4,)
    assert config.data.dataset == "mine"
    assert (config.data.root, config.data.features) == (str(tmp_path / "data"), None)
    assert config.data.targets == ("none",)


def test_the_node_is_over_the_run_config_and_the_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDCLIP_FEATURES", "of-the-variable")

    def features(run_config: dict[str, Any], node: dict[str, Any]) -> str | None:
        return client_settings(shared(), run_config, node).data.features

    assert features({}, {}) == str(tmp_path / "of-the-variable")
    assert features({"features": "of-the-run"}, {}) == str(tmp_path / "of-the-run")
    both = features({"features": "of-the-run"}, {"features": "of-the-node"})
    assert both == str(tmp_path / "of-the-node")


def test_a_client_of_another_server_reads_the_run_config() -> None:
    config = client_settings("", {"lr": 0.25, "mine": 1}, {"partition-id": 0})
    assert config.train.lr == 0.25


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"feature": "x"}, "unknown key 'feature'; did you mean features?"),
        ({"partition_id": 0}, "did you mean partition-id?"),
        ({"lr": 0.1}, "lr is the same for all clients: set it in the run config"),
    ],
)
def test_a_wrong_key_of_the_node_is_told(node: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        client_settings(shared(), {}, node)
    assert told in str(caught.value)


def test_foreign_keys_of_the_node_are_let_be() -> None:
    client_settings(shared(), {}, {"partition-id": 0, "hospital": "north"})


# ------------------------------------------------------------------------------- roster


def test_a_card_survives_the_way(tmp_path: Path) -> None:
    card = cards(tmp_path)[1]
    assert read_card(card.as_dict()) == card
    assert (card.name, card.index, card.rows) == ("cartoon", 1, [36, 12, 12])
    assert card.shot is not None
    for change in ({"newer": 1}, {"index": "1"}, {"name": "a\nb"}):
        with pytest.raises(UpdateError, match="install the same version"):
            read_card({**card.as_dict(), **change})
    assert replace(card, zero_shot=float("nan")).shot is None


def test_the_model_of_most_clients_is_that_of_the_run(tmp_path: Path) -> None:
    art, cartoon, photo = cards(tmp_path)
    odd = replace(art, classes=["x"])
    assert common_model([photo, odd, cartoon]) is cartoon
    assert common_model([cartoon, odd]) is odd  # a tie: the first client's


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": "ViT-B-32"}, "its model is ViT-B-32, while the run has toy"),
        ({"embed_dim": 8}, "width 8"),
        ({"prompt": ["{}"]}, "its prompts are {}"),
        ({"logit_scale": 10.0}, "other text features"),
        ({"sketch": [0.0]}, "other text features"),
        ({"logit_scale": float("nan")}, "other text features"),
    ],
)
def test_what_differs_is_told(
    tmp_path: Path, changed: dict[str, Any], told: str
) -> None:
    card = cards(tmp_path)[0]
    assert difference(card, card) is None
    assert told in str(difference(replace(card, **changed), card))


def test_another_precision_is_no_other_model(tmp_path: Path) -> None:
    setup = toy_setup(tmp_path)
    rounded = setup.features.text.bfloat16().float()
    low = replace(setup, features=replace(setup.features, text=rounded))
    client = setup.fed.clients[0]
    card, other = (make_card(s, client, False) for s in (setup, low))
    assert card != other
    assert difference(other, card) is None
    assert difference(cards(tmp_path, seed=1)[0], card) is not None


def test_clients_come_in_their_order(tmp_path: Path) -> None:
    roster = Roster(logging.getLogger("fedclip"))
    for node, card in zip((30, 10, 20), cards(tmp_path)[::-1]):
        roster.add(node, card)
    assert list(roster.clients([10, 20, 30])) == [20, 10, 30]
    assert list(roster.clients([10, 30])) == [10, 30]
    assert roster.strangers([10, 40]) == [40]


def test_text_features_travel_where_the_server_needs_them(tmp_path: Path) -> None:
    setup, config = toy_setup(tmp_path), RunConfig("linear")
    fed = replace(setup.fed, algorithm=get_algorithm("linear"))
    card = make_card(replace(setup, fed=fed), fed.clients[0], False)
    text = setup.features.class_text
    assert read_card(card.as_dict()) == card
    assert setup_without_data(config, [card]).features.text.equal(text)
    plain = cards(tmp_path)[0]
    assert plain.text == b""
    assert not setup_without_data(setup.config, [plain]).features.text.any()
    halved = (text / 2).numpy().tobytes()
    for wrong, told in ((halved, "not those of its model"), (b"ab", "another shape")):
        with pytest.raises(UpdateError, match=told):
            read_card({**card.as_dict(), "text": wrong})


def test_a_server_without_data_knows_what_the_clients_say(tmp_path: Path) -> None:
    whole = toy_setup(tmp_path)
    bare = setup_without_data(whole.config, cards(tmp_path))
    first, same = (s.fed.algorithm.init(s.fed.task) for s in (whole, bare))
    assert all(torch.equal(first[k], same[k]) for k in first)
    assert bare.features.key == whole.features.key
    assert bare.features.classes == whole.features.classes
    assert bare.fed.clients == ()
