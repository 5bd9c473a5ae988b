from __future__ import annotations

import json
import os

import pytest
import torch

from fedclip_plugin.errors import RunError
from fedclip_plugin.storage.files import _umask, write_bytes, write_json
from fedclip_plugin.storage.tensors import DamagedFileError, read_tensors, write_tensors


def test_tensors_survive_a_round_trip(tmp_path):
    path = tmp_path / "a" / "t.safetensors"
    tensors = {
        "x": torch.randn(3, 4).t(),  # not contiguous
        "half": torch.randn(5).half(),
        "empty": torch.empty(0, 4),
        "n": torch.arange(3),
    }
    write_tensors(path, tensors, {"who": "me"})
    found, meta = read_tensors(path)
    assert meta["who"] == "me"
    assert all(torch.equal(found[k], v) for k, v in tensors.items())


@pytest.mark.parametrize("where", [0.3, 0.9])
def test_truncated_file_is_noticed(tmp_path, where):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"x": torch.randn(100)})
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * where)])
    with pytest.raises(DamagedFileError, match=r"t\.safetensors"):
        read_tensors(path)


def test_one_flipped_bit_is_noticed(tmp_path):
    path = tmp_path / "t.safetensors"
    write_tensors(path, {"x": torch.randn(100)})
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFileError, match="altered"):
        read_tensors(path)


def test_write_leaves_no_scraps_and_replaces(tmp_path):
    path = tmp_path / "f"
    write_bytes(path, b"one")
    write_bytes(path, b"two", durable=False)
    assert path.read_bytes() == b"two"
    assert os.listdir(tmp_path) == ["f"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "f.json", {"x": float("nan")})
    write_json(tmp_path / "f.json", {"x": 1.5})
    assert json.loads((tmp_path / "f.json").read_text()) == {"x": 1.5}


def test_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/deeper"):
        write_bytes(tmp_path / "file" / "deeper", b"x")


def test_full_disk_is_named_and_keeps_the_old_file():
    with pytest.raises(RunError, match="cannot write"):
        write_under_a_quota()


def write_under_a_quota() -> None:
    """A quota of zero bytes: the write fails as on a full disk."""
    import resource
    import signal
    import tempfile
    from pathlib import Path

    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with tempfile.TemporaryDirectory() as name:
            path = Path(name) / "f"
            path.write_bytes(b"old")
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))
            try:
                write_bytes(path, b"x" * 5000)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, old)
                assert path.read_bytes() == b"old"
                assert os.listdir(name) == ["f"]
    finally:
        signal.signal(signal.SIGXFSZ, former)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_files_are_as_private_as_the_user_wants(tmp_path, umask):
    path, before = tmp_path / "f", os.umask(umask)
    _umask.cache_clear()
    try:
        write_bytes(path, b"x")
    finally:
        os.umask(before)
        _umask.cache_clear()
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
