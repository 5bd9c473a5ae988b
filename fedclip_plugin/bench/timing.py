"""Interleaved timing: every candidate once a round, so that load hits all alike.

The order is another one in each round: a plain read of memory takes up to a sixth
longer right after some candidates than after others.
"""

from __future__ import annotations

import os
import platform
import random
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch

from .. import capabilities


class Timing(NamedTuple):
    """Microseconds of one call."""

    minimum: float
    median: float


def settle_allocator() -> None:
    """Make glibc keep freed memory, as it does in a process that has loaded a model.

    Before a first large block is freed it returns each megabyte to the kernel at once:
    whoever then allocates one pays 256 page faults, FedML's mean of 1000 a second.
    """
    torch.empty(31 << 20, dtype=torch.uint8)  # its limit is 32 MiB


def interleave(
    candidates: Mapping[str, Callable[[], object]], rounds: int, per_call: int = 1
) -> dict[str, Timing]:
    """Times of each candidate over ``rounds``, by the ``per_call`` units of work."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for run in candidates.values():  # warm up: allocate, compile, fill caches
        run()
        run()
    order, shuffle = list(candidates), random.Random(0).shuffle
    for _ in range(rounds):
        shuffle(order)
        for name in order:
            run = candidates[name]
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    unit = 1e6 / per_call
    return {k: Timing(min(v) * unit, median(v) * unit) for k, v in seconds.items()}


def fma_peak() -> float:
    """GFLOP/s of register FMAs on one thread, in the instruction set in use."""
    run = torch.ops.fedclip_benchmark.fma_peak
    best = 0.0
    for _ in range(50):
        start = time.perf_counter()
        operations = run(5000)
        best = max(best, operations / (time.perf_counter() - start) / 1e9)
    return best


def cpu_name() -> str:
    """The processor's model name, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    kernels = capabilities()
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),
        "isa": kernels["isa"],
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
