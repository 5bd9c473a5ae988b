"""`fedclip doctor RUN`: what a run has left, and whether it can go on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from fedclip_plugin.cli import main
from fedclip_plugin.cli.doctor.run_directory import check_run
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig, TrainConfig
from fedclip_plugin.runs.experiment import run_in
from tests.federation.toy import write_toy


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A finished run of one round, from features."""
    top = tmp_path_factory.mktemp("finished")
    write_toy(top / "f")
    config = RunConfig(
        data=DataConfig("mine", features=str(top / "f"), targets=("photo",)),
        train=TrainConfig(rounds=1),
    )
    run_in(top / "run", config)
    return top / "run"


def _copied(finished: Path, to: Path) -> Path:
    return Path(shutil.copytree(finished, to / "run"))


def test_a_finished_and_a_broken_run(finished, tmp_path):
    run = _copied(finished, tmp_path)
    found = {check.name: check for check in check_run(run)}
    assert found["run"].status == "ok"
    assert "finished after round 1 of 1, the best is 1" in found["run"].detail
    (run / "summary.json").unlink()
    found = {check.name: check for check in check_run(run)}
    assert found["run"].detail == "broken off after round 1 of 1"
    assert f"fedclip run --resume --out {run}" in found["run"].remedy
    shutil.rmtree(run / "checkpoint")
    assert "after round 0 of 1" in check_run(run)[-1].detail
    before = sorted(path.name for path in run.rglob("*"))
    check_run(run)
    assert sorted(path.name for path in run.rglob("*")) == before


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("config.toml", "run config"),
        ("checkpoint/last.safetensors", "run checkpoint"),
        ("metrics.jsonl", "run results"),
        ("summary.json", "run results"),
        ("adapter.safetensors", "run adapter"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(finished, tmp_path, file, name, capsys):
    run = _copied(finished, tmp_path)
    with (run / file).open("r+b") as damaged:
        damaged.write(b"[[{")
    (check,) = [check for check in check_run(run) if check.failed]
    assert check.name == name
    assert file in check.detail
    assert check.remedy or "restore it" in check.detail
    assert main(["doctor", str(run)]) == 2
    assert file in capsys.readouterr().out


def test_doctor_of_a_run_checks_what_the_run_needs(finished, tmp_path, capsys):
    assert main(["doctor", str(finished)]) == 0
    told = capsys.readouterr().out
    assert "features" in told
    assert "finished after round 1" in told
    run = _copied(finished, tmp_path)
    text = (run / "config.toml").read_text()
    gone = text.replace(str(finished.parent / "f"), str(tmp_path / "gone"))
    (run / "config.toml").write_text(gone)
    assert main(["doctor", str(run)]) == 2
    assert str(tmp_path / "gone") in capsys.readouterr().out
    assert main(["doctor", str(run), "--features", str(finished.parent / "f")]) == 0
    assert main(["doctor", str(tmp_path)]) == 2
    assert "name a directory that" in capsys.readouterr().out


def test_every_run_of_a_tree_is_told(finished, tmp_path):
    for target, seed in (("photo", 0), ("sketch", 1)):
        shutil.copytree(finished, tmp_path / target / f"seed-{seed}")
    shutil.copy(finished / "config.toml", tmp_path)
    (tmp_path / "sketch" / "seed-1" / "summary.json").unlink()
    found = {check.name: check.status for check in check_run(tmp_path)}
    assert found["run photo/seed-0"] == "ok"
    assert found["run sketch/seed-1"] == "warn"
