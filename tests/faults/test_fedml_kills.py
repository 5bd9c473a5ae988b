"""FedML processes that are killed: the run goes on, bit for bit.

A few kills here; ``python -m benchmarks kills`` makes many.
"""

from __future__ import annotations

import os
import shlex
import signal
from pathlib import Path

import pytest

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from fedclip_plugin.cli import main
from fedclip_plugin.registry import fedml_host
from tests.faults.fedml_kills import break_silo, undisturbed
from tests.faults.kills import Toll, rounds_in, sha256, wait_until
from tests.registry.fedml.runs import (
    FEDCLIP,
    finish,
    mpirun,
    options,
    processes,
    write_yaml,
)

pytestmark = pytest.mark.slow


def test_a_silo_outlives_its_server_and_a_client(
    features: Path, tmp_path: Path
) -> None:
    """The server is killed, then a client, then the server again."""
    toll = Toll(seed=4)
    break_silo(tmp_path, features, toll, [0, 2, 0])
    assert toll.kills == {"FedML server": 2, "FedML client": 1}


def test_a_simulation_that_was_ended_goes_on_and_then_has_nothing_left_to_do(
    features: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    values = options(features, comm_round=200, fedclip_out=str(out))
    cf = write_yaml(tmp_path / "fedml_config.yaml", values)
    command = [*FEDCLIP, "fedml", "--cf", str(cf), "--offline", "--resume"]
    with processes(tmp_path, [command]) as (process,):
        wait_until(lambda: rounds_in(out / "metrics.jsonl") > 3)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait() == 143
    last = (tmp_path / "0.log").read_text().splitlines()[-1]
    assert last.endswith(f"resume with: {shlex.join(['fedclip', *command[3:]])}")
    done = rounds_in(out / "metrics.jsonl")
    assert 3 < done < 200
    whole = undisturbed(values, tmp_path / "whole")
    for line in ("going on after round", "going on after round 200 of 200"):
        ((code, log),) = finish(tmp_path, [command])
        assert code == 0, log
        assert line in log
        assert rounds_in(out / "metrics.jsonl") == 200
        name = "adapter.safetensors"
        assert sha256(out / name) == sha256(whole / name)


@pytest.mark.skipif(mpirun() is None, reason="needs Open MPI")
def test_mpi_goes_on_where_another_process_stopped(
    features: Path, tmp_path: Path
) -> None:
    """Two rounds in one process, two more under MPI, and then nothing is left."""
    out = tmp_path / "out"
    values = options(features, client_num_per_round=1, fedclip_out=str(out))
    short = write_yaml(tmp_path / "sp.yaml", values | {"comm_round": 2})
    fedml_host.run(short, offline=True)
    values |= {"backend": "MPI", "comm_round": 4}
    cf = write_yaml(tmp_path / "mpi.yaml", values)
    command = [*FEDCLIP, "fedml", "--cf", str(cf), "--offline", "--resume"]
    whole = undisturbed(values, tmp_path / "whole")
    for _ in range(2):
        ((code, log),) = finish(tmp_path, [[str(mpirun()), "-np", "2", *command]])
        assert code == 0, log
        assert rounds_in(out / "metrics.jsonl") == 4
        name = "adapter.safetensors"
        assert sha256(out / name) == sha256(whole / name)


def test_resume_needs_a_place(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cf = write_yaml(tmp_path / "fedml_config.yaml", options(features))
    assert main(["fedml", "--cf", str(cf), "--offline", "--resume"]) == 2
    assert "resume needs the output directory" in capsys.readouterr().err
