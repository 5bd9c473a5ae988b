"""A package of others with an algorithm of its own, as pip would leave it."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from fedclip_plugin.algorithms import ALGORITHMS

FOLDER = Path(__file__).parent / "third_party"


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, *modules: str) -> None:
    """Put a folder with a ``.dist-info`` on the path; undone after the test."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(ALGORITHMS, "_items", dict(ALGORITHMS._items))
    for module in modules:
        monkeypatch.delitem(sys.modules, module, raising=False)
    importlib.invalidate_caches()


def install_warm_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """``--alg warm-start``, whose ``Params`` adds three options to FedCLIP's."""
    install(monkeypatch, FOLDER, "warm_start")


def write_plugin(
    folder: Path, name: str, code: str, entry: str, group: str = "algorithms"
) -> Path:
    """A package of one module; ``entry`` is a line of its entry points."""
    (folder / f"{name}.py").write_text(code)
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\n")
    (info / "entry_points.txt").write_text(f"[fedclip_plugin.{group}]\n{entry}\n")
    return folder
