"""Whole runs of main.py: the real one where PERSONALIZEDFL_HOME names it, and a double.

Each run is a process of its own, as a user starts it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fedclip_plugin import registry
from fedclip_plugin.algorithms.adapter import KEYS
from fedclip_plugin.features.feature_set import load_features, save_features
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.federation.evaluation import score_clients
from fedclip_plugin.storage.tensors import read_tensors
from tests.registry.personalizedfl.world import (
    DOMAINS,
    DOUBLE,
    REPOSITORIES,
    RUNNER,
    World,
    contents,
    copy_repository,
    embedded,
    open_world,
    options_of,
    pacs_features,
    python,
)
from tests.waiting import SECONDS


@pytest.fixture(params=REPOSITORIES)
def repository(request, tmp_path) -> Path:
    return copy_repository(request.param, tmp_path)


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    return open_world(tmp_path, monkeypatch)


CHECKPOINT = {f"client_model_{i}" for i in range(4)} | {"server_model", "best_tacc"}


@pytest.mark.slow
@pytest.mark.parametrize("registered", [True, False], ids=["registered", "untouched"])
def test_main_runs_to_the_adapter_of_the_embedded_engine(
    repository, world, tmp_path, registered
):
    before = contents(repository)
    if registered:
        registry.register("personalizedfl", repository)
    how = [] if registered else RUNNER
    main = repository / "main.py"
    out = tmp_path / "out"
    options = options_of(world)
    done = python(*how, main, *options, cwd=tmp_path, FEDCLIP_OUT=str(out))
    assert done.returncode == 0, done.stderr
    train = {"rounds": 3, "local_epochs": 2, "batch_size": 8, "lr": 0.01}
    fed = embedded(load_features(world.root / "features"), train, seed=3)
    *_, last = federate(fed)
    (path,) = tmp_path.glob("cks/fed_pacs_fedclip*/fedclip")
    saved = torch.load(path, weights_only=False)
    assert set(saved) >= CHECKPOINT
    for name in CHECKPOINT - {"best_tacc"}:
        for key in KEYS:
            torch.testing.assert_close(
                saved[name][key], last.best[key], rtol=0, atol=1e-6
            )
    scores = score_clients(fed.algorithm, last.best, fed.clients, fed.task)
    tests = "".join(f"{scores[d]['test']:.4f}," for d in DOMAINS)
    assert f"Personalized test acc for each client: {tests}" in done.stdout
    assert "Zero-shot CLIP" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["rounds"] == 3
    assert summary["result"]["clients"] == {d: scores[d]["test"] for d in DOMAINS}
    if not registered:
        assert contents(repository) == before


@pytest.mark.slow
@pytest.mark.parametrize("registered", [True, False], ids=["registered", "untouched"])
def test_main_runs_another_method_by_its_name(repository, world, tmp_path, registered):
    if registered:
        registry.register("personalizedfl", repository)
    how = [] if registered else RUNNER
    options = options_of(world, alg="gda", iters=1, wk_iters=1)
    done = python(
        *how, repository / "main.py", *options, cwd=tmp_path, FEDCLIP_OUT="out"
    )
    assert done.returncode == 0, done.stderr
    fed = embedded(load_features(world.root / "features"), {"alg": "gda"}, seed=3)
    *_, last = federate(fed)
    state, _ = read_tensors(tmp_path / "out" / "adapter.safetensors")
    for key, value in last.best.items():
        torch.testing.assert_close(state[key], value, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_medmnist_is_encoded_once_and_runs(repository, tmp_path):
    folder = tmp_path / "data" / "medmnistA"
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    np.save(folder / "xdata.npy", random.random((132, 28, 28)))
    np.save(folder / "ydata.npy", np.repeat(np.arange(11), 12)[:, None])
    words = "--alg fedclip --dataset medmnistA --root_dir data/ --device cpu --iters 2"
    words += " --n_clients 4 --non_iid_alpha 5 --partition_data non_iid_dirichlet"
    if not (repository / "datautil" / "prepare_data.py").read_text().count("pamap"):
        words = words.partition(" --non_iid_alpha")[0]
    for encoded in (132, 0):
        done = python(
            *RUNNER, repository / "main.py", *words.split(), cwd=tmp_path,
            FEDCLIP_MODEL="fedclip-tiny", FEDCLIP_CACHE=str(tmp_path / "cache"),
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"132 images, {encoded} encoded now" in done.stderr
    assert "Site-03 | Val Acc" in done.stdout or " Site-03 | Val Loss" in done.stdout
    assert "Average accuracy: 0." in done.stdout


@pytest.mark.slow
def test_office_home_runs_under_its_name_in_main(repository, world, tmp_path):
    pacs, office = world.root / "data" / "pacs", world.root / "data" / "off_home"
    pacs.rename(office)
    names = dict(zip(DOMAINS, ("Art", "Clipart", "Product", "Real_World")))
    for old, new in names.items():
        (office / old).rename(office / new)
    found = pacs_features()
    ours = {old: new.lower() for old, new in names.items()}
    image = {ours[d]: found.image[d] for d in DOMAINS}
    label = {ours[d]: found.label[d] for d in DOMAINS}
    shutil.rmtree(world.root / "features")
    save_features(
        replace(found, domains=tuple(image), image=image, label=label),
        world.root / "features",
    )
    options = options_of(world, dataset="off_home", iters=1)
    done = python(*RUNNER, repository / "main.py", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "real_world" in done.stdout
    registry.register("personalizedfl", repository)
    done = python(repository / "main.py", *options, cwd=tmp_path)
    if "off_home" not in (repository / "datautil/prepare_data.py").read_text():
        assert done.returncode == 2
        (line,) = done.stderr.splitlines()
        assert "personalizedfl_host" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "how"), [("pamap", []), ("officehome", RUNNER), ("cats", RUNNER)]
)
def test_what_main_cannot_hand_over_ends_in_one_line(
    repository, tmp_path, dataset, how
):
    registry.register("personalizedfl", repository)
    words = "--alg", "fedclip", "--dataset", dataset
    done = python(*how, repository / "main.py", *words, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"fedclip: error: --dataset {dataset}")


@pytest.mark.parametrize("words", [[], ["nothing/main.py"], ["train.py"]])
def test_the_runner_names_what_is_no_main(tmp_path, words):
    (tmp_path / "train.py").touch()
    done = python(*RUNNER, *words, cwd=tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "main.py" in line


@pytest.mark.slow
def test_other_algorithms_stay_as_they_are(tmp_path, world):
    repository = Path(shutil.copytree(DOUBLE, tmp_path / "repository"))
    options = options_of(world, alg="fixed", iters=1)
    plain = python(repository / "main.py", *options, cwd=tmp_path)
    registry.register("personalizedfl", repository)
    again = python(repository / "main.py", *options, cwd=tmp_path)
    assert plain.returncode == again.returncode == 0
    assert plain.stdout == again.stdout


@pytest.mark.slow
def test_the_example_runs_as_printed(repository, tmp_path):
    before = contents(repository)
    script = Path(__file__).parents[3] / "examples" / "personalizedfl" / "run.sh"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["sh", str(script), str(repository), "work"],
        cwd=tmp_path, env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert contents(repository) == before
    summary = json.loads((tmp_path / "work" / "out" / "summary.json").read_text())
    assert summary["result"]["mean"] > summary["zero_shot"]["mean"]
