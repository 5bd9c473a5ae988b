"""What may go on: by contents and settings, and nothing is written before that."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedclip_plugin.cli import main
from fedclip_plugin.federation import checkpoint
from tests.federation.toy import write_toy


def run(*argv: object) -> int:
    return main(["run", "--rounds", "2", "--lr", "1e-3", "--quiet", *map(str, argv)])


def resume(out: Path, *argv: object) -> int:
    return main(["run", "--resume", "--out", str(out), "--quiet", *map(str, argv)])


def contents(out: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() if p.is_file() else b"" for p in out.rglob("*")}


def test_features_in_another_folder_go_on_to_the_same_bits(tmp_path: Path) -> None:
    features, out = write_toy(tmp_path / "here"), tmp_path / "out"
    common = ("--features", features, "--target", "photo", "--out")
    assert run(*common, tmp_path / "whole", "--rounds", "4") == 0
    assert run(*common, out) == 0
    shutil.move(features, tmp_path / "there")
    assert resume(out, "--features", tmp_path / "there", "--rounds", "4") == 0
    adapters = [p / "adapter.safetensors" for p in (out, tmp_path / "whole")]
    assert adapters[0].read_bytes() == adapters[1].read_bytes()


def test_a_run_that_another_device_began_says_that_bits_may_differ(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    features, out = write_toy(tmp_path / "here"), tmp_path / "out"
    monkeypatch.setattr(checkpoint, "computes_with", lambda _: "H100, groups of 32")
    common = ("--features", features, "--target", "photo", "--out", out)
    assert run(*common) == 0
    assert resume(out, "--rounds", "3") == 0
    assert "last bits" not in capsys.readouterr().err
    monkeypatch.setattr(checkpoint, "computes_with", lambda _: "cpu, avx2 kernels")
    assert resume(out, "--rounds", "4") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "resumed on cpu, avx2 kernels, PyTorch " in said
    assert "were computed on H100, groups of 32" in said
    assert "may differ in the last bits" in said


@pytest.mark.parametrize(
    ("first", "then", "told"),
    [
        ("photo", ["--lr", "2e-3"], "another configuration"),
        ("photo", ["--features", "other"], "other features"),
        ("photo", ["--seed", "0", "1"], "holds one run"),
        ("photo", ["--target", "photo", "art"], "holds one run"),
        ("all", ["--target", "photo", "--seed", "0"], "holds several runs"),
        ("all", ["--shots", "2"], "another configuration"),
    ],
)
def test_a_refused_resume_changes_no_file(
    first: str,
    then: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_toy(Path("other"), seed=1)
    features, out = write_toy(tmp_path / "f"), tmp_path / "out"
    held = ["--target", first] if first != "all" else []
    assert run("--features", features, "--out", out, *held) == 0
    before = contents(out)
    assert resume(out, *then) == 2
    assert told in capsys.readouterr().err
    assert contents(out) == before
    assert resume(out) == 0  # with its own options


def test_further_seeds_join_a_tree(tmp_path: Path) -> None:
    features, out = write_toy(tmp_path / "f"), tmp_path / "out"
    common = ("--features", features, "--target", "photo", "--out", out)
    assert run(*common, "--seed", "0", "1") == 0
    before = contents(out / "photo" / "seed-0")
    assert resume(out, "--seed", "0", "1", "2") == 0
    assert contents(out / "photo" / "seed-0") == before
    assert (out / "photo" / "seed-2" / "summary.json").is_file()
