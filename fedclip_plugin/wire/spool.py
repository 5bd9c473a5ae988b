"""Updates of a round that memory is not to hold: their tensors lie in a mapped file.

A spooled update is an update as any other: its tensors are views of a file that the
system reads where they are looked at, so screening, codecs, rules and hosts take it as
it comes.  What looks at all updates of a round goes over them :func:`portions` at a
time, and lets the pages go; what was read stays on the disk.

The file has no name: it is gone with the last of its tensors, and with the process.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import ConfigError, RunError
from ..storage.files import cannot_write
from ..storage.hashes import cache_dir
from .update import ClientUpdate, State

VARIABLE = "FEDCLIP_UPDATE_MEMORY"
USUAL_MIB = 2048
AT_ONCE = 64  # updates in memory while a round is spooled
PART_BYTES = 64 << 20  # of all updates, where a rule needs some of each
_SEGMENT = 1 << 30  # bytes of the file that are mapped together
_ALIGNED = 64  # bytes, as torch's own tensors
_maps: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()
_log = logging.getLogger("fedclip")
T = TypeVar("T")


def limit() -> int:
    """Bytes of a round's updates that may be in memory; ConfigError if no number."""
    told = os.environ.get(VARIABLE) or USUAL_MIB
    try:
        mib = float(told)
        if not 0 <= mib < 1 << 40:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"{VARIABLE}={told}: expected MiB of a round's updates that memory may "
            f"hold, 0 or more (usual: {USUAL_MIB})"
        ) from None
    return int(mib * (1 << 20))


def spool_for(count: int, like: State, device: torch.device) -> Spool | None:
    """Where ``count`` updates go that are ``like`` this one and meant for ``device``.

    None where its memory is to hold them: a GPU's always.  Raises RunError where the
    disk has no room for them.
    """
    if device.type != "cpu":
        return None
    need = count * sum(value.nbytes for value in like.values())
    return Spool(need) if need > limit() else None


def on_disk() -> bool:
    """Whether any update is spooled now."""
    return bool(_maps)


def let_go() -> None:
    """Take the pages of spooled updates out of this process's memory."""
    for part in list(_maps):
        part.madvise(mmap.MADV_DONTNEED)


def in_turn(items: Sequence[T]) -> Iterator[T]:
    """``items``, one by one, with their pages let go on the way."""
    for portion in portions(items):
        yield from portion


def portions(items: Sequence[T], size: int = AT_ONCE) -> Iterator[Sequence[T]]:
    """All ``items`` at once, or ``size`` at a time where updates are spooled."""
    if not on_disk():
        yield items
        return
    for start in range(0, len(items), size):
        yield items[start : start + size]
        let_go()


def gathered(parts: Sequence[Tensor]) -> Tensor:
    """``parts``, K views of one shape, as one tensor (K, ...) in memory."""
    rows = parts[0].new_empty((len(parts), *parts[0].shape))
    for row, part in zip(rows, in_turn(parts)):
        row.copy_(part)
    return rows


class Spool:
    """A file for updates, in the cache directory; ``need`` bytes are expected.

    Raises RunError where they do not fit, or nothing can be written.
    """

    def __init__(self, need: int = 0) -> None:
        self.folder = cache_dir() / "spool"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.folder).free
            if need > free:
                raise RunError(
                    f"the updates of a round take {need / 1e9:.1f} GB, and "
                    f"{self.folder} has {free / 1e9:.1f} GB: set FEDCLIP_CACHE to a "
                    "folder on a larger disk, or take fewer clients a round "
                    "(--participation)"
                )
            handle, name = tempfile.mkstemp(dir=self.folder)
            self._file = os.fdopen(handle, "r+b", buffering=0)
            os.unlink(name)
        except OSError as error:
            raise cannot_write(self.folder, error) from error
        self._map: mmap.mmap | None = None
        self._first = self._place = self._end = 0
        self._since = 0  # updates kept since the allocator gave back what is free
        if need:
            _tell(self.folder, need)

    def keep(self, updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
        """The updates with their tensors in the file."""
        kept = [replace(u, state=self.place(u.state)) for u in updates]
        let_go()
        self._since += len(updates)
        if self._since >= AT_ONCE:
            self._since = 0
            _trim()
        return kept

    def place(self, state: State) -> State:
        """``state`` with its tensors in the file; raises RunError on a full disk."""
        try:
            return {key: self._placed(value) for key, value in state.items()}
        except OSError as error:
            raise cannot_write(self.folder, error) from error

    def _placed(self, value: Tensor) -> Tensor:
        if not value.numel():
            return value
        flat = value.detach().cpu().contiguous().reshape(-1)
        data = flat.view(torch.uint8).numpy().data
        place = self._reserve(len(data))
        self._file.seek(place)
        while data:  # not through the map: a full disk would end the process
            data = data[self._file.write(data) or 0 :]
        assert self._map is not None
        mapped = torch.frombuffer(
            self._map, dtype=flat.dtype, count=len(flat), offset=place - self._first
        )
        return mapped.view(value.shape)

    def _reserve(self, size: int) -> int:
        """Where ``size`` bytes go, within what is mapped."""
        if self._map is None or self._place + size > self._end:
            step = mmap.ALLOCATIONGRANULARITY
            self._first = self._place = self._end
            length = max(_SEGMENT, -(-size // step) * step)
            self._end = self._first + length
            self._file.truncate(self._end)  # takes no room until it is written
            self._map = mmap.mmap(self._file.fileno(), length, offset=self._first)
            _maps.add(self._map)
        place = self._place
        self._place = min(self._end, -(-(place + size) // _ALIGNED) * _ALIGNED)
        return place


def _trim() -> None:
    """Give back what is free between the allocator's blocks, where it can be told to.

    An update that was put away leaves room of which a small object takes a corner, so
    that the next update does not fit: without this the heap grows by each of them.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        found: Callable[[int], int] = ctypes.CDLL(None).malloc_trim  # of glibc
    except (AttributeError, OSError, TypeError):
        return None
    return found


@functools.cache
def _tell(folder: Path, need: int) -> None:
    _log.warning(
        "the updates of a round, %.1f GB, wait on the disk, in %s: %s=MIB sets from "
        "where on (%d MiB now)",
        need / 1e9, folder, VARIABLE, limit() >> 20,
    )  # fmt: skip
