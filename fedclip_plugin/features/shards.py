"""A data set encoded in parts, by several machines over one cache: shard K of N.

An image belongs to one shard by its digest, so that every machine agrees, and a copy of
an image does not count twice.  A shard that is whole leaves a file that says so, with
the images that could not be read; merging looks for these and for the features.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..data.listing import some
from ..errors import ConfigError
from ..storage.files import cannot_write, write_json
from ..storage.locks import Timeout, take
from .store import FeatureStore

MOST = 10_000
_PATIENCE = 0.5  # seconds: others look at a lock for a moment
_NAME = re.compile(r"shard-lock-(\d+)-of-(\d+)")


@dataclass(frozen=True)
class Shard:
    """Part ``number``, from 1, of ``count``."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @classmethod
    def parse(cls, text: str) -> Shard:
        """``3/8``; raises ConfigError."""
        match = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text.strip())
        if match:
            number, count = int(match[1]), int(match[2])
            if 1 <= number <= count <= MOST:
                return cls(number, count)
        raise ConfigError(
            f"--shard {text}: expected K/N with K from 1 to N, as 3/8, and N up to "
            f"{MOST}"
        )

    def of(self, digests: Iterable[str]) -> set[str]:
        """Those of ``digests`` that are this shard's."""
        place = self.number - 1
        return {d for d in digests if int(d[:15], 16) % self.count == place}


@contextmanager
def encoding(store: FeatureStore, shard: Shard) -> Iterator[None]:
    """Hold the lock of a shard; whoever encodes all of the images goes first.

    Raises ConfigError where another process encodes by another number of shards.
    """
    path = store.directory / f"shard-lock-{shard.number}-of-{shard.count}"
    gate = store.lock()  # waits for who encodes all, and lets one shard begin at a time
    try:
        lock = take(path, _PATIENCE)
    except Timeout:
        raise ConfigError(
            f"--shard {shard}: another process encodes this shard of these images; "
            "wait for it, or take another shard"
        ) from None
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        gate.release()
    try:
        for other in _held(store):
            if other.count != shard.count:
                raise ConfigError(
                    f"--shard {shard}: another process encodes shard {other} of these "
                    "images: cut them into the same number"
                )
        yield
    finally:
        lock.release()


def wait_for_shards(store: FeatureStore) -> None:
    """Let the shards end that are being encoded; for the owner of the store's lock."""
    for path in sorted(store.directory.glob("shard-lock-*")):
        if _NAME.fullmatch(path.name):
            take(path, seconds=-1).release()


def _held(store: FeatureStore) -> Iterator[Shard]:
    for path in sorted(store.directory.glob("shard-lock-*")):
        if match := _NAME.fullmatch(path.name):
            try:
                take(path, _PATIENCE).release()
            except Timeout:
                yield Shard(int(match[1]), int(match[2]))


def finish(store: FeatureStore, wanted: set[str], unreadable: set[str]) -> None:
    """Write down that ``wanted``, all the images of a shard, were seen."""
    write_json(_record(store, wanted), {"unreadable": sorted(unreadable)})


def check_all_there(
    store: FeatureStore, wanted: set[str], rows: Mapping[str, object], count: int
) -> None:
    """Raise ConfigError that names the shards of ``count`` that are not whole."""
    short = []
    for number in range(1, count + 1):
        shard = Shard(number, count)
        own = shard.of(wanted)
        missing = own - rows.keys()
        if missing - _unreadable(store, own):
            short.append(f"{shard} ({len(missing):,} of {len(own):,} images missing)")
    if short:
        first = short[0].partition(" ")[0]
        raise ConfigError(
            f"--merge {count}: not encoded: {some(short)}; run `fedclip features "
            f"--shard {first}` with the same options and cache"
        )


def _unreadable(store: FeatureStore, wanted: set[str]) -> set[str]:
    try:
        saved = json.loads(_record(store, wanted).read_text(encoding="utf-8"))
        return set(map(str, saved["unreadable"]))
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def _record(store: FeatureStore, wanted: set[str]) -> Path:
    name = hashlib.sha256("".join(sorted(wanted)).encode()).hexdigest()[:24]
    return store.directory / f"whole-{name}.json"
