"""Where a run's files go, whatever the last part of ``--out`` is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fedclip_plugin.config.paths import as_path
from fedclip_plugin.errors import RunError
from fedclip_plugin.runs.directory import prepare_out


def a_run(out: Path) -> None:
    (out / "personal").mkdir(parents=True)
    (out / "config.toml").write_text("")


@pytest.mark.parametrize("name", [".", "./", "../out", "../../out/in"])
def test_a_former_run_makes_way_by_any_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    out = tmp_path / "out"
    (out / "in").mkdir(parents=True)
    monkeypatch.chdir(out / "in" if name.endswith("in") else out)
    for number in (1, 2):
        made = as_path(name)
        a_run(made)
        assert prepare_out(made, "", resume=False) == made
        aside = made.with_name(f"{made.name}.previous-{number}")
        assert (aside / "config.toml").is_file()
        assert not (made / "config.toml").exists()
        assert os.path.samefile(".", made)  # the shell still stands there


def test_a_run_that_cannot_make_way_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    a_run(out)

    def busy(*_: object) -> None:  # a mounted volume
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(RunError, match=r"cannot be moved aside \(Device or resource"):
        prepare_out(out, "", resume=False)
