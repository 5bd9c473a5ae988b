"""FedML 0.9.6: ``federated_optimizer: FedCLIP`` in simulations and in cross-silo.

``register()`` makes the name known to FedML for this process, ``run()`` is the command
``fedclip fedml``.  By hand, with FedMLRunner: ``load`` and ``create_model`` give data
and adapter; ``FedCLIPTrainer``, ``FedCLIPAggregator`` and ``FedCLIPAPI`` are FedML's
roles.  FedML is imported when first needed.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from ...errors import ConfigError, FedClipError
from .checks import check_file, check_mode, check_offline
from .data import create_model, load
from .grpc import check_silo
from .log import forward
from .private import is_private
from .settings import FILE, OPTIMIZER, bind, selected

__all__ = ["create_model", "go_offline", "load", "register", "run"]

VERSION = "0.9.6"
_INSTALL = "pip install 'fedclip-plugin[fedml]'"
_CLASSES = {
    "FedCLIPTrainer": "trainer",
    "FedCLIPAggregator": "server",
    "FedCLIPAPI": "simulation",
}
_ROLES = ("args", "device", "dataset", "model")
_SIGNATURES = {  # what is wrapped below
    "simulation.simulator:SimulatorSingleProcess": (
        *(*_ROLES, "client_trainer", "server_aggregator"),
    ),
    "simulation.simulator:SimulatorMPI": (
        *(*_ROLES, "client_trainer", "server_aggregator"),
    ),
    "simulation.simulator:SimulatorNCCL": (
        *(*_ROLES, "client_trainer", "server_aggregator"),
    ),
    "cross_silo.fedml_server:FedMLCrossSiloServer": (*_ROLES, "server_aggregator"),
    "cross_silo.fedml_client:FedMLCrossSiloClient": (*_ROLES, "model_trainer"),
    "data:load": ("args",),
    "model:create": ("args", "output_dim"),
}
_DEFAULTS = {  # FedML reads these without asking whether they are there
    "using_gpu": False,
    "gpu_mapping_file": None,
    "gpu_mapping_key": None,
    "scenario": "horizontal",
    "frequency_of_the_test": 1,
}


def role(name: str) -> Any:
    """One of FedML's roles, by its name; AttributeError for another."""
    if name not in _CLASSES:
        raise AttributeError(f"module 'fedml_host' has no attribute {name!r}")
    _fedml()
    return getattr(importlib.import_module(f"{__package__}.{_CLASSES[name]}"), name)


def _fedml() -> Any:
    """The package; ConfigError where it is absent or of another version."""
    try:
        import fedml
    except ImportError as error:
        raise ConfigError(f"FedML cannot be imported ({error}): {_INSTALL}") from error
    if fedml.__version__ != VERSION:
        raise ConfigError(
            f"fedml {fedml.__version__} is not known here, {VERSION} is: {_INSTALL}"
        )
    return fedml


def register() -> str:
    """Make ``federated_optimizer: FedCLIP`` known to FedML in this process.

    Other optimizers pass through.  Safe to call twice.  Raises ConfigError where FedML
    is not the one that is known; nothing is changed then.
    """
    fedml = _fedml()
    targets = {name: _target(name) for name in _SIGNATURES}
    for name, (owner, attribute) in targets.items():
        _check_signature(name, getattr(owner, attribute))
    plays: dict[str, Callable[..., Any]] = {
        "SimulatorSingleProcess": _play_sp,
        "SimulatorMPI": _play_mpi,
        "SimulatorNCCL": _refuse_nccl,
        "FedMLCrossSiloServer": _play_server,
        "FedMLCrossSiloClient": _play_client,
    }
    for owner, attribute in targets.values():
        if attribute in plays:
            _wrap(getattr(owner, attribute), "__init__", plays[attribute])
    _wrap(fedml.data, "load", load)
    _wrap(fedml.model, "create", lambda args, output_dim: create_model(args))
    forward()
    return f"FedML {VERSION}: federated_optimizer: {OPTIMIZER} is known in this process"


def _target(name: str) -> tuple[Any, str]:
    module, _, attribute = name.partition(":")
    return importlib.import_module(f"fedml.{module}"), attribute


def _check_signature(name: str, item: Any) -> None:
    got = tuple(inspect.signature(item).parameters)  # of a class: without self
    if got != _SIGNATURES[name]:
        raise ConfigError(
            f"fedml.{name.replace(':', '.')} takes ({', '.join(got)}), expected "
            f"({', '.join(_SIGNATURES[name])}): not FedML {VERSION} as released"
        )


def _wrap(owner: Any, name: str, ours: Callable[..., Any]) -> None:
    """Call ``ours`` where the run's optimizer is FedCLIP, the original elsewhere."""
    original = getattr(owner, name)
    if hasattr(original, "_before_fedclip"):
        return

    @functools.wraps(original)
    def chosen(*args: Any, **named: Any) -> Any:
        # args is FedML's first parameter, after self where there is one
        first = named.get("args", args[isinstance(owner, type) :][:1])
        settings = first[0] if isinstance(first, tuple) and first else first
        return (ours if selected(settings) else original)(*args, **named)

    chosen._before_fedclip = original  # type: ignore[attr-defined]
    setattr(owner, name, chosen)


def _play_sp(self: Any, *arguments: Any, **named: Any) -> None:
    from .simulation import FedCLIPAPI

    self.fl_trainer = FedCLIPAPI(*arguments, **named)


def _play_mpi(self: Any, *arguments: Any, **named: Any) -> None:
    from .simulation import simulate

    simulate(*arguments, **named)


def _refuse_nccl(self: Any, *arguments: Any, **named: Any) -> None:
    raise ConfigError(f"{FILE}: backend: NCCL: FedCLIP runs with sp or MPI")


def _play_server(self: Any, *arguments: Any, **named: Any) -> None:
    from .silo import serve

    serve(*arguments, **named)


def _play_client(self: Any, *arguments: Any, **named: Any) -> None:
    from .silo import join

    join(*arguments, **named)


def go_offline() -> None:
    """Let FedML start without its servers: no configuration is fetched, none asked.

    Call it before ``fedml.init``.  Otherwise FedML tries for 2.5 seconds, or for
    minutes behind a firewall that does not answer.
    """
    fedml = _fedml()
    configs = importlib.import_module("fedml.core.mlops.mlops_configs").MLOpsConfigs
    nothing: tuple[dict[str, str], ...] = ({}, {}, {"LOG_SERVER_URL": ""}, {})
    configs.fetch_all_configs = staticmethod(lambda: nothing)
    fedml.collect_env = lambda: None


def run(
    cf: Path,
    rank: int | None = None,
    role: str | None = None,
    offline: bool = False,
    algorithm: str = "fedclip",
    run_id: str | None = None,
    extra: Sequence[str] = (),
    resume: bool = False,
) -> None:
    """Run what ``cf``, a ``fedml_config.yaml``, describes, with FedCLIP.

    Cross-silo: ``rank`` 0 is the server, and the others its clients.  ``resume`` is as
    ``fedclip_resume: true`` in the file.  Raises FedClipError on what is wrong with
    file, options, data or machine.
    """
    fedml = _fedml()
    register()
    keys = check_file(cf)
    args = _arguments(fedml, cf, rank, role, run_id, extra)
    vars(args).update(keys)  # FedML passes over a file that it cannot read
    flags = {"rank": rank, "role": role, "run_id": run_id}
    vars(args).update((k, v) for k, v in flags.items() if v is not None)
    if offline:
        check_offline(args)
        go_offline()
    _choose(args, algorithm)
    if resume:
        args.fedclip_resume = True
    mode = check_mode(args, rank, role)
    if args.training_type == "cross_silo":
        check_silo(args)
    if not is_private(args):
        _bind_quietly(args)
    with _all_or_none(args) if mode == "MPI" else nullcontext():
        args = fedml.init(args, check_env=not offline)
        device = fedml.device.get_device(args)
        dataset, classes = fedml.data.load(args)
        model = fedml.model.create(args, classes)
        fedml.FedMLRunner(args, device, dataset, model).run()


@contextmanager
def _all_or_none(args: Any) -> Iterator[None]:
    """Where an MPI process fails, end all: they would wait for it for ever."""
    try:
        yield
    except Exception as error:
        ours = isinstance(error, FedClipError)
        if ours:
            print(f"fedclip: error: {' '.join(str(error).split())}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        if getattr(args, "comm", None) is not None:
            args.comm.Abort(2 if ours else 1)
        raise


def _bind_quietly(args: Any) -> None:
    """Open the data; leave no handler behind that would print FedML's log twice."""
    before = list(logging.root.handlers)
    bind(args)
    for handler in set(logging.root.handlers).difference(before):
        logging.root.removeHandler(handler)  # a library's logging.basicConfig
    logging.getLogger("fedclip").handlers.clear()  # FedML's log shows our warnings
    forward()
    if getattr(args, "worker_num", None) is None:
        args.worker_num = args.client_num_per_round


def _arguments(
    fedml: Any,
    cf: Path,
    rank: int | None,
    role: str | None,
    run_id: str | None,
    extra: Sequence[str],
) -> Any:
    """FedML's ``args``: it reads the command line by itself."""
    role = role or ("client" if rank else "server")
    words = ["--cf", str(cf), "--role", role, "--rank", str(rank or 0)]
    words += [] if run_id is None else ["--run_id", run_id]
    before, sys.argv = sys.argv, [sys.argv[0], *words, *extra]
    try:
        args = fedml.load_arguments()
    finally:
        sys.argv = before
    for name, default in _DEFAULTS.items():
        if not hasattr(args, name):
            setattr(args, name, default)
    return args


def _choose(args: Any, algorithm: str) -> None:
    named = getattr(args, "federated_optimizer", None)
    if not selected(args):
        print(f"fedclip: federated_optimizer: {named} becomes {OPTIMIZER}", flush=True)
    args.federated_optimizer = OPTIMIZER
    if algorithm != "fedclip":
        args.fedclip_alg = algorithm
