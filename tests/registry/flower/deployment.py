"""A Flower deployment as the contract wants it: SuperLink, SuperNodes, ``flwr run``."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from fedclip_plugin.features.choice import halved
from fedclip_plugin.features.feature_set import FeatureSet
from fedclip_plugin.federation.build import Federation, build_federation
from fedclip_plugin.federation.unseen import Columns, base_to_novel
from fedclip_plugin.registry import flower_host
from fedclip_plugin.wire.update import State
from tests.federation.toy import DOMAINS, own_directories, toy_features
from tests.registry.contract import Faults
from tests.registry.flower.grid import options
from tests.registry.flower.world import NAMES, spoiling
from tests.registry.processes import Finished, ProcessWorld
from tests.waiting import SECONDS

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "flower"
APP = """[project]
name = "fedclip-test"
version = "1.0.0"
license = "MIT"
dependencies = []
[tool.flwr.app]
publisher = "fedclip"
fab-include = ["*.py"]
[tool.flwr.app.components]
serverapp = "{server}"
clientapp = "{client}"
[tool.flwr.app.config]
"""
FAULTY = """from tests.registry.flower.deployment import faulty_app
app = faulty_app({faults!r})
"""
STUCK = """from tests.registry.flower.deployment import stuck_app
app = stuck_app({client!r}, {file!r})
"""


def load_example() -> ModuleType:
    """``examples/flower/deploy.py`` as a module."""
    spec = importlib.util.spec_from_file_location("deploy", EXAMPLE / "deploy.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["deploy"] = module
    spec.loader.exec_module(module)
    return module


def two_domains(features: FeatureSet) -> FeatureSet:
    """Art and cartoon of the toy features."""
    kept = {
        k: {d: getattr(features, k)[d] for d in ("art", "cartoon")}
        for k in ("image", "label")
    }
    return replace(features, domains=("art", "cartoon"), **kept)


def faulty_app(faults: Faults) -> Any:
    """A ClientApp whose updates arrive spoilt, by (client, round)."""

    def fault(message: Any, context: Any, app: Any) -> Any:
        name = DOMAINS[int(context.node_config["partition-id"])]
        return spoiling(name, faults)(message, context, app)

    return flower_host.make_client_app([fault])


def stuck_app(client: str, file: str) -> Any:
    """A ClientApp of which one client makes ``file`` when it trains, and waits."""

    def wait(message: Any, context: Any, app: Any) -> Any:
        name = DOMAINS[int(context.node_config["partition-id"])]
        if (name, message.metadata.message_type) == (client, "train"):
            Path(file).touch()
            time.sleep(SECONDS)
        return app(message, context)

    return flower_host.make_client_app([wait])


def write_app(folder: Path, run_config: Mapping[str, Any], **texts: str) -> Path:
    """A Flower app of our ServerApp and ClientApp.

    ``server`` and ``client`` are texts of modules whose ``app`` is there instead.
    """
    folder.mkdir()
    parts = {
        name: f"fedclip_plugin.registry.flower_host:{name}_app"
        for name in ("server", "client")
    }
    (folder / "app.py").write_text('"""Flower refuses an app without a module."""\n')
    for name, text in texts.items():
        (folder / f"own_{name}.py").write_text(text)
        parts[name] = f"own_{name}:app"
    lines = [f"{key} = {json.dumps(value)}" for key, value in run_config.items()]
    text = APP.format(**parts)
    (folder / "pyproject.toml").write_text("\n".join([text.rstrip(), *lines, ""]))
    return folder


class Deployed(ProcessWorld):
    """Two SuperNodes, each with features that it alone has; TLS between them."""

    rounds: ClassVar[int] = 1
    slack: ClassVar[int] = 6000  # a message's own fields, metrics, configuration

    def __init__(self, folder: Path, features: FeatureSet, deployment: Any) -> None:
        super().__init__(folder)
        self.features = features
        self.deployment = deployment

    def run_config(self, **chosen: Any) -> dict[str, Any]:
        """The same options as a run config."""
        keys = {NAMES.get(k, k): v for k, v in chosen.items()}
        waits = {"min_available_nodes": 2, "start_timeout": 300, "round_timeout": 300}
        return options(None, dataset="toy", **waits, **keys)

    def play(self, faults: Faults | None = None, **chosen: Any) -> Finished:
        own = {"client": FAULTY.format(faults=faults)} if faults else {}
        app = write_app(self.own_folder() / "app", self.run_config(**chosen), **own)
        log, _ = self.deployment.run(app).communicate(timeout=SECONDS)
        status = self.status(log)
        out = Path(chosen.get("out", "none"))
        return self.finished(int(status != "finished:completed"), log, app.parent, out)

    def status(self, log: str) -> str:
        """How the run ended, which may be later than the stream of its log did."""
        (number,) = set(re.findall(r"run_id `(\d+)`", log))
        words = ["flwr", "list", "here", "--run-id", number, "--format", "json"]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            listed = subprocess.check_output(words, env=self.deployment.environment)
            status = str(json.loads(listed)["runs"][0]["status"])
            if status.startswith("finished:"):
                return status
            time.sleep(1)
        raise TimeoutError(log)

    def federation(self, **chosen: Any) -> Federation:
        config = flower_host.FedClip(self.run_config(**chosen)).config
        return build_federation(halved(self.features, config.data), config, None, 0)

    def columns(self, state: State, **chosen: Any) -> dict[str, Columns]:
        """The nodes measure themselves; here the same, with all data at hand."""
        config = flower_host.FedClip(self.run_config(**chosen)).config
        features = halved(self.features, config.data)
        return base_to_novel(self.federation(**chosen), features, None, state)

    def error(self, log: str) -> str:
        """Flower logs what its ServerApp raised."""
        found = set(re.findall(r"fedclip_plugin\.errors\.\w+: (.*)", log))
        assert len(found) == 1, log
        return found.pop()


@contextmanager
def deployed(folder: Path, rows: int = 100) -> Iterator[Deployed]:
    """The world, until the ``with`` block ends."""
    features = two_domains(toy_features(rows=rows))
    folders = own_directories(folder / "own", features)
    nodes = [f'partition-id={i} features="{path}"' for i, path in enumerate(folders)]
    (folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        with load_example().Deployment(folder / "work", nodes) as deployment:
            yield Deployed(folder, features, deployment)
