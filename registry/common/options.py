"""Options that a host hands to a server and to its clients, as settings of a run.

Every option of ``fedclip run`` that sets a value is a key by its long name.  An empty
string stands for a key that is not given: Flower overrides none that is not there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...algorithms import Client, algorithm_class
from ...config.fields import PATH, Section, options_of, parse
from ...config.schema import RunConfig
from ...config.toml import to_dict
from ...data.listing import some
from ...data.partition import NO_TARGET
from ...errors import ConfigError, did_you_mean
from ...runs.host_run import Setup
from ...settings.options import Table
from ...settings.sources import Given, Output, add_notes, config_of, load_settings

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
    "class-names",
    "split",
)
OF_THE_NODE = ("client-name", "partition-id", "num-partitions")

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Words:
    """How a host calls things: the server's options, a client's, keys of its own."""

    run: str
    node: str
    aliases: Mapping[str, str] = field(default_factory=dict)
    sampling: type[Section] = Section  # options of the host's own server


def server_settings(
    run_config: Values, words: Words
) -> tuple[RunConfig, Output, Section]:
    """Configuration, output directory and sampling of a run, from a server's options.

    Raises ConfigError for an unknown key or a wrong value.
    """
    table = Table()
    own = {o.name: o for o in options_of(words.sampling)}
    keys = [*table.options, *words.aliases, *own, FILE]
    for key in run_config:
        if key not in keys:
            raise ConfigError(
                f"{words.run}: unknown key {key!r}"
                f"{did_you_mean(key, keys, cutoff=0.75)} "
                "(keys are the long options of `fedclip run`, "
                f"{', '.join([*words.aliases, *own])} and {FILE})"
            )
    values = _given(run_config)
    chosen = {
        o.field: parse(o, values[name], _written(words.run, name, values[name]))
        for name, o in own.items()
        if name in values
    }
    source = _source(values, table, words)
    config, out = load_settings(source, _file(values, words))
    if config.train.personalize != "none" and not set(config.data.targets) - {
        NO_TARGET
    }:
        line = (
            f"personalize = {config.train.personalize!r} has no effect: the data are "
        )
        line += "with the clients; `fedclip run` has them"
        config = add_notes(config, [line])
    return config, out, words.sampling(**chosen)


def client_settings(
    shared: str, run_config: Values, node_config: Values, words: Words
) -> RunConfig:
    """A client's configuration: the server's, with what is the client's own.

    ``shared`` is what :func:`shared_text` made, or "" where the server is not ours.
    For what is the client's own (LOCAL), the node config comes first, then the run
    config, then FEDCLIP_* and fedclip.toml on that machine.  Raises ConfigError for a
    key of the node config that has no effect there.
    """
    _check_node(node_config, words)
    node, run = _given(node_config), _given(run_config)
    if has_own_data(node):
        run = {key: value for key, value in run.items() if key not in OWN_DATA}
    path = _file(run, words) if not shared else None
    own, _ = load_settings(_source({**run, **node}, Table(), words), path)
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
        class_names=own.data.class_names,
        split=own.data.split if "split" in node else config.data.split,
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
    data = replace(config.data, root=None, features=None, class_names=None)
    model = replace(config.model, config_dir=None, device="auto")
    return json.dumps(to_dict(replace(config, data=data, model=model)))


def has_own_data(node_config: Values) -> bool:
    """Whether the node names data of its own, not its part of shared data."""
    return any(node_config.get(key) for key in OWN_DATA)


def check_alignment(config: RunConfig, own_data: bool) -> None:
    """Refuse a method for which clients need each other's features, which are apart."""
    if own_data and algorithm_class(config.algorithm).transductive:
        raise ConfigError(
            f"--alg {config.algorithm} aligns clients to each other's features, and "
            "this node's data are its own: run it where nodes share the data"
        )


def find_client(setup: Setup, node: Values, own_data: bool, remedy: str) -> Client:
    """The client that a node is, by ``partition-id`` or ``client-name``.

    Data of its own that hold one client are that client, whose index is the node's
    partition-id: so it trains as it would beside the others' data.  Raises ConfigError
    with the ``remedy`` where there is none.
    """
    place, name = node.get("partition-id"), node.get("client-name")
    clients = setup.fed.clients
    if place is None and (name is None or (own_data and len(clients) == 1)):
        raise ConfigError(remedy)
    partition = setup.config.data.partition
    if own_data and name is None and partition != "domain":
        raise ConfigError(
            f"--partition {partition} cuts data that are this client's own into "
            f"{len(clients)} ({some(c.name for c in clients)}): set client-name to the "
            "one that it is, or leave --partition out"
        )
    if own_data and len(clients) == 1:
        alone = clients[0]
        return replace(alone, index=int(str(place)), name=str(name or alone.name))
    if own_data and place is not None and name is not None:
        return replace(setup.client(str(name)), index=int(str(place)))
    return setup.client(str(name) if name is not None else int(str(place)))


def _given(values: Values) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value != ""}


def _file(values: Values, words: Words) -> str | None:
    """The path of a fedclip.toml, if ``values`` have one."""
    written = values.get(FILE)
    path: str | None = parse(PATH, written, _written(words.run, FILE, written))
    return path


def _written(where: str, key: str, value: Any) -> str:
    return f"{where}: {key} = {value!r}"


def _source(values: Values, table: Table, words: Words) -> dict[str, Given]:
    """Values by the options' names."""
    source = {}
    for key, value in values.items():
        option = table.options.get(words.aliases.get(key, key))
        if option is not None:
            written = _written(words.run, key, value)
            source[option.name] = Given(value, written)
    return source


def _check_node(node_config: Values, words: Words) -> None:
    """Raise ConfigError for a key that is of the run, or that looks misspelt."""
    allowed, options = (*LOCAL, *OF_THE_NODE), Table().options
    for key in node_config:
        if key in allowed:
            continue
        if key in options or key in words.aliases:
            raise ConfigError(
                f"{words.node}: {key} is the same for all clients: set it in the "
                f"{words.run}; here belong {', '.join(allowed)}"
            )
        if near := did_you_mean(key, allowed, cutoff=0.75):
            raise ConfigError(f"{words.node}: unknown key {key!r}{near}")


def in_order(sites: list[str]) -> list[str]:
    """The names of sites in the order of their numbers: site-2 before site-10."""

    def key(name: str) -> tuple[str, int, str]:
        front = name.rstrip("0123456789")
        return front, int(name[len(front) :] or 0), name

    return sorted(sites, key=key)
