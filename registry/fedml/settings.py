"""FedML's configuration as ours: ``fedml_config.yaml`` -> ``RunConfig``.

FedML flattens the sections of its YAML file to the attributes of one object, ``args``.
Its own keys (``comm_round``, ``epochs``, ...) set what they name there.  Every option
of ``fedclip run`` that has no key in FedML is ``fedclip_<option>``, in any section.
"""

from __future__ import annotations

import difflib
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...config.schema import EMBEDDED_DATASET, RunConfig
from ...data.dataset import KNOWN, canonical_name
from ...errors import ConfigError
from ...runs.host_run import Setup, open_setup
from ...settings.sources import PREFIX, Output, load_settings, variables

OPTIMIZER = "FedCLIP"
FILE = "fedml_config.yaml"
TIMEOUT = "fedclip_round_timeout"  # seconds; of cross-silo alone
TLS = ("fedclip_tls_ca", "fedclip_tls_cert", "fedclip_tls_key")  # PEM files; likewise
PICKLE = "fedclip_allow_pickle"  # cross-silo over anything but gRPC
_FILE_KEY = "fedclip_config"  # of a fedclip.toml elsewhere
_PARTITIONS = {"homo": "iid", "hetero": "dirichlet"}  # FedML's words for them


@dataclass(frozen=True)
class _Key:
    """A key of FedML's and what it sets here."""

    setting: str
    kind: Callable[[Any], Any]


KEYS = {
    "dataset": _Key("data.dataset", str),
    "comm_round": _Key("train.rounds", int),
    "epochs": _Key("train.local_epochs", int),
    "batch_size": _Key("train.batch_size", int),
    "learning_rate": _Key("train.lr", float),
    "weight_decay": _Key("train.weight_decay", float),
    "random_seed": _Key("seeds", int),
    "partition_alpha": _Key("data.alpha", float),
    "client_num_in_total": _Key("data.clients", int),
    "client_num_per_round": _Key("train.participation", int),
}


@dataclass(frozen=True)
class Binding:
    """What one process of a FedML run works with; ``out`` is the server's alone."""

    setup: Setup
    out: Output


def selected(args: Any) -> bool:
    """Whether the run's ``federated_optimizer`` is FedCLIP, in any case."""
    name = getattr(args, "federated_optimizer", None)
    return isinstance(name, str) and name.lower() == OPTIMIZER.lower()


def bind(args: Any) -> Binding:
    """Settings and data of a run; read once per ``args``, opened once a process.

    Sets ``client_num_in_total`` and ``client_num_per_round`` where they are absent.
    Raises FedClipError in one line.
    """
    found = vars(args).get("_fedclip")
    if not isinstance(found, Binding):
        config, out = read_settings(args)
        found = Binding(open_setup(config), out)
        _settle_clients(args, [client.name for client in found.setup.fed.clients])
        args._fedclip = found
    return found


def read_settings(args: Any) -> tuple[RunConfig, Output]:
    """The configuration that ``args`` ask for, and where its results go."""
    ours = _own_keys(args)
    host = {key.setting: value(args, name, key.kind) for name, key in KEYS.items()}
    seed = host.pop("seeds")
    total, chosen = host.pop("data.clients"), host.pop("train.participation")
    alpha = host.pop("data.alpha")
    if total and chosen:
        host["train.participation"] = min(1.0, chosen / total)
    partition = ours.get(f"{PREFIX}PARTITION") or os.environ.get(f"{PREFIX}PARTITION")
    if partition is not None and partition != "domain":
        partition = _PARTITIONS.get(partition, partition)
        host |= {"data.partition": partition, "data.clients": total}
        host["data.alpha"] = alpha if partition == "dirichlet" else None
        ours.pop(f"{PREFIX}PARTITION", None)
    path = ours.pop(_FILE_KEY.upper(), None)
    environ = {**os.environ, **_device(args), **ours}
    settings = {**host, "seeds": None if seed is None else [seed]}
    config, out = load_settings(settings, path, environ)
    return _with_root(args, config), out


def value(args: Any, name: str, kind: Callable[[Any], Any]) -> Any:
    """FedML's key as the ``kind`` that it should be; None where it is not given.

    YAML reads ``5e-5`` as a text: here it is the number that was meant.
    """
    given = getattr(args, name, None)
    if given is None or given == "":
        return None
    try:
        found = kind(given)
        exact = kind is not int or float(given) == found
    except (TypeError, ValueError):
        exact = False
    if not exact or isinstance(given, bool):
        what = {int: "a whole number", float: "a number"}.get(kind, "a text")  # type: ignore[call-overload]
        raise ConfigError(f"{FILE}: {name}: expected {what}, got {given!r}")
    return found


def _own_keys(args: Any) -> dict[str, str]:
    """``fedclip_*`` keys as the variables of the same names."""
    known = variables()
    named = {known_.dest: name for name, known_ in known.items()}
    theirs = {named[key.setting]: name for name, key in KEYS.items()}
    found = {}
    for name, given in vars(args).items():
        variable = name.upper()
        if not name.startswith(PREFIX.lower()) or given is None:
            continue
        if name in (TIMEOUT, PICKLE, *TLS):
            continue
        if variable not in known and name != _FILE_KEY:
            near = difflib.get_close_matches(variable, known, n=1)
            hint = f"; did you mean {near[0].lower()}?" if near else ""
            raise ConfigError(f"{FILE}: unknown key {name}{hint}")
        if variable in theirs:
            raise ConfigError(
                f"{FILE}: {name}: FedML has a key of its own for it, {theirs[variable]}"
            )
        found[variable] = _as_text(given)
    return found


def _as_text(given: Any) -> str:
    """A list is written as the variables of several values expect it."""
    is_list = isinstance(given, (list, tuple))
    return shlex.join(map(str, given)) if is_list else str(given)


def _device(args: Any) -> dict[str, str]:
    using = getattr(args, "using_gpu", None)
    return {} if using is None else {f"{PREFIX}DEVICE": "auto" if using else "cpu"}


def _with_root(args: Any, config: RunConfig) -> RunConfig:
    """FedML keeps data under ``data_cache_dir``: images are looked for there last."""
    data, cache = config.data, getattr(args, "data_cache_dir", None)
    if not cache or data.root or data.features or data.dataset == EMBEDDED_DATASET:
        return config
    root = Path(cache).expanduser().resolve()
    if canonical_name(data.dataset) in KNOWN or (root / data.dataset).is_dir():
        return replace(config, data=replace(data, root=str(root)))
    return config


def _settle_clients(args: Any, names: list[str]) -> None:
    total = value(args, "client_num_in_total", int) or len(names)
    chosen = value(args, "client_num_per_round", int) or total
    if total != len(names):
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise ConfigError(
            f"{FILE}: client_num_in_total: {total}, but this run has {len(names)} "
            f"clients ({shown}); set it to {len(names)}, or make {total} clients with "
            "fedclip_partition: iid or dirichlet"
        )
    if not 1 <= chosen <= total:
        raise ConfigError(
            f"{FILE}: client_num_per_round: {chosen}: expected 1 to {total}, "
            "client_num_in_total"
        )
    args.client_num_in_total, args.client_num_per_round = total, chosen
