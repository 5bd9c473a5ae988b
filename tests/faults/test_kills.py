"""kill -9, signals, clocks: nothing is lost, and the run says how it goes on.

A few kills here; ``python -m benchmarks kills`` makes many.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest

from fedclip_plugin.cli import main
from fedclip_plugin.runs.directory import prepare_out
from fedclip_plugin.runs.files import MetricsFile
from tests.faults.brake import Brake, braked
from tests.faults.kills import (
    Toll,
    break_encoder,
    break_runs,
    command,
    rounds_in,
    running,
    sha256,
    share_cache,
)
from tests.federation.toy import write_toy
from tests.waiting import SECONDS, wait_until

pytestmark = pytest.mark.slow


def the(host: str, work: str) -> Callable[..., None]:
    """A function of a host's module, which can be imported beside that host alone."""

    def call(*args: object) -> None:
        getattr(import_module(f"tests.faults.{host}_kills"), work)(*args)

    return call


RANKS = [0, 2, 0]  # of FedML's processes: the server, a client, the server again
# host, moment -> what is done there, and how many of whom are killed
TABLE: dict[tuple[str, str], tuple[Callable[[Path, Toll], None], dict[str, int]]] = {
    ("embedded", "a run"): (
        lambda p, toll: break_runs(p, write_toy(p / "f"), toll, kills=6),
        {"embedded run": 6},
    ),
    ("embedded", "a run's start"): (
        lambda p, toll: break_runs(p, write_toy(p / "f"), toll, kills=2, rounds=0),
        {"embedded run": 2},
    ),
    ("embedded", "encoding"): (
        lambda p, toll: break_encoder(p, 48, toll, kills=3),
        {"feature encoder": 3},
    ),
    ("embedded", "two of four at a cache"): (
        lambda p, toll: share_cache(p, 48, toll, kills=2),
        {"one of four at a cache": 2},
    ),
    ("fedml", "server, client, server"): (
        lambda p, toll: the("fedml", "break_silo")(p, write_toy(p / "f"), toll, RANKS),
        {"FedML server": 2, "FedML client": 1},
    ),
    ("fedml", "a simulation is ended"): (
        lambda p, toll: the("fedml", "end_simulation")(p, write_toy(p / "f"), toll),
        {},
    ),
    ("fedml", "MPI goes on"): (
        lambda p, toll: the("fedml", "hand_over_to_mpi")(p, write_toy(p / "f"), toll),
        {},
    ),
    ("flower", "the strategy"): (
        lambda p, toll: the("flower", "break_strategy")(p, write_toy(p / "f"), toll, 3),
        {"Flower strategy": 3},
    ),
    ("flower", "the ServerApp"): (
        lambda p, toll: the("flower", "break_deployment")(p, toll, ["ServerApp"]),
        {"ServerApp": 1},
    ),
    ("nvflare", "the server"): (
        lambda p, toll: the("nvflare", "break_server")(p, write_toy(p / "f"), toll, 3),
        {"NVFlare server": 3},
    ),
}
NEEDS = {"fedml": "fedml", "flower": "flwr"}
MARKS = {"nvflare": "embedded"}  # its server's rounds need nothing of NVFlare's


@pytest.mark.parametrize(
    ("host", "moment"),
    [
        pytest.param(*row, marks=getattr(pytest.mark, MARKS.get(row[0], row[0])))
        for row in TABLE
    ],
)
def test_ended_at_any_moment_it_goes_on_to_the_same_bits(
    host: str, moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLWR_TELEMETRY_ENABLED", "0")  # read when Flower is imported
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    if host in NEEDS:
        pytest.importorskip(NEEDS[host])
    work, kills = TABLE[host, moment]
    toll = Toll(seed=1)
    work(tmp_path, toll)
    assert toll.kills == kills
    assert toll.compared


@pytest.mark.parametrize(
    "more",
    [
        ["--compress", "topk"],
        ["--optimizer-state", "keep"],
        ["--dp-noise-multiplier", "1", "--dp-clip", "1", "--dp-seed", "run"],
    ],
)
def test_what_is_kept_between_rounds_is_in_the_checkpoint(
    more: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["run", "--features", str(write_toy(tmp_path / "f")), "--target", "photo"]
    argv += ["--rounds", "6", "--lr", "0.001", "--quiet", *more]
    assert main([*argv, "--out", str(tmp_path / "whole")]) == 0
    add = MetricsFile.add

    def interrupt(self: MetricsFile, line: dict[str, object]) -> None:
        add(self, line)
        if line["round"] == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MetricsFile, "add", interrupt)
        assert main([*argv, "--out", str(tmp_path / "out")]) == 130
    assert main(["run", "--resume", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    adapters = [tmp_path / p / "adapter.safetensors" for p in ("whole", "out")]
    assert sha256(adapters[0]) == sha256(adapters[1])


# --------------------------------------------------------------------------- signals


@pytest.mark.parametrize(
    ("signals", "code"),
    [
        ([signal.SIGINT], 130),
        ([signal.SIGTERM], 143),
        ([signal.SIGINT, signal.SIGINT], 130),
    ],
)
def test_a_signal_leaves_a_run_that_goes_on(
    signals: list[signal.Signals], code: int, tmp_path: Path,
) -> None:  # fmt: skip
    features, out = write_toy(tmp_path / "f"), tmp_path / "my out"
    argv = ["run", "--features", str(features), "--target", "photo", "--quiet"]
    argv += ["--rounds", "300"]
    stop, line = Brake(tmp_path / "brake", 100), [*argv, "--out", str(out)]
    with running(braked, stop.file, command, line, tmp_path) as process:
        wait_until(lambda: rounds_in(out / "metrics.jsonl") > 3)
        assert process.pid is not None
        for each in signals:
            os.kill(process.pid, each)
        process.join(SECONDS)
    assert process.exitcode == code
    (text,) = (tmp_path / "log").read_text().splitlines()
    said, _, how = text.partition("resume with: ")
    assert said == "fedclip: error: interrupted; nothing is lost; "
    assert 3 < rounds_in(out / "metrics.jsonl") < 300
    words = shlex.split(how)
    assert words[0] == "fedclip"
    assert main([*words[1:], "--quiet"]) == 0
    assert main([*argv, "--out", str(tmp_path / "whole")]) == 0
    adapters = [p / "adapter.safetensors" for p in (out, tmp_path / "whole")]
    assert sha256(adapters[0]) == sha256(adapters[1])


def test_before_the_first_file_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    monkeypatch.chdir(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr("fedclip_plugin.runs.experiment.obtain_features", interrupt)
    assert main(["run", "--rounds", "1"]) == 143
    assert capsys.readouterr().err.strip().endswith("run the same command to resume")
    assert not list(tmp_path.glob("runs/*"))
    assert signal.getsignal(signal.SIGTERM) is before


# ------------------------------------------------------------------------ torn lines


def test_torn_lines_are_cut_off(tmp_path: Path) -> None:
    path, bad = tmp_path / "metrics.jsonl", tmp_path / "quarantined.jsonl"
    path.write_text('{"round": 1}\n{"round": 2}\n{"round": 3, "cl')
    bad.write_text('{"round": 1, "client": "a"}\n{"round": 2, "cl')
    with MetricsFile(path) as metrics:
        assert metrics.cut(2, wanted=1) == {"round": 1}
        assert metrics.cut(2, wanted=3) is None
    assert path.read_text() == '{"round": 1}\n{"round": 2}\n'
    assert bad.read_text() == '{"round": 1, "client": "a"}\n'


# ----------------------------------------------------------------------------- clocks


def test_resume_takes_the_last_run_where_the_clock_went_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = [prepare_out(None, "fedclip-toy", False) for _ in range(11)]
    assert runs[10].name == "fedclip-toy-11"
    for age, run in enumerate(runs):
        (run / "config.toml").write_text("")
        os.utime(run / "config.toml", (1e9 - age, 1e9 - age))
    assert prepare_out(None, "fedclip-toy", True) == runs[10]
    other = prepare_out(None, "fedclip-toy-big", False)
    (other / "config.toml").write_text("")
    assert prepare_out(None, "fedclip-toy", True) == runs[10]
    for run in runs[3:5]:  # a gap is not filled: numbers tell the order
        shutil.rmtree(run)
    assert prepare_out(None, "fedclip-toy", False).name == "fedclip-toy-12"


def test_a_clock_that_goes_back_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = write_toy(tmp_path / "f")
    argv = ["run", "--features", str(features), "--target", "photo", "--quiet"]
    argv += ["--rounds", "3"]
    assert main([*argv, "--out", str(tmp_path / "a")]) == 0
    clock = iter(range(10**9, 0, -3600))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    assert main([*argv, "--out", str(tmp_path / "b")]) == 0
    adapters = [tmp_path / name / "adapter.safetensors" for name in "ab"]
    assert sha256(adapters[0]) == sha256(adapters[1])
