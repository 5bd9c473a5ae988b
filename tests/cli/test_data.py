"""Commands and the folders that they read: what is made, told, and left as it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fedclip_plugin.data.hub import materialise

TINY = ("--dataset", "mine", "--model", "fedclip-tiny")
RUN = ("run", *TINY, "--target", "sketch", "--rounds", "1", "--root")


def fedclip(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fedclip_plugin.cli", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture
def digits(tmp_path: Path) -> Path:
    """The embedded data set as folders, few of its images."""
    root = tmp_path / "D"
    materialise("digits", root)
    for path in sorted(root.glob("*/*/*.png")):
        if int(path.stem) > 400:
            path.unlink()
    return root


def test_runs_in_the_folder_of_the_data(digits: Path) -> None:
    for number in (1, 2):
        done = fedclip(*RUN, ".", cwd=digits)
        assert done.returncode == 0, done.stderr
        assert ("no part of the data: runs" in done.stderr) == (number > 1)
    (summary,) = digits.glob("runs/*-2/summary.json")
    assert any("runs" in note for note in json.loads(summary.read_text())["notes"])


def test_features_never_go_among_the_images(digits: Path) -> None:
    done = fedclip("features", *TINY, "--root", ".", "--to", ".", cwd=digits)
    assert done.returncode == 2
    assert "choose another folder" in done.stderr
    assert not (digits / "features.json").exists()


def test_nothing_is_made_or_moved_without_data(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.toml").touch()
    for out in (["--out", "out"], []):
        done = fedclip(*RUN, "gone", *out, cwd=tmp_path)
        assert done.returncode == 2
        assert "does not exist" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "config.toml").exists()


def test_what_cannot_be_had_is_skipped_and_told_once(digits: Path) -> None:
    first = sorted(digits.glob("scan/3/*.png"))
    first[0].unlink()
    first[0].symlink_to("nowhere")
    first[1].write_bytes(b"no image")
    done = fedclip(*RUN, ".", cwd=digits)
    assert done.returncode == 2
    assert "--on-bad-image skip" in done.stderr
    done = fedclip(*RUN, ".", "--on-bad-image", "skip", "--out", "o", cwd=digits)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("skipped: cannot") == 2
    skipped = json.loads((digits / "o" / "summary.json").read_text())["skipped_images"]
    assert skipped == [path.relative_to(digits).as_posix() for path in first[:2]]
