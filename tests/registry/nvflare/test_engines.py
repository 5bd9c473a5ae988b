"""NVFlare itself: its simulator, and a provisioned system of processes with mTLS."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nvflare", reason="pip install 'fedclip-plugin[nvflare]'")

import psutil  # NVFlare depends on it

from fedclip_plugin.registry import nvflare_host
from fedclip_plugin.storage.tensors import read_tensors
from tests.federation.toy import DOMAINS, own_directories, write_toy
from tests.registry.contract import check_directory, distance, lines_of
from tests.registry.nvflare.deployment import load_example
from tests.registry.nvflare.world import Bytes
from tests.waiting import SECONDS, wait_until

pytestmark = pytest.mark.slow
ENDLESS = 100_000  # rounds of a job that is not to be over before it is ended


def job(folder: Path, **options: Any) -> Path:
    given = {"dataset": "toy", "min-sites": 3, **options}
    nvflare_host.write_job(
        folder, {key.replace("_", "-"): value for key, value in given.items()}
    )
    return folder


def test_the_simulator_gives_the_run_of_the_embedded_engine(tmp_path: Path) -> None:
    toy, workspace = write_toy(tmp_path / "toy"), tmp_path / "workspace"
    nvflare_host.allow(workspace)
    folder = job(tmp_path / "job", features=str(toy), rounds=2)
    program = [sys.executable, "-m", "nvflare.private.fed.app.simulator.simulator"]
    cache = {"FEDCLIP_UPDATE_MEMORY": "0", "FEDCLIP_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [*program, str(folder), "-w", str(workspace), "-n", "3", "-t", "3"],
        env={**os.environ, "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", **cache},
        cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "cache" / "spool").is_dir()  # as if memory did not hold a round
    out = workspace / "server" / "simulate_job" / "fedclip"
    check_directory(out, Bytes(toy).embedded(rounds=2))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("nvflare")


@pytest.fixture(scope="module")
def deployment(folder: Path) -> Iterator[Any]:
    """A server without data, and three sites with one domain each."""
    paths = own_directories(folder / "own")
    sites = {f"site-{n}": {"features": str(p)} for n, p in enumerate(paths, 1)}
    work = folder / "work"
    work.mkdir()
    with load_example().Deployment(work, sites) as found:
        yield found
    assert all(process.poll() is not None for process in found.processes.values())


def wait_for_rounds(out: Path, count: int) -> None:
    path = out / "metrics.jsonl"
    wait_until(lambda: path.is_file() and len(lines_of(path)) >= count, 0.1)


def test_an_aborted_job_leaves_whole_rounds_and_another_goes_on(
    deployment: Any, folder: Path
) -> None:
    out = folder / "out"
    number = deployment.submit(job(folder / "long", rounds=ENDLESS, out=str(out)))
    wait_for_rounds(out, 2)
    deployment.session.abort_job(number)
    assert "ABORTED" in deployment.ended(number)
    aborted = "fedclip: the job was aborted"
    wait_until(lambda: aborted in deployment.log("localhost"), 0.2)
    lines = lines_of(out / "metrics.jsonl")
    assert all(set(line["clients"]) == set(DOMAINS) for line in lines)
    goes_on(deployment, folder, out)


def goes_on(deployment: Any, folder: Path, out: Path) -> None:
    """A job of two rounds more ends as if there had been one job."""
    rounds = len(lines_of(out / "metrics.jsonl")) + 2
    more = {"rounds": rounds, "out": str(out), "resume": True}
    number = deployment.submit(job(folder / f"{out.name}-longer", **more))
    assert deployment.ended(number) == "FINISHED:COMPLETED"
    last = Bytes(write_toy(folder / f"{out.name}-toy")).embedded(rounds=rounds)
    assert len(lines_of(out / "metrics.jsonl")) == rounds
    found, _ = read_tensors(out / "adapter.safetensors")
    assert distance(found, last.best) <= 1e-6
    assert lines_of(out / "metrics.jsonl")[-1]["clients"] == last.result.clients


def test_a_killed_server_goes_on_with_its_sites(deployment: Any, folder: Path) -> None:
    out = folder / "killed"
    deployment.submit(job(folder / "broken", rounds=ENDLESS, out=str(out)))
    wait_for_rounds(out, 2)
    deployment.session.close()
    deployment.kill("localhost")  # and its process of the job
    deployment.processes["localhost"].wait(SECONDS)
    deployment.start("localhost")
    deployment.connect()
    wait_until(lambda: deployment.connected() == set(deployment.sites), 1.0)
    goes_on(deployment, folder, out)


def test_a_download_has_the_report(deployment: Any, folder: Path) -> None:
    options = {"alg": "gda", "rounds": 1}
    status, found = deployment.run(job(folder / "gda", **options), folder / "loaded")
    assert status == "FINISHED:COMPLETED"
    toy = write_toy(folder / "toy")
    check_directory(found, Bytes(toy).embedded(rounds=1, alg="gda"))
    summary = json.loads((found / "summary.json").read_text())
    assert set(summary["zero_shot"]["clients"]) == set(DOMAINS)


def trainers(deployment: Any, site: str) -> list[Any]:
    """Its processes that train."""
    word = "fedclip_plugin.registry.nvflare.worker"
    found = []
    for process in deployment.family(site):
        with suppress(psutil.NoSuchProcess):
            found += [process] if word in process.cmdline() else []
    return found


def test_a_trainer_and_a_site_that_die_end_no_rounds(
    deployment: Any, folder: Path
) -> None:
    out = folder / "less"
    options = {"rounds": ENDLESS, "out": str(out), "round_timeout": 60}
    number = deployment.submit(job(folder / "gone", **options))
    wait_for_rounds(out, 2)
    # that of the job before may be there still
    wait_until(lambda: len(trainers(deployment, "site-2")) == 1, 0.2)
    trainers(deployment, "site-2")[0].kill()
    wait_for_rounds(out, 8)
    deployment.kill("site-3")

    def the_others_go_on() -> bool:
        line = lines_of(out / "metrics.jsonl")[-1]
        return set(line["clients"]) == {"art", "cartoon"}

    wait_until(the_others_go_on, 0.2)  # NVFlare takes minutes to see that it is gone
    deployment.session.abort_job(number)
    said = deployment.log("localhost")
    # one that was at work costs its update, an idle one nothing
    assert ("client cartoon left out of" in said) >= ("died of signal 9" in said)
    assert "client photo left out of" in said
