"""Memory for the results of one round after another.

The first touch of a page is a fault, and the system clears it: for the adapters of a
round that takes as long as a step of training.  malloc gives blocks of this size back
whenever they are free (glibc: beyond 32 MiB, whatever it is told).
"""

from __future__ import annotations

import mmap
import threading
import weakref

import torch
from torch import Tensor

_LEAST = 1 << 20  # bytes; malloc keeps smaller blocks


class BufferPool:
    """Blocks that are lent as tensors, and again once no tensor is left of them.

    They go back to the system with the pool, or where one of another size is wanted.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}  # by size
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[BufferPool], tuple[()]]:
        return BufferPool, ()  # a copy starts with no block

    def rows(self, count: int, columns: int, like: Tensor) -> Tensor:
        """An uninitialised (count, columns) of the type and device of ``like``."""
        size = count * columns * like.element_size()
        real = type(like) is Tensor and like.device.type == "cpu"  # no fake of tracing
        if not real or size < _LEAST:
            return like.new_empty(count, columns)
        try:
            block = self._take(size)
        except OSError:  # no mapping is left: torch may find memory, or says how much
            return like.new_empty(count, columns)
        loan = memoryview(block)  # lives as long as the storage of the tensors
        weakref.finalize(loan, self._give, block).atexit = False
        flat = torch.frombuffer(loan, dtype=like.dtype, count=count * columns)
        return flat.view(count, columns)

    def let_go(self) -> None:
        """Give the system back what no tensor is left of."""
        with self._lock:
            self._free.clear()

    def _take(self, size: int) -> mmap.mmap:
        with self._lock:
            if free := self._free.get(size):
                return free.pop()
            self._free.clear()
            return _map(size)

    def _give(self, block: mmap.mmap) -> None:
        # no lock: a collection of garbage within _take may come here
        self._free.setdefault(len(block), []).append(block)


def _map(size: int) -> mmap.mmap:
    """Pages of no file.  Huge ones are not asked for: the first touch takes longer."""
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    return mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
