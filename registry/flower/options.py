"""Flower's run config and node config as settings of a run.

Every option of ``fedclip run`` that sets a value is a key by its long name.  An empty
string stands for a key that is not given: Flower overrides none that is not there.
"""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ...config.schema import RunConfig
from ...config.toml import from_dict, to_dict
from ...data.partition import NO_TARGET
from ...errors import ConfigError
from ...settings.sources import Output, load_settings, variables

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
class Sampling:
    """Which nodes take part in a round, and how long the server waits for them."""

    fraction_evaluate: float = 1.0
    min_train_nodes: int = 1
    min_available_nodes: int = 2
    start_timeout: float = 3600.0  # seconds to connect, and to encode the images
    round_timeout: float = 3600.0  # seconds for each phase of a round

    def __post_init__(self) -> None:
        for name in ("min_train_nodes", "min_available_nodes"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{_key(name)} must be 1 or more")
        if not 0 <= self.fraction_evaluate <= 1:
            raise ConfigError("fraction-evaluate must be from 0 to 1")
        for name in ("start_timeout", "round_timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{_key(name)} must be a number of seconds above 0")


def _key(name: str) -> str:
    return name.replace("_", "-")


_SAMPLING = {_key(field.name): field.name for field in fields(Sampling)}


def server_settings(run_config: Values) -> tuple[RunConfig, Output, Sampling]:
    """Configuration, output directory and sampling of a run, from its run config.

    Raises ConfigError for an unknown key or a wrong value.
    """
    known = [*_flags(), *ALIASES, *_SAMPLING, FILE]
    for key in run_config:
        if key not in known:
            raise ConfigError(
                f"run config: unknown key {key!r}: {_near(key, known)}keys are the "
                "long options of `fedclip run`, "
                f"{', '.join([*ALIASES, *_SAMPLING])} and {FILE}"
            )
    given = _given(run_config)
    chosen = {_SAMPLING[k]: v for k, v in given.items() if k in _SAMPLING}
    config, out = load_settings(_destinations(given), given.get(FILE))
    return config, out, from_dict(Sampling, chosen, "run config")


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
    path = run.get(FILE) if not shared else None
    own, _ = load_settings(_destinations({**run, **node}), path)
    if not shared:
        for flag in ("compress", "compress_down"):
            if (codec := getattr(own.train, flag)) != "none":
                raise ConfigError(
                    f"{flag.replace('_', '-')} = {codec!r}: only fedclip's own "
                    "strategy compresses, and this server is another"
                )
        return own
    config = from_dict(RunConfig, json.loads(shared), "the server's configuration")
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


def _flags() -> dict[str, Any]:
    """Long name of every option of ``fedclip run`` that sets a value -> its action."""
    return {
        action.option_strings[0].removeprefix("--"): action
        for action in variables().values()
    }


def _given(values: Values) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value != ""}


def _destinations(values: Values) -> dict[str, Any]:
    """Place in RunConfig -> value; texts are split where an option takes several."""
    flags, found = _flags(), {}
    for key, value in values.items():
        action = flags.get(ALIASES.get(key, key))
        if action is None:
            continue
        if action.dest in ("seeds", "data.targets", "data.prompts"):
            value = _several(key, value, action.type or str)
        found[action.dest] = Path(value) if action.dest == "out" else value
    return found


def _several(key: str, value: Any, kind: type) -> list[Any]:
    words = shlex.split(value) if isinstance(value, str) else [value]
    try:
        return [kind(word) for word in words]
    except ValueError as error:
        raise ConfigError(f"{key} = {value!r}: {error}") from error


def _check_node(node_config: Values) -> None:
    """Raise ConfigError for a key that is of the run, or that looks misspelt."""
    known = (*LOCAL, *OF_THE_NODE)
    for key in node_config:
        if key in known:
            continue
        if key in _flags() or key in ALIASES:
            raise ConfigError(
                f"node config: {key} is the same for all clients: set it in the run "
                f"config; a node sets {', '.join(known)}"
            )
        near = _near(key, known)
        if near:
            raise ConfigError(f"node config: unknown key {key!r}: {near}".strip(": "))


def _near(key: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
    return f"did you mean {near[0]}? " if near else ""
