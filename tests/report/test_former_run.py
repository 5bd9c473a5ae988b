"""Runs that version 0.1.0 has left are still read, as they lie in ``former_run/``."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import fedclip_plugin as fc
from fedclip_plugin.cli import main

FORMER = Path(__file__).parent / "former_run"
LEAF = FORMER / "photo" / "seed-0"


@pytest.mark.parametrize("style", ["table", "markdown", "latex", "csv"])
def test_reports_show_it(style: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(FORMER), "--format", style]) == 0
    assert "photo" in capsys.readouterr().out


def test_its_page_is_written_anew(tmp_path: Path) -> None:
    run = shutil.copytree(FORMER, tmp_path / "run")
    assert main(["report", str(run), "--format", "html", "--quiet"]) == 0
    assert "median" in (run / "report.html").read_text(encoding="utf-8")


def test_its_options_are_found_where_they_are_now() -> None:
    run = fc.load_run(LEAF)
    config = run.config
    assert config.train.rounds == run.summary["rounds"] == 3
    assert config.train.weight_decay == 0.01
    assert config.server.aggregation == "median"
    assert config.wire.compress == "int8"
    assert config.data.targets == ("photo",)


def test_its_state_is_read_and_checked() -> None:
    state = fc.load_run(LEAF).state
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "0.weight": (16, 16), "0.bias": (16,), "2.weight": (16, 16), "2.bias": (16,),
    }  # fmt: skip
    assert all(torch.isfinite(value).all() for value in state.values())


def test_export_finds_its_adapter(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All but the backbone: the embedded one is wider than these features."""
    argv = ["export", str(LEAF), "--model", "fedclip-tiny", "--to", str(tmp_path / "x")]
    assert main(argv) == 2
    assert "width 16" in capsys.readouterr().err
