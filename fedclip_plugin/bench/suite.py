"""Which sizes are measured, in which order; and the report that comes of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch

from .. import capabilities
from ..errors import ConfigError
from .operators import (
    Row,
    forward,
    mean,
    round_over_clients,
    short_round,
    train_step,
)
from .timing import fma_peak, machine, settle_allocator

Report = dict[str, Any]
Progress = Callable[[str, int, int, str], None]  # what, done, total, note
ADAM_BYTES = 6.5e6  # of a client of width 512: parameters and moments


class Measurement(NamedTuple):
    """A row still to be measured, on that many threads."""

    label: str
    threads: int
    run: Callable[[], Row]


def _fitting(counts: tuple[int, ...]) -> list[int]:
    """Those numbers of clients whose states take less than a half of the memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [n for n in counts if n * ADAM_BYTES < memory / 2]


def _on(
    threads: int, quick: bool, compiled: bool, rounds: int
) -> Iterator[Measurement]:
    for batch in (32,) if quick else (32, 256):
        step = partial(train_step, 512, batch, rounds, compiled)
        yield Measurement(f"training step, B = {batch}", threads, step)
    for rows in (32,) if quick else (32, 256, 4096):
        times = 3 * rounds if rows < 1000 else max(5, rounds // 8)
        run = partial(forward, 512, rows, times, compiled)
        yield Measurement(f"adapter forward, B = {rows}", threads, run)
    for n in (4, 16) if quick else (4, 16, 100, 1000):
        run = partial(mean, n, max(8, min(rounds, 2000 // n)))
        yield Measurement(f"weighted mean of {n}", threads, run)


def measurements(
    quick: bool, compiled: bool, rounds: int, threads: int
) -> Iterator[Measurement]:
    """Everything, on one thread and on ``threads``; sizes beyond 512 on one."""
    for count in sorted({1, threads}):
        yield from _on(count, quick, compiled, rounds)
    if not quick:
        for dim in (384, 640, 768, 1024):
            step = partial(train_step, dim, 32, rounds, compiled)
            yield Measurement(f"training step, D = {dim}", 1, step)
        for batch in (2, 4, 8, 16, 24, 64, 128):
            step = partial(train_step, 512, batch, rounds, compiled)
            yield Measurement(f"training step, B = {batch}", 1, step)
    for n in (4,) if quick else _fitting((1, 2, 4, 16, 100, 1000)):
        run = partial(round_over_clients, n, max(2, 4 * rounds // n), threads)
        yield Measurement(f"round over {n} clients", threads, run)
    for n in (4,) if quick else (100,):
        run = partial(short_round, n, max(2, rounds // 10))
        yield Measurement(f"one step each of {n} clients", threads, run)


def run(
    quick: bool, compiled: bool, rounds: int, threads: int, progress: Progress
) -> Report:
    """Measure; ``machine`` and ``rows`` of the result are plain JSON.

    Raises ConfigError where there are no compiled kernels to measure.
    """
    kernels = capabilities()
    if not kernels["compiled"]:
        raise ConfigError(
            f"nothing to measure, the kernels are not in use: {kernels['note']}; "
            "pip install -e . builds them"
        )
    settle_allocator()
    before = torch.get_num_threads()
    facts = {**machine(), "fma_peak_gflops": round(fma_peak())}
    todo = list(measurements(quick, compiled, rounds, threads))
    rows = []
    try:
        for done, measurement in enumerate(todo):
            progress("measure", done, len(todo), measurement.label)
            torch.set_num_threads(measurement.threads)
            rows.append(measurement.run())
    finally:
        torch.set_num_threads(before)
    progress("measure", len(todo), len(todo), "")
    return {"machine": facts, "rows": rows}
