"""Trackers follow a run from round to round, and never end it."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

import fedclip_plugin as fc
from fedclip_plugin.cli import main
from fedclip_plugin.errors import ConfigError, RunError
from fedclip_plugin.report.trackers import TRACKERS, Tracker, find_trackers
from fedclip_plugin.report.trackers.wandb import WandbLog
from tests.algorithms.installed import write_plugin
from tests.report.offline import assert_logged

THIRD_PARTY = '''
import json
from fedclip_plugin.report.trackers import Tracker

class Notebook(Tracker):
    """A tracker as another package brings it."""

    name = "notebook"

    def __init__(self, directory, label, config):
        self.file = (directory / "notebook.txt").open("a")
        self.write("begin", label, config["train.lr"])

    def write(self, *words):
        print(json.dumps(words), file=self.file, flush=True)

    def log(self, metrics):
        self.write("round", metrics["round"])

    def finish(self, summary):
        self.write("finish", summary["best_round"])

    def close(self):
        self.file.close()
'''


def run(features: Path, out: Path, *names: str, **options: object) -> dict:
    options = {"target": "photo", "rounds": 2, "lr": 1e-3, **options}
    return fc.run(features=features, out=out, log=names, **options)


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TRACKERS, "_items", dict(TRACKERS._items))
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("trackers")
def test_another_package_adds_its_own(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    entry = "notebook = notebook_log:Notebook"
    write_plugin(folder, "notebook_log", THIRD_PARTY, entry, "trackers")
    monkeypatch.syspath_prepend(str(folder))
    summary = run(toy, tmp_path / "out", "notebook")
    lines = (tmp_path / "out" / "notebook.txt").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        ["begin", "fedclip-photo-seed-0", 1e-3],
        *(["round", number] for number in (1, 2)),
        ["finish", summary["best_round"]],
    ]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("tensorbord", "did you mean tensorboard"),
        ("mlflow,wand", "did you mean wandb"),
    ],
)
def test_an_unknown_tracker_is_refused_before_any_work(
    word: str, told: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "--features", str(toy), "--out", str(tmp_path / "out")]
    assert main([*words, "--log", word]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_is_not_installed_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(WandbLog, "package", "no_such_module_anywhere")
    with pytest.raises(RunError, match=r"pip install fedclip-plugin\[wandb\]"):
        find_trackers(["wandb"])


@pytest.mark.usefixtures("trackers")
@pytest.mark.parametrize("moment", ["__init__", "log", "finish", "close"])
def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(
    moment: str, toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: Tracker, *arguments: object) -> None:
        raise OSError(28, "No space left on device")

    kind = type("Broken", (Tracker,), {"name": "broken", moment: fail})
    TRACKERS.register("broken", kind)
    with caplog.at_level(logging.WARNING, "fedclip"):
        run(toy, tmp_path / "out", "broken", rounds=3)
    told = [r.getMessage() for r in caplog.records if "broken" in r.getMessage()]
    assert len(told) == 1
    assert "No space left" in told[0]
    assert (tmp_path / "out" / "summary.json").is_file()
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 3


def test_trackers_need_a_directory(toy: Path) -> None:
    with pytest.raises(ConfigError, match="log needs out=DIR"):
        fc.run(features=toy, log=["tensorboard"])


@pytest.mark.usefixtures("trackers")
def test_mlflow_keeps_its_store_in_the_run_and_goes_on_in_it(
    toy: Path, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    out = tmp_path / "out"
    run(toy, out, "mlflow")
    run(toy, out, "mlflow", rounds=3, resume=True)
    client = MlflowClient((out / "mlruns").as_uri())
    experiment = client.get_experiment_by_name("fedclip")
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.info.status == "FINISHED"
    assert one.data.params["train.lr"] == "0.001"
    history = client.get_metric_history(one.info.run_id, "accuracy/target")
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    told = {line["round"]: line["target"] for line in lines}
    assert {m.step: m.value for m in history} == told


@pytest.mark.usefixtures("trackers")
def test_wandb_stays_offline_in_the_run(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))
    run(toy, tmp_path / "out", "wandb")
    assert_logged(tmp_path / "out", b"accuracy/target", b"result/mean")
