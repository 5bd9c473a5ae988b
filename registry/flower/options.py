"""Flower's run config and node config as settings of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ...config.fields import Section, option
from ...config.schema import RunConfig
from ...settings.sources import Output
from ..common import options as common


@dataclass(frozen=True)
class Sampling(Section):
    """Which nodes take part in a round, and how long the server waits for them."""

    fraction_evaluate: float = option(1.0, within="[0, 1]")
    min_train_nodes: int = option(1, within="[1, inf)")
    min_available_nodes: int = option(2, within="[1, inf)")
    start_timeout: float = option(3600.0, within="(0, inf)")  # to connect, to encode
    ask_nodes: str = option("auto", choices=("auto", "all", "drawn"))  # what they are
    round_timeout: float = option(3600.0, within="(0, inf)")  # for each phase


WORDS = common.Words(
    run="run config",
    node="node config",
    aliases={"num-server-rounds": "rounds", "fraction-train": "participation"},
    sampling=Sampling,
)
NO_PLACE = (
    "the node config has no partition-id: start the SuperNode with "
    "--node-config 'partition-id=0', and 1, 2, ... for the others"
)


def server_settings(
    run_config: Mapping[str, Any],
) -> tuple[RunConfig, Output, Sampling]:
    """Configuration, output directory and sampling of a run, from its run config."""
    config, out, sampling = common.server_settings(run_config, WORDS)
    return config, out, cast(Sampling, sampling)


def client_settings(
    shared: str, run_config: Mapping[str, Any], node_config: Mapping[str, Any]
) -> RunConfig:
    """A client's configuration: the server's, with what is the client's own."""
    return common.client_settings(shared, run_config, node_config, WORDS)
