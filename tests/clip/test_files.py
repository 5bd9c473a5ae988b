"""Fingerprints of encoders, and the hashes of big files that they remember."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import open_clip
import pytest

from fedclip_plugin.clip.encoder import EncoderSpec, fingerprint
from fedclip_plugin.storage import hashes as files
from fedclip_plugin.storage.hashes import cache_dir, file_sha256
from tests.clip.makers import VIT, tiny_clip, write_config

pytestmark = pytest.mark.usefixtures("own_cache")


def _fingerprint(file: Path, folder: Path, name: str = "tiny-print", **more) -> str:
    return fingerprint(EncoderSpec(name, str(file), str(folder), **more))


def test_fingerprint_knows_weights_config_and_preprocess(tmp_path):
    file = tiny_clip(tmp_path, "tiny-print")
    first = _fingerprint(file, tmp_path)
    assert len(first) == 64
    assert _fingerprint(file, tmp_path, precision="bf16", device="cpu") == first
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(file.read_bytes())
    assert _fingerprint(copy, tmp_path) == first  # the name is nothing
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    copy.write_bytes(data)
    assert _fingerprint(copy, tmp_path) != first
    sibling = tmp_path / "open_clip_config.json"
    sibling.write_text(json.dumps({"preprocess_cfg": {"resize_mode": "squash"}}))
    assert _fingerprint(file, tmp_path) != first
    sibling.unlink()
    write_config(tmp_path, "tiny-print", {**VIT, "head_width": 8})
    assert _fingerprint(file, tmp_path) != first


def test_fingerprint_does_not_build_the_model(tmp_path, monkeypatch):
    file = tiny_clip(tmp_path, "tiny-lazy")
    monkeypatch.setattr(open_clip, "create_model", None)
    _fingerprint(file, tmp_path, "tiny-lazy")


def _old_file(tmp_path: Path, data: bytes) -> Path:
    file = tmp_path / "big.bin"
    file.write_bytes(data)
    os.utime(file, (1e9, 1e9))
    return file


def test_hashes_are_remembered_until_the_file_changes(tmp_path, monkeypatch):
    file = _old_file(tmp_path, b"weights")
    first = file_sha256(file)
    monkeypatch.setattr(files, "_hash", lambda _: "read again")
    assert file_sha256(file) == first
    os.utime(file, (1e9 + 1, 1e9 + 1))
    assert file_sha256(file) == "read again"


def test_a_file_still_being_written_is_not_remembered(tmp_path):
    file = tmp_path / "new.bin"
    file.write_bytes(b"a")
    soon = time.time() + 3600  # however long this test takes
    os.utime(file, (soon, soon))
    first = file_sha256(file)
    stat = file.stat()
    file.write_bytes(b"b")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_sha256(file) != first


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"x": 3}', "\0\0"])
def test_a_damaged_memo_costs_only_time(tmp_path, damage):
    file = _old_file(tmp_path, b"weights")
    want = file_sha256(file)
    memo = cache_dir() / files.MEMO_NAME
    memo.write_text(damage)
    assert file_sha256(file) == want
    assert json.loads(memo.read_text())[str(file)][2] == want


def test_two_writers_leave_a_readable_memo(tmp_path):
    paths = [tmp_path / f"{i}.bin" for i in range(20)]
    for path in paths:
        path.write_bytes(path.name.encode())
        os.utime(path, (1e9, 1e9))
    threads = [threading.Thread(target=file_sha256, args=(p,)) for p in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert json.loads((cache_dir() / files.MEMO_NAME).read_text())


def test_an_unusable_cache_directory_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "file" / "below"))
    assert len(file_sha256(_old_file(tmp_path, b"x"))) == 64


def test_cache_dir_defaults_to_the_home(monkeypatch):
    monkeypatch.delenv("FEDCLIP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_dir() == Path.home() / ".cache" / "fedclip"


def test_other_weights_of_the_same_size_and_time_are_noticed(tmp_path):
    file = _old_file(tmp_path, b"weights")
    first = file_sha256(file)
    other = tmp_path / "other.bin"
    other.write_bytes(b"WEIGHTS")
    os.utime(other, (1e9, 1e9))
    other.replace(file)
    assert file_sha256(file) != first
