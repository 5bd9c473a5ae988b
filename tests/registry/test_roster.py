"""What a host's server makes of the data that it has."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.registry.common.roster import setup_of_server


def test_a_server_with_all_data_refuses_rounds_that_train_on_nothing(toy: Path) -> None:
    data = {"features": str(toy), "targets": ("photo",), "partition": "iid"}
    some = RunConfig(data=DataConfig(**data, clients=4))
    assert len(setup_of_server(some).fed.clients) == 4
    single = RunConfig(data=DataConfig(**data, clients=120))  # an image each
    with pytest.raises(ConfigError, match="none of the 120 clients has a training"):
        setup_of_server(single)
