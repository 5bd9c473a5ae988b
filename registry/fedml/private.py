"""Cross-silo with data that only their clients have: is it such a run; its options.

Imports no FedML.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from ...config.fields import Option
from ...config.inputs import EMBEDDED_DATASET
from ...config.schema import RunConfig
from ...data.dataset import canonical_name
from ...data.partition import NO_TARGET
from ...errors import ConfigError
from ...settings.sources import Output
from ..common import options as common
from .grpc import count_processes
from .settings import (
    FILE,
    NAME,
    PRIVATE,
    SECONDS,
    START,
    TIMEOUT,
    OtherClientsError,
    bind,
    read_settings,
    value,
)

WORDS = common.Words(run=FILE, node=FILE)
_TEXT = Option("", "", str, False, None)
_SWITCH = Option("", "", bool, False, None)
_TOTAL, _CHOSEN = "client_num_in_total", "client_num_per_round"


@dataclass(frozen=True)
class Sampling:
    """How long the server waits, in seconds; without a key of the file, for ever."""

    start_timeout: float
    round_timeout: float
    min_sites: int = 1
    min_train_sites: int = 1


def is_private(args: Any) -> bool:
    """Whether each client has data of its own, the server at most a held-out domain.

    The file says so (``fedclip_private_data``).  Without a word it is so for a server
    that is told of no data, and for a client whose data are one client where the file
    counts several, or that has a name.  Raises ConfigError.
    """
    found = vars(args).get("_fedclip_private")
    if found is None:
        found = args._fedclip_private = _found(args)
        if found:
            _settle(args)
    return bool(found)


def _found(args: Any) -> bool:
    asked = value(args, PRIVATE, _SWITCH)
    silo = getattr(args, "training_type", None) == "cross_silo"
    if not silo or args.backend != "GRPC":
        if asked:
            raise ConfigError(f"{FILE}: {PRIVATE} works in cross_silo, over GRPC")
        return False
    if asked is not None:
        return bool(asked)
    data = read_settings(args)[0].data
    named = bool(data.root or data.features)
    if int(args.rank) == 0:
        return not named and canonical_name(data.dataset) != EMBEDDED_DATASET
    if value(args, NAME, _TEXT) is not None:
        return True
    return named and _is_one_of_several(args)


def _is_one_of_several(args: Any) -> bool:
    total = value(args, _TOTAL)
    if total is None:
        args.client_num_in_total = count_processes(args) - 1
    try:
        bind(args)
    except OtherClientsError as error:
        return error.count == 1
    finally:
        if total is None:
            args.client_num_in_total = None
            vars(args).pop("_fedclip", None)
    return False


def _settle(args: Any) -> None:
    """The number of clients, as FedML wants to know it: all that have an address."""
    addresses = count_processes(args) - 1
    total = value(args, _TOTAL) or addresses
    if total != addresses:
        raise ConfigError(
            f"{FILE}: {_TOTAL}: {total}, but {args.grpc_ipconfig_path} has lines for "
            f"{addresses} clients"
        )
    chosen, share = value(args, _CHOSEN), read_settings(args)[0].server.participation
    args._fedclip_share = min(1.0, chosen / total) if chosen else share
    args.client_num_in_total = args.client_num_per_round = args.worker_num = total


def server_settings(args: Any) -> tuple[RunConfig, Output, Sampling]:
    """What the server runs with; raises ConfigError for what it cannot do here."""
    for key in ("enable_defense", "enable_dp", "enable_attack", "enable_fhe"):
        if getattr(args, key, False):
            raise ConfigError(
                f"{FILE}: {key}: FedML's own works where all open one data set; with "
                "clients' own data use fedclip_aggregation, fedclip_dp_noise_multiplier"
            )
    config, out = read_settings(args)
    if config.data.partition != "domain":
        raise ConfigError(
            f"{FILE}: fedclip_partition: {config.data.partition}: each client's data "
            "are its own: leave it out"
        )
    every = int(getattr(args, "frequency_of_the_test", 1) or 1)
    train = replace(config.train, eval_every=every) if every > 1 else config.train
    server = replace(config.server, participation=args._fedclip_share)
    config = replace(config, train=train, server=server)
    args.comm_round = config.train.rounds
    start, rounds = (value(args, key, SECONDS) for key in (START, TIMEOUT))
    return config, out, Sampling(start or float("inf"), rounds or float("inf"))


def site_options(args: Any) -> dict[str, Any]:
    """What is a client's own, by the options' names; raises ConfigError for no data."""
    config, _ = read_settings(args)
    data, model = config.data, config.model
    if not (data.root or data.features or data.dataset == EMBEDDED_DATASET):
        raise ConfigError(
            f"rank {args.rank} names no data of its own: set fedclip_root or "
            f"fedclip_features in its {FILE}, or FEDCLIP_ROOT or FEDCLIP_FEATURES"
        )
    found = {
        "root": None if data.features else data.root,
        "features": data.features,
        "dataset": data.dataset,
        "on-bad-image": data.on_bad_image,
        "class-names": data.class_names,
        "split": data.split,
        "model-config": model.config_dir,
        "pretrained": model.pretrained,
        "device": model.device,
        "precision": model.precision,
        "client-name": value(args, NAME, _TEXT),
    }
    return {key: value for key, value in found.items() if value is not None}


def client_settings(shared: str, own: dict[str, Any]) -> RunConfig:
    """A client's configuration: the server's, with what is the client's own."""
    config = common.client_settings(shared, {}, own, WORDS)
    return replace(config, data=replace(config.data, targets=(NO_TARGET,)))
