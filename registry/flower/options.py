"""Flower's run config and node config as settings of a run.

Every option of ``fedclip run`` that sets a value is a key by its long name.  An empty
string stands for a key that is not given: Flower overrides none that is not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ...config.fields import PATH, Section, option, options_of, parse
from ...config.schema import RunConfig
from ...config.toml import to_dict
from ...data.partition import NO_TARGET
from ...errors import ConfigError, did_you_mean
from ...settings.options import Table
from ...settings.sources import Given, Output, add_notes, config_of, load_settings

ALIASES = {"num-server-rounds": "rounds", "fraction-train": "participation"}
FILE = "config"  # the key for the path of a fedclip.toml
OWN_DATA = ("features", "root")
# What may differ from client to client: where its data are, and on what it computes.
LOCAL = (
    *OWN_DATA,
    "dataset",
    "model-config",
    "pretrained",
    "device",
    "precision",
    "on-bad-image",
)
OF_THE_NODE = ("client-name", "partition-id", "num-partitions")

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Sampling(Section):
    """Which nodes take part in a round, and how long the server waits for them."""

    fraction_evaluate: float = option(1.0, within="[0, 1]")
    min_train_nodes: int = option(1, within="[1, inf)")
    min_available_nodes: int = option(2, within="[1, inf)")
    start_timeout: float = option(3600.0, within="(0, inf)")  # to connect, to encode
    round_timeout: float = option(3600.0, within="(0, inf)")  # for each phase


_SAMPLING = {o.name: o for o in options_of(Sampling)}


def server_settings(run_config: Values) -> tuple[RunConfig, Output, Sampling]:
    """Configuration, output directory and sampling of a run, from its run config.

    Raises ConfigError for an unknown key or a wrong value.
    """
    table = Table()
    keys = [*table.options, *ALIASES, *_SAMPLING, FILE]
    for key in run_config:
        if key not in keys:
            raise ConfigError(
                f"run config: unknown key {key!r}"
                f"{did_you_mean(key, keys, cutoff=0.75)} "
                "(keys are the long options of `fedclip run`, "
                f"{', '.join([*ALIASES, *_SAMPLING])} and {FILE})"
            )
    values = _given(run_config)
    chosen = {
        o.field: parse(o, values[name], _written("run config", name, values[name]))
        for name, o in _SAMPLING.items()
        if name in values
    }
    config, out = load_settings(_source(values, table), _file(values))
    if config.train.personalize != "none" and not set(config.data.targets) - {
        NO_TARGET
    }:
        line = (
            f"personalize = {config.train.personalize!r} has no effect: the data are "
        )
        line += "with the clients; `fedclip run` has them"
        config = add_notes(config, [line])
    return config, out, Sampling(**chosen)


def client_settings(shared: str, run_config: Values, node_config: Values) -> RunConfig:
    """A client's configuration: the server's, with what is the client's own.

    ``shared`` is what :func:`shared_text` made, or "" where the server is not ours.
    For what is the client's own (LOCAL), the node config comes first, then the run
    config, then FEDCLIP_* and fedclip.toml on that machine.  Raises ConfigError for a
    key of the node config that has no effect there.
    """
    _check_node(node_config)
    node, run = _given(node_config), _given(run_config)
    if has_own_data(node):
        run = {key: value for key, value in run.items() if key not in OWN_DATA}
    path = _file(run) if not shared else None
    own, _ = load_settings(_source({**run, **node}, Table()), path)
    if not shared:
        for field in ("compress", "compress_down"):
            if (codec := getattr(own.wire, field)) != "none":
                raise ConfigError(
                    f"{field.replace('_', '-')} = {codec!r}: only fedclip's own "
                    "strategy compresses, and this server is another"
                )
        return own
    config = config_of(json.loads(shared), "the server's configuration")
    data = replace(
        config.data,
        dataset=own.data.dataset if "dataset" in node else config.data.dataset,
        root=own.data.root,
        features=own.data.features,
        on_bad_image=own.data.on_bad_image,
        targets=(NO_TARGET,) if has_own_data(node) else config.data.targets,
    )
    model = replace(
        config.model,
        config_dir=own.model.config_dir,
        device=own.model.device,
        precision=own.model.precision,
        pretrained=config.model.pretrained
        if own.model.pretrained == "auto"
        else own.model.pretrained,
    )
    return replace(config, data=data, model=model)


def shared_text(config: RunConfig) -> str:
    """What all clients must share of ``config``, as JSON; paths and devices are not."""
    data = replace(config.data, root=None, features=None)
    model = replace(config.model, config_dir=None, device="auto")
    return json.dumps(to_dict(replace(config, data=data, model=model)))


def has_own_data(node_config: Values) -> bool:
    """Whether the node names data of its own, not its part of shared data."""
    return any(node_config.get(key) for key in OWN_DATA)


def _given(values: Values) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value != ""}


def _file(values: Values) -> str | None:
    """The path of a fedclip.toml, if ``values`` have one."""
    written = values.get(FILE)
    path: str | None = parse(PATH, written, _written("run config", FILE, written))
    return path


def _written(where: str, key: str, value: Any) -> str:
    return f"{where}: {key} = {value!r}"


def _source(values: Values, table: Table) -> dict[str, Given]:
    """Values by the options' names."""
    source = {}
    for key, value in values.items():
        option = table.options.get(ALIASES.get(key, key))
        if option is not None:
            written = _written("run config", key, value)
            source[option.name] = Given(value, written)
    return source


def _check_node(node_config: Values) -> None:
    """Raise ConfigError for a key that is of the run, or that looks misspelt."""
    allowed, options = (*LOCAL, *OF_THE_NODE), Table().options
    for key in node_config:
        if key in allowed:
            continue
        if key in options or key in ALIASES:
            raise ConfigError(
                f"node config: {key} is the same for all clients: set it in the run "
                f"config; a node sets {', '.join(allowed)}"
            )
        if near := did_you_mean(key, allowed, cutoff=0.75):
            raise ConfigError(f"node config: unknown key {key!r}{near}")
