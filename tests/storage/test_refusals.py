"""File systems that refuse what others do: modes, syncing, locks, a home."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedclip_plugin.data.dataset import ImageDomain
from fedclip_plugin.errors import RunError
from fedclip_plugin.features import digests
from fedclip_plugin.features.digests import digest_domain
from fedclip_plugin.storage.files import cannot_write, write_bytes
from fedclip_plugin.storage.hashes import cache_dir
from fedclip_plugin.storage.locks import Timeout, take


def refuse(code: int) -> Callable[..., Any]:
    def refused(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return refused


def test_modes_that_cannot_be_set_are_left(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "chmod", refuse(errno.EPERM))
    write_bytes(tmp_path / "x", b"x")
    assert (tmp_path / "x").read_bytes() == b"x"


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_what_cannot_be_synced_is_written(tmp_path, monkeypatch, code):
    monkeypatch.setattr(os, "fsync", refuse(code))
    write_bytes(tmp_path / "x", b"x")
    assert (tmp_path / "x").read_bytes() == b"x"


def test_a_folder_that_cannot_be_synced_is_left(tmp_path, monkeypatch):
    whole = os.fsync

    def files_alone(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        whole(handle)

    monkeypatch.setattr(os, "fsync", files_alone)
    write_bytes(tmp_path / "x", b"x")
    assert (tmp_path / "x").read_bytes() == b"x"


def test_a_file_that_does_not_reach_the_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", refuse(errno.EIO))
    with pytest.raises(RunError, match="check the disk"):
        write_bytes(tmp_path / "x", b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (errno.ENOSPC, "free some space"),
        (errno.EDQUOT, "free some space"),
        (errno.EROFS, "get the right"),
        (errno.EACCES, "get the right"),
        (errno.EIO, "check the disk"),
        (errno.ESTALE, "check the disk"),
    ],
)
def test_the_remedy_is_that_of_the_fault(code, words):
    message = str(cannot_write(Path("x"), OSError(code, os.strerror(code))))
    assert words in message
    assert ("free some space" in message) == (words == "free some space")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS])
def test_a_drive_without_locks_has_one_all_the_same(tmp_path, monkeypatch, code):
    monkeypatch.setattr(fcntl, "flock", refuse(code))
    lock = take(tmp_path / "new" / "lock")
    with pytest.raises(Timeout):
        take(tmp_path / "new" / "lock")
    lock.release()
    take(tmp_path / "new" / "lock").release()


def test_a_lock_where_nothing_can_be_written_is_an_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        take(tmp_path / "file" / "lock")


def domain(folder: Path, reads: list[int]) -> ImageDomain:
    def read(i: int) -> bytes:
        reads.append(i)
        if i == 7 and len(reads) == 8:
            raise KeyboardInterrupt
        return bytes([i])

    files = tuple(f"{i}.png" for i in range(10))
    return ImageDomain("d", files, np.zeros(10, np.int64), read, lambda i: f"{i}-1-1")


def test_hashes_survive_an_interrupt(tmp_path):
    reads: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        digest_domain(domain(tmp_path, reads), tmp_path)
    digest_domain(domain(tmp_path, reads), tmp_path)
    assert reads == [*range(8), 7, 8, 9]


def test_hashes_are_saved_on_the_way(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SAVE_SECONDS", 0.0)
    saved: list[int] = []
    monkeypatch.setattr(digests, "write_json", lambda path, e: saved.append(len(e)))
    digest_domain(domain(tmp_path, [0]), tmp_path)
    assert saved == list(range(1, 11))


def test_hashes_that_cannot_be_kept_are_told_once(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(digests, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(os, "replace", refuse(errno.EROFS))
    for _ in range(2):  # of two domains, say
        found = digest_domain(domain(tmp_path, [0]), tmp_path)
        assert len(set(found)) == 10
    assert len(caplog.records) == 1
    assert "reads all images again" in caplog.text


def test_hashes_that_fill_the_disk_are_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", refuse(errno.ENOSPC))
    with pytest.raises(RunError, match="free some space"):
        digest_domain(domain(tmp_path, [0]), tmp_path)


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch):
    for name in ("HOME", "FEDCLIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)
    with pytest.raises(RunError, match="set FEDCLIP_CACHE"):
        cache_dir()
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_dir() == Path("/x/fedclip")


def test_an_empty_home_is_none(monkeypatch):
    for name in ("FEDCLIP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "")
    assert cache_dir() != Path("/.cache/fedclip")
