"""A PersonalizedFL run in small: folders, features, loaders and the host's loop."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from fedclip_plugin.algorithms import (
    Client,
    Samples,
    Task,
    get_algorithm,
    with_values,
)
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.features.feature_set import FeatureSet, save_features
from fedclip_plugin.federation.build import Federation
from fedclip_plugin.federation.downlink import broadcast
from fedclip_plugin.federation.engine import RunState
from fedclip_plugin.registry.personalizedfl.algorithm import PersonalizedFedClip
from fedclip_plugin.server import optimizer
from fedclip_plugin.wire.update import State
from tests.federation.toy import toy_features
from tests.registry import contract
from tests.waiting import SECONDS

DOUBLE = Path(__file__).parent / "personalizedfl_double"
HOME = os.environ.get("PERSONALIZEDFL_HOME")
DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
needs_real = pytest.mark.skipif(not HOME, reason="PERSONALIZEDFL_HOME is not set")
REPOSITORIES = [
    pytest.param(DOUBLE, id="double"),
    pytest.param(HOME and Path(HOME), id="real", marks=needs_real),
]


def copy_repository(source: Path, folder: Path) -> Path:
    ignore = shutil.ignore_patterns("__pycache__", ".git")
    return Path(shutil.copytree(source, folder / "repository", ignore=ignore))


def contents(folder: Path) -> dict[str, bytes]:
    """Relative path -> bytes of every file but compiled ones."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def pacs_features() -> FeatureSet:
    """Four domains of rows in the order of ImageFolder: sorted by class."""
    toy = toy_features(rows=80)
    places = {"art_painting": ("art", 0), "cartoon": ("cartoon", 0)}
    places |= {"photo": ("photo", 0), "sketch": ("photo", 40)}
    image, label = {}, {}
    for domain, (name, first) in places.items():
        y = toy.label[name][first : first + 40]
        order = torch.argsort(y, stable=True)
        image[domain] = toy.image[name][first : first + 40][order]
        label[domain] = y[order]
    return replace(toy, domains=DOMAINS, image=image, label=label)


class World:
    """A folder of PACS' shape whose files are never opened, and its features."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.features = pacs_features()
        save_features(self.features, root / "features")
        for domain in DOMAINS:
            for i, y in enumerate(self.features.label[domain].tolist()):
                folder = root / "data" / "pacs" / domain / self.features.classes[y]
                folder.mkdir(parents=True, exist_ok=True)
                (folder / f"{i:03d}.jpg").touch()

    def images(self, domain: str) -> Images:
        """What the host's ImageDataset shows of itself."""
        labels = self.features.label[domain].tolist()
        folder = f"{self.root}/data/pacs/{domain}"
        classes = self.features.classes
        paths = [f"{folder}/{classes[y]}/{i:03d}.jpg" for i, y in enumerate(labels)]
        return Images(paths, np.array(labels))

    def args(self, **changes: object) -> argparse.Namespace:
        return main_args(self.root, **changes)


def main_args(root: Path, **changes: object) -> argparse.Namespace:
    """What main.py hands over."""
    given = {
        "dataset": "pacs", "root_dir": f"{root}/data/", "device": "cpu",
        "seed": 3, "iters": 4, "batch": 8, "wk_iters": 1, "lr": 1e-2,
        "n_clients": 4, "domains": list(DOMAINS), "num_classes": 4,
    }  # fmt: skip
    return argparse.Namespace(**{**given, **changes})


class Images:
    def __init__(self, x: list[str], targets: np.ndarray) -> None:
        self.x, self.targets = x, targets

    def __len__(self) -> int:
        return len(self.targets)


def open_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A world, and the variables that lead fedclip to it."""
    world = World(tmp_path / "world")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDCLIP_FEATURES", str(world.root / "features"))
    monkeypatch.setenv("FEDCLIP_LR", "0.01")
    return world


def host_rows(n: int, seed: int, share: float) -> list[np.ndarray]:
    """PersonalizedFL's split of a domain: train, validation, test."""
    order = np.random.RandomState(seed).permutation(n)
    own, fifth = int(n * share), int(n * 0.2)
    return [order[:own], order[own : 2 * own], order[2 * own : 2 * own + fifth]]


def make_loaders(world: World, share: float = 0.4) -> list[list[DataLoader]]:
    """Loaders of train, validation and test images, a row a split."""
    parts: list[list[DataLoader]] = [[], [], []]
    for domain in DOMAINS:
        images = world.images(domain)
        for part, rows in zip(parts, host_rows(len(images), 3, share)):
            part.append(DataLoader(Subset(images, rows), batch_size=8))
    return parts


def clients_of(features: FeatureSet, seed: int, share: float) -> tuple[Client, ...]:
    clients = []
    for i, domain in enumerate(DOMAINS):
        x, y = features.image[domain], features.label[domain]
        rows = host_rows(len(y), seed, share)
        clients.append(Client(domain, i, *(Samples(x[r], y[r]) for r in rows)))
    return tuple(clients)


def embedded(
    features: FeatureSet, settings: Mapping[str, Any], seed: int, share: float = 0.4
) -> Federation:
    """The embedded engine's federation of the very clients of the host."""
    chosen = dict(settings)
    algorithm = get_algorithm(chosen.pop("alg", "fedclip"))
    own = f"{algorithm.name}_"
    values = {key.removeprefix(own): value for key, value in chosen.items()}
    config = with_values(RunConfig(algorithm.name), {**algorithm.defaults, **values})
    text, scale = features.class_text, features.logit_scale
    task = Task.of(config, algorithm.Params(), text, scale, seed)
    return Federation(algorithm, task, clients_of(features, seed, share), None)


def train(algorithm, loaders, number: int, wk_iters: int) -> None:
    """The training of one round."""
    for _ in range(wk_iters):
        for i, loader in enumerate(loaders):
            algorithm.client_train(i, loader, number)


def evaluate(algorithm, parts) -> None:
    """The evaluations after a round."""
    for part in parts:
        for i, loader in enumerate(part):
            algorithm.client_eval(i, loader)


def play(algorithm, loaders, rounds: int, wk_iters: int = 1) -> None:
    """main.py's loop, with its evaluations."""
    for number in range(rounds):
        train(algorithm, loaders[0], number, wk_iters)
        algorithm.server_aggre()
        evaluate(algorithm, loaders)


class Spoilt(torch.nn.Module):
    """What a client left in its model's place."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.state = state

    def state_dict(self) -> State:  # type: ignore[override]
        return self.state


NAMES = {"rounds": "iters", "local_epochs": "wk_iters"}


class Loop(contract.World):
    """The host's loop, as ``main.py`` has it, over the adapters of four clients."""

    resumes: ClassVar[bool] = False
    keeps: ClassVar[bool] = False
    faults: ClassVar[Collection[str]] = tuple(contract.FAULTS.keys() - {"nothing"})

    def __init__(self, world: World, capsys: pytest.CaptureFixture[str]) -> None:
        self.world, self.capsys = world, capsys

    def run(
        self, faults: Mapping[tuple[str, int], str] | None = None, **chosen: Any
    ) -> contract.Ended:
        args = self.world.args(
            **{v: chosen.pop(k) for k, v in NAMES.items() if k in chosen}
        )
        with pytest.MonkeyPatch.context() as patch:
            for name, value in chosen.items():
                patch.setenv(f"FEDCLIP_{name.upper()}", str(value))
            algorithm = PersonalizedFedClip(args)
            parts = make_loaders(self.world)
            for number in range(args.iters):
                train(algorithm, parts[0], number, args.wk_iters)
                for place, name in enumerate(DOMAINS):
                    if kind := (faults or {}).get((name, number + 1)):
                        state = algorithm.client_model[place].state_dict()
                        spoilt = Spoilt(contract.spoilt(kind, state))
                        algorithm.client_model[place] = spoilt
                algorithm.server_aggre()
                evaluate(algorithm, parts)
            algorithm.finish()
        return contract.Ended(dict(algorithm.server_model.state_dict()), algorithm.run)

    def federation(self, **chosen: Any) -> Federation:
        settings = {"batch_size": 8, "lr": 0.01, **chosen}
        return embedded(self.world.features, settings, seed=3)

    def shown(self, last: RunState, **chosen: Any) -> State:
        judged = optimizer.judged(last.memory, last.state)
        return broadcast(self.federation(**chosen), judged).seen

    def refusal(self, **chosen: Any) -> str:
        with pytest.raises(SystemExit) as stop:
            self.run(**chosen)
        assert stop.value.code == 2
        *_, line = self.capsys.readouterr().err.splitlines()
        assert line.startswith("fedclip: error: ")
        return line


# ------------------------------------------------------------ main.py in its process

RUNNER = ["-m", "fedclip_plugin.registry.personalizedfl_host"]


def python(*words: object, cwd: Path, **variables: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    env.pop("PYTHONPATH", None)
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip


def options_of(world: World, **changes: object) -> list[object]:
    """The words of main.py's command line."""
    return words_of(world.root, **changes)


def words_of(root: Path, **changes: object) -> list[object]:
    """The same, of the world in ``root``."""
    given = {
        "alg": "fedclip", "dataset": "pacs", "root_dir": f"{root}/data/",
        "device": "cpu", "seed": 3, "iters": 3, "batch": 8, "wk_iters": 2,
        "datapercent": 0.4, **changes,
    }  # fmt: skip
    return [word for k, v in given.items() for word in (f"--{k}", v)]
