"""fedclip export --format hub: a folder for a model hub, read back by --state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedclip_plugin import api
from fedclip_plugin.cli import main
from fedclip_plugin.export.trained import read_state


@pytest.fixture
def run(toy: Path, tmp_path: Path) -> Path:
    api.run(features=str(toy), rounds=2, target="photo", out=tmp_path / "run")
    return tmp_path / "run"


def header(card: str) -> dict[str, Any]:
    _, top, _ = card.split("---\n", 2)
    found: dict[str, Any] = {}
    for line in top.splitlines():
        key, _, value = line.partition(": ")
        found[key] = json.loads(value) if value[:1] in '["{' else value
    return found


def test_what_is_written_is_read_back(
    run: Path, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub = tmp_path / "hub"
    words = [
        "export",
        str(run),
        "--to",
        str(hub),
        "--format",
        "hub",
        "--license",
        "mit",
    ]
    assert main([*words, "--quiet"]) == 0
    names = {path.name for path in hub.iterdir()}
    assert names == {"adapter.safetensors", "config.json", "README.md"}
    own, there = read_state(run / "adapter.safetensors"), read_state(hub)
    assert {k: v.tolist() for k, v in there.state.items()} == {
        k: v.tolist() for k, v in own.state.items()
    }
    capsys.readouterr()
    judge = ["evaluate", str(run), "--features", str(toy), "--format", "json"]
    assert main([*judge, "--quiet"]) == 0
    mine = json.loads(capsys.readouterr().out)
    assert main([*judge, "--state", str(hub), "--quiet"]) == 0
    theirs = json.loads(capsys.readouterr().out)
    assert theirs["domains"] == mine["domains"]


def test_the_card_has_what_was_measured_and_no_path(run: Path, tmp_path: Path) -> None:
    hub = tmp_path / "hub"
    main(["export", str(run), "--to", str(hub), "--format", "hub", "--license", "mit"])
    card = (hub / "README.md").read_text()
    summary = json.loads((run / "summary.json").read_text())
    found = header(card)
    assert found["license"] == "mit"
    (measured,) = found["model-index"]
    metrics = measured["results"][0]["metrics"]
    assert metrics[0]["value"] == pytest.approx(
        100 * summary["result"]["target"], abs=0.01
    )
    for word in ("photo", "Measured", "held-out zero-shot", "Licence", "protocol"):
        assert word in card
    for path in hub.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes()


def test_an_untold_licence_is_said(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["export", str(run), "--to", str(tmp_path / "hub")]
    assert main([*words, "--format", "hub"]) == 0
    assert "--license" in capsys.readouterr().err
    assert main([*words, "--format", "torch", "--license", "mit"]) == 2


def test_what_clients_keep_is_not_published(toy: Path, tmp_path: Path) -> None:
    out = tmp_path / "own"
    api.run(features=str(toy), algorithm="fedot", rounds=1, target="photo", out=out)
    assert any("/" in key for key in read_state(out / "adapter.safetensors").state)
    hub = tmp_path / "hub"
    assert main(["export", str(out), "--to", str(hub), "--format", "hub"]) == 0
    assert not any("/" in key for key in read_state(hub).state)
