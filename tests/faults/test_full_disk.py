"""A disk that is full: exit code 2, one line with file and remedy, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.clip.fake_encoder import png
from tests.faults.kills import sha256
from tests.federation.toy import write_toy

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def can_mount() -> bool:
    """Whether this user may mount a disk of its own."""
    if shutil.which("unshare") is None:
        return False
    line = "mount -t tmpfs -o size=64k tmpfs /mnt"
    tried = subprocess.run(
        ["unshare", "-m", "sh", "-c", line], capture_output=True, check=False
    )
    return tried.returncode == 0


mounts = pytest.mark.skipif(not can_mount(), reason="needs the right to mount a tmpfs")


def fill_up(folder: Path, what: str, *pages: int) -> list[dict[str, Any]]:
    """What ``tests.faults.full_disk`` tells of each break."""
    done = subprocess.run(
        [
            *("unshare", "-m", sys.executable, "-m", "tests.faults.full_disk"),
            *(str(folder), what, *map(str, pages)),
        ],
        cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: dict[str, Any], name: str) -> None:
    assert (found["code"], found["done"]) == (2, 0)
    (line,) = found["said"].splitlines()
    assert line.startswith("fedclip: error: cannot write ")
    assert name in line
    assert "free some space" in line


@mounts
def test_a_run_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    write_toy(tmp_path / "f")
    names = {0: "config.toml", 5: "last.safetensors", 14: "report.html"}  # 4 kB pages
    for found, name in zip(fill_up(tmp_path, "run", *names, 200), names.values()):
        check(found, name)
    adapters = {sha256(path) for path in tmp_path.glob("*-adapter.safetensors")}
    assert len(adapters) == 1


@mounts
def test_a_cache_goes_on_after_a_full_disk(tmp_path: Path) -> None:
    for domain in ("one", "two"):
        for kind in ("cat", "dog"):
            folder = tmp_path / "images" / domain / kind
            folder.mkdir(parents=True)
            for i in range(20):
                (folder / f"{i}.png").write_bytes(png(len(domain + kind) * 100 + i))
    names = {0: "/cache/digests/", 5: "/cache/", 8: "/cache/"}
    for found, name in zip(fill_up(tmp_path, "encode", *names, 200), names.values()):
        check(found, name)
    for name in ("one", "two", "text"):
        files = list(tmp_path.glob(f"features-*/{name}.safetensors"))
        assert len(files) == 4
        assert len({sha256(path) for path in files}) == 1


# host, moment -> 4 kB pages that are left of the disk, and the file that is named
HOSTS: dict[tuple[str, str], tuple[int, str]] = {
    ("fedml", "the first file"): (0, "config.toml"),
    ("fedml", "a round"): (4, "last.safetensors"),
    ("fedml", "the report"): (12, "report.html"),
    ("flower", "the first file"): (0, "config.toml"),
    ("flower", "a round"): (4, "last.safetensors"),
    ("flower", "the report"): (8, "report.html"),
    ("nvflare", "the first file"): (0, "config.toml"),
    ("nvflare", "a round"): (4, "last.safetensors"),
    ("nvflare", "the report"): (8, "report.html"),
    ("personalizedfl", "a round"): (3, "last.safetensors"),
    ("personalizedfl", "the report"): (9, "report.html"),
}
CODES = {"flower": 1}  # of Python's, for what Flower logs; ours is 2
NEEDS = {"fedml": "fedml", "flower": "flwr"}
NEEDS |= {"nvflare": "torch", "personalizedfl": "torch"}
MARKS = dict.fromkeys(("nvflare", "personalizedfl"), pytest.mark.embedded)
# which need nothing that .venv lacks


@mounts
@pytest.mark.slow
@pytest.mark.parametrize(
    "host",
    [pytest.param(h, marks=MARKS.get(h) or getattr(pytest.mark, h)) for h in NEEDS],
)
def test_a_host_goes_on_after_a_full_disk(host: str, tmp_path: Path) -> None:
    """One line that names the file, at any moment; then the same bits."""
    pytest.importorskip(NEEDS[host])
    moments = {pages: name for (h, _), (pages, name) in HOSTS.items() if h == host}
    *broken, last, whole = fill_up(tmp_path, host, *moments)
    for found, name in zip(broken, moments.values(), strict=True):
        assert found["code"] == CODES.get(host, 2), found["said"]
        line = found["said"].splitlines()[-1]
        assert "cannot write " in line
        assert name in line
        assert "free some space" in line
        assert found["said"].count("cannot write ") == 1
    assert (last["code"], whole["code"]) == (0, 0), last["said"]
    adapters = [
        sha256(tmp_path / f"{k}-adapter.safetensors") for k in ("disk", "whole")
    ]
    assert adapters[0] == adapters[1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    features, out = write_toy(tmp_path / "f"), tmp_path / "out"
    argv = ["run", "--features", str(features), "--target", "photo", "--rounds", "1"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*(sys.executable, "-m", "fedclip_plugin.cli"), *argv, "--out", str(out)],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("fedclip: error: cannot write the output: No space left")
    assert (out / "report.html").is_file()
