"""What a host's server makes of the data that it has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError, UpdateError
from fedclip_plugin.registry.common.roster import (
    Card,
    make_card,
    read_card,
    setup_of_server,
    setup_without_data,
)
from fedclip_plugin.runs.host_run import open_setup


def test_a_server_with_all_data_refuses_rounds_that_train_on_nothing(toy: Path) -> None:
    data = {"features": str(toy), "targets": ("photo",), "partition": "iid"}
    some = RunConfig(data=DataConfig(**data, clients=4))
    assert len(setup_of_server(some).fed.clients) == 4
    single = RunConfig(data=DataConfig(**data, clients=120))  # an image each
    with pytest.raises(ConfigError, match="none of the 120 clients has a training"):
        setup_of_server(single)


def cards_of(toy: Path, alg: str) -> list[Card]:
    config = RunConfig(alg, data=DataConfig(features=str(toy)))
    setup = open_setup(config)
    return [make_card(setup, client, own_data=True) for client in setup.fed.clients]


def test_text_features_are_those_of_a_client_that_sent_them(toy: Path) -> None:
    config, cards = RunConfig("linear"), cards_of(toy, "linear")
    whole = setup_without_data(config, cards).fed.task.text
    cards[0] = replace(cards[0], text=b"")
    assert torch.equal(setup_without_data(config, cards).fed.task.text, whole)
    nobody = [replace(card, text=b"") for card in cards]
    with pytest.raises(UpdateError, match="--alg linear: no client sent the text feat"):
        setup_without_data(config, nobody)
    zeros = setup_without_data(RunConfig(), nobody).fed.task.text  # needs none
    assert zeros.shape == whole.shape


def test_a_card_of_zeros_is_refused(toy: Path) -> None:
    (card, *_) = cards_of(toy, "fedclip")
    values: dict[str, Any] = card.as_dict()
    assert read_card(values) == card
    values["sketch"] = [0.0] * len(card.sketch)
    with pytest.raises(UpdateError, match="all its text features are zeros"):
        read_card(values)
