"""Notes on data, model and options: one list, shown wherever a run is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedclip_plugin.cli import main
from fedclip_plugin.features.feature_set import load_features, save_features
from fedclip_plugin.report.averages import aggregate
from tests.federation.toy import toy_features

NOTES = ("12 files are .gif: passed over", "classes are numbers\x9b; name them")
SHOWN = (
    "12 files are .gif: passed over",
    "classes are numbers\N{REPLACEMENT CHARACTER}; name them",
)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save_features(replace(toy_features(), notes=NOTES), tmp_path / "toy")
    return tmp_path / "toy"


def test_a_feature_directory_keeps_them(directory: Path) -> None:
    assert load_features(directory).notes == NOTES
    header = json.loads((directory / "features.json").read_text())
    del header["notes"]  # as an earlier version left it
    (directory / "features.json").write_text(json.dumps(header))
    assert load_features(directory).notes == ()


@pytest.mark.parametrize("quiet", [[], ["--quiet"]])
def test_a_run_tells_each_once(
    directory: Path,
    tmp_path: Path,
    quiet: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "run"
    argv = ["run", "--features", str(directory), "--rounds", "1", "--out", str(out)]
    assert main([*argv, "--seed", "0", "1", *quiet]) == 0
    said = capsys.readouterr()
    for note in SHOWN:
        assert (said.out + said.err).count(f"note: {note}") == 1
    assert json.loads((out / "summary.json").read_text())["notes"] == list(SHOWN)
    assert SHOWN[0] in (out / "report.html").read_text()
    assert main(["report", str(out), "--format", "markdown"]) == 0
    assert f"- {SHOWN[0]}\n" in capsys.readouterr().out


def test_a_dry_run_warns_of_them(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "--dry-run", "--features", str(directory)]) == 0
    assert f"warn features note: {SHOWN[0]}" in capsys.readouterr().out


def test_runs_without_them_are_averaged_too() -> None:
    from tests.report.synthetic_runs import leaf_summary

    found = aggregate(
        [leaf_summary(), leaf_summary(notes=["one"]), leaf_summary(notes=["one"])]
    )
    assert found["notes"] == ["one"]
