"""FedML's configuration as ours: ``fedml_config.yaml`` -> ``RunConfig``.

FedML flattens the sections of its YAML file to the attributes of one object, ``args``.
Its own keys (``comm_round``, ``epochs``, ...) set what they name there.  Every option
of ``fedclip run`` that has no key in FedML is ``fedclip_<option>``, in any section.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...config.fields import PATH, Option, parse
from ...config.inputs import EMBEDDED_DATASET
from ...config.schema import RunConfig
from ...data.dataset import KNOWN, canonical_name
from ...errors import ConfigError, did_you_mean
from ...federation.build import participants
from ...federation.doubts import check_training
from ...runs.host_run import Setup, open_setup
from ...settings.options import PREFIX, Table
from ...settings.sources import Given, Output, load_settings, outside

OPTIMIZER = "FedCLIP"
FILE = "fedml_config.yaml"
TIMEOUT = "fedclip_round_timeout"  # seconds; of cross-silo alone
TLS = ("fedclip_tls_ca", "fedclip_tls_cert", "fedclip_tls_key")  # PEM files; likewise
PICKLE = "fedclip_allow_pickle"  # cross-silo over anything but gRPC
PRIVATE = "fedclip_private_data"  # cross-silo over gRPC: clients' data are their own
NAME = "fedclip_client_name"  # of a client with data of its own
START = "fedclip_start_timeout"  # seconds; until such clients said what they are
_OF_SILO = (TIMEOUT, PICKLE, PRIVATE, NAME, START, *TLS)
_FILE_KEY = "fedclip_config"  # of a fedclip.toml elsewhere
_PER_ROUND = "client_num_per_round"
_PARTITIONS = {"homo": "iid", "hetero": "dirichlet"}  # FedML's words for them


KEYS = {  # FedML's -> the option that it sets
    "dataset": "dataset",
    "comm_round": "rounds",
    "epochs": "local-epochs",
    "batch_size": "batch-size",
    "learning_rate": "lr",
    "weight_decay": "weight-decay",
    "random_seed": "seed",
    "partition_alpha": "alpha",
    "client_num_in_total": "clients",
    "client_num_per_round": "participation",
}
SECONDS = Option("", "", float, False, None, within="[0, inf)")
_COUNT = Option("", "", int, False, None, within="[1, inf)")


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

    Sets ``comm_round``, ``client_num_in_total`` and ``client_num_per_round``: FedML
    takes them as they are.  Raises FedClipError in one line.
    """
    found = vars(args).get("_fedclip")
    if not isinstance(found, Binding):
        config, out = read_settings(args)
        setup = open_setup(config)
        names, share = [c.name for c in setup.fed.clients], config.server.participation
        _settle_clients(args, names, share)
        check_training(setup.fed)  # not before: a client's own data say less
        drawn = args.client_num_per_round / len(names)
        if participants(names, share, 0, 1) != participants(names, drawn, 0, 1):
            server = replace(config.server, participation=drawn)
            setup = open_setup(replace(config, server=server))
        args.comm_round = config.train.rounds
        found = args._fedclip = Binding(setup, out)
    return found


def read_settings(args: Any) -> tuple[RunConfig, Output]:
    """The configuration that ``args`` ask for, and where its results go."""
    ours, path = _own_keys(args, Table())
    host = {option: _given(args, key) for key, option in KEYS.items()}
    total, chosen = (value(args, k) for k in ("client_num_in_total", _PER_ROUND))
    host["participation"] = host["clients"] = None
    if total and chosen:
        share = min(1.0, chosen / total)
        host["participation"] = Given(share, f"{FILE}: {_PER_ROUND}: {chosen}")
    alpha = host.pop("alpha")
    partition = ours.get("partition") or outside(path).get("partition")
    if partition is not None and partition.value != "domain":
        kind = _PARTITIONS.get(str(partition.value), partition.value)
        host["partition"] = Given(kind, partition.written)
        if "clients-per-domain" not in {**outside(path), **ours}:
            host["clients"] = _given(args, "client_num_in_total")
        host["alpha"] = alpha if kind in ("dirichlet", "quantity") else None
    known = {name: given for name, given in host.items() if given is not None}
    config, out = load_settings({**_device(args), **ours, **known}, path)
    return _with_root(args, config), out


def value(args: Any, name: str, option: Option = _COUNT) -> Any:
    """FedML's key as the value of ``option``; None where it is not given."""
    given = _given(args, name)
    return None if given is None else parse(option, *given)


def _given(args: Any, name: str) -> Given | None:
    """A key of the YAML file; YAML reads ``5e-5`` as a text."""
    found = getattr(args, name, None)
    if found is None or found == "":
        return None
    return Given(found, f"{FILE}: {name}: {found}")


def _own_keys(args: Any, table: Table) -> tuple[dict[str, Given], str | None]:
    """What ``fedclip_*`` keys set, by the options' names; and ``fedclip_config``."""
    options = {name.lower(): o for name, o in table.variables().items()}
    theirs = {option: key for key, option in KEYS.items()}
    found, path = {}, None
    for name in vars(args):
        given = _given(args, name)
        if not name.startswith(PREFIX.lower()) or given is None:
            continue
        if name in _OF_SILO:
            continue
        if name == _FILE_KEY:
            path = parse(PATH, *given)
            continue
        if name not in options:
            near = did_you_mean(name, [*options, *_OF_SILO])
            raise ConfigError(f"{FILE}: unknown key {name}{near}")
        option = options[name]
        if option.name in theirs:
            raise ConfigError(
                f"{FILE}: {name}: FedML has a key of its own for it, "
                f"{theirs[option.name]}"
            )
        found[option.name] = given
    return found, path


def _device(args: Any) -> dict[str, Given]:
    using = getattr(args, "using_gpu", None)
    if using is None:
        return {}
    return {"device": Given("auto" if using else "cpu", f"{FILE}: using_gpu: {using}")}


def _with_root(args: Any, config: RunConfig) -> RunConfig:
    """FedML keeps data under ``data_cache_dir``: images are looked for there last."""
    data, root = config.data, None
    if not (data.root or data.features or data.dataset == EMBEDDED_DATASET):
        root = value(args, "data_cache_dir", PATH)
    if root is None:
        return config
    if canonical_name(data.dataset) in KNOWN or Path(root, data.dataset).is_dir():
        return replace(config, data=replace(data, root=root))
    return config


class OtherClientsError(ConfigError):
    """The data make another number of clients, ``count``, than the file says."""

    def __init__(self, line: str, count: int) -> None:
        super().__init__(line)
        self.count = count


def _settle_clients(args: Any, names: list[str], share: float) -> None:
    total = value(args, "client_num_in_total") or len(names)
    chosen = value(args, _PER_ROUND) or max(1, round(share * total))
    if total != len(names):
        shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
        raise OtherClientsError(
            f"{FILE}: client_num_in_total: {total}, but this run has {len(names)} "
            f"clients ({shown}); set it to {len(names)}, or make {total} clients with "
            "fedclip_partition: iid or dirichlet",
            len(names),
        )
    if not 1 <= chosen <= total:
        raise ConfigError(
            f"{FILE}: client_num_per_round: {chosen}: expected 1 to {total}, "
            "client_num_in_total"
        )
    args.client_num_in_total, args.client_num_per_round = total, chosen
