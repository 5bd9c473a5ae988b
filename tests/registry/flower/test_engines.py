"""Flower's own engines: the simulation on ray, and a node that dies in a deployment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when Flower is imported
pytest.importorskip("flwr")
pytest.importorskip("ray")

from flwr.serverapp import ServerApp
from flwr.simulation import run_simulation

from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.features.feature_set import FeatureSet
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.registry import flower_host
from fedclip_plugin.registry.flower.records import to_state
from fedclip_plugin.settings.sources import load_config
from fedclip_plugin.storage.tensors import read_tensors
from fedclip_plugin.wire.update import State
from tests.federation.toy import toy_features, write_toy
from tests.registry.contract import distance
from tests.registry.flower.deployment import (
    EXAMPLE,
    STUCK,
    deployed,
    load_example,
    write_app,
)
from tests.registry.flower.grid import options, without
from tests.waiting import SECONDS, wait_until

pytestmark = pytest.mark.slow

# With these every round is better than the one before: the best adapter is the last.
TRAINING = "local-epochs=3 lr=0.01 weight-decay=0.2"
ROWS = 100
# `flwr`, which gives its SuperLink 15 seconds to come up, and no way to say more.
PATIENT = f"""from flwr.cli import local_superlink
local_superlink.LOCAL_SUPERLINK_STARTUP_TIMEOUT = {SECONDS}
from flwr.cli.app import app
app()
"""


@pytest.fixture(scope="module")
def deploy() -> ModuleType:
    """The example's script, as a module."""
    return load_example()


def check_run(out: Path, features: FeatureSet) -> None:
    """The files in ``out`` are those of the embedded engine: adapter and accuracies."""
    config = config_of(out)
    standings = list(federate(build_federation(features, config, None, 0)))
    lines = [json.loads(s) for s in (out / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line, standing in zip(lines, standings[1:]):
        assert standing.result is not None
        assert line["clients"] == standing.result.clients
        assert line["quarantined"] == 0
    assert distance(adapter(out), standings[-1].best) < 1e-6
    summary = json.loads((out / "summary.json").read_text())
    assert summary["best_round"] == 2
    assert set(summary["zero_shot"]["clients"]) == set(features.domains)
    size = sum(4 * v.numel() for v in standings[-1].best.values())
    sent = len(lines) * len(features.domains) * size
    assert sent <= summary["communication"]["bytes_up"] <= 2 * sent
    assert (out / "report.html").is_file()


def config_of(out: Path) -> RunConfig:
    return load_config(out / "config.toml")


def adapter(out: Path) -> State:
    return read_tensors(out / "adapter.safetensors")[0]


# --------------------------------------------------------------------------- simulation


def test_flwr_run_on_the_example(
    toy: Path, tmp_path: Path, deploy: ModuleType, local_superlink: dict[str, str]
) -> None:
    write_toy(toy, rows=ROWS)
    out = tmp_path / "out"
    run_config = (
        f'{TRAINING} num-server-rounds=2 min-available-nodes=3 dataset="toy" '
        f'features="{toy}" out="{out}"'
    )
    words = [sys.executable, "-c", PATIENT, "run", str(EXAMPLE), "--stream"]
    words += ["--run-config", run_config]
    words += ["--federation-config", "num-supernodes=3 client-resources-num-cpus=1"]
    done = subprocess.run(
        words,
        env=local_superlink,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for domain in ("art", "cartoon", "photo"):
        assert f"fedclip: client {domain}: val" in done.stdout
    assert f"fedclip: results: {out}" in done.stdout
    check_run(out, toy_features(rows=ROWS))


@pytest.fixture
def local_superlink(tmp_path: Path, deploy: ModuleType) -> Iterator[dict[str, str]]:
    """Variables for `flwr run`; the SuperLink that it leaves behind is stopped."""
    port = str(deploy.free_port())
    yield {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": port,
    }
    for pid in superlinks(port):
        os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not superlinks(port), 0.2)


def superlinks(port: str) -> list[int]:
    """Processes that are a local SuperLink on this port."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            words = (
                (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            )
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if "--simulation" in words and port in words:
            found.append(int(entry.name))
    return found


def test_a_client_that_raises_or_dies_in_ray(
    toy: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FEDCLIP_FEATURES", str(toy))  # the clients have no run config
    monkeypatch.setenv("FLWR_HOME", str(toy / "flwr"))

    def fault(message: Any, context: Any, app: Any) -> Any:
        reply = app(message, context)
        if context.node_config["partition-id"] == 1 and (
            message.metadata.message_type == "train"
        ):
            if message.content["config"]["server-round"] == 1:
                raise RuntimeError("out of memory")
            os._exit(1)
        return reply

    server, ended = ServerApp(), {}

    @server.main()
    def main(grid: Any, context: Any) -> None:
        ended["strategy"] = flower_host.FedClip(
            options(None, min_available_nodes=3, fraction_evaluate=0.0)
        )
        ended["result"] = ended["strategy"].start(grid)

    client = flower_host.make_client_app([fault])
    resources = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 3}}
    run_simulation(server, client, num_supernodes=3, backend_config=resources)

    told = [m for m in caplog.messages if m.startswith("client cartoon left out of")]
    assert "round 1" in told[0]
    assert "out of memory" in told[0]
    assert "round 2" in told[1]
    metrics = ended["result"].train_metrics_clientapp
    assert metrics[1]["clients"] == 2
    assert metrics[2]["left-out"] >= 1  # ray may give a dead actor another client too
    state = to_state(ended["result"].arrays)
    assert all(torch.isfinite(v).all() for v in state.values())
    assert ended["strategy"].host_run.now.progress.best_round == 2


# --------------------------------------------------------------------------- deployment


def test_a_node_that_dies_costs_only_its_update(tmp_path: Path) -> None:
    out, trains = tmp_path / "out", tmp_path / "trains"
    with deployed(tmp_path, ROWS) as world:
        deployment = world.deployment
        config = world.run_config(out=str(out), rounds=1, local_epochs=3)
        config |= {"weight-decay": 0.2, "round-timeout": 600, "fraction-evaluate": 0.0}
        text = STUCK.format(client="cartoon", file=str(trains))
        run = deployment.run(write_app(tmp_path / "app", config, client=text))
        wait_until(lambda: trains.exists() or run.poll() is not None, 0.05)
        load_example().kill(deployment.nodes[1], signal.SIGKILL)
        log, _ = run.communicate(timeout=SECONDS)
    assert "client cartoon left out of round 1: Error: Node Unavailable" in log
    expected = without(config_of(out), world.features, "cartoon", 1)
    assert distance(adapter(out), expected) < 1e-6
    assert all(process.poll() is not None for process in deployment.nodes)
