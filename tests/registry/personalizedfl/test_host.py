"""The class that PersonalizedFL calls: equality, evaluation, faults, settings.

The registration and whole runs of main.py are in the test files beside this one.
"""

from __future__ import annotations

import argparse
import json
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader, Subset

from fedclip_plugin.algorithms import FedClip
from fedclip_plugin.algorithms.adapter import KEYS
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.federation.evaluation import score_clients
from fedclip_plugin.federation.personalization import personalize
from fedclip_plugin.registry.personalizedfl import start as start_room
from fedclip_plugin.registry.personalizedfl.algorithm import (
    PersonalizedFedClip,
    state_of,
)
from fedclip_plugin.registry.personalizedfl.start import settings_of
from tests.registry.personalizedfl.world import (
    DOMAINS,
    World,
    clients_of,
    embedded,
    make_loaders,
    open_world,
    play,
)


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    return open_world(tmp_path, monkeypatch)


@pytest.fixture
def start(world):
    """Make algorithms as main.py does; none waits for Python to exit."""
    made = []

    def make(**changes: object) -> PersonalizedFedClip:
        made.append(PersonalizedFedClip(world.args(**changes)))
        return made[-1]

    yield make
    for algorithm in made:
        algorithm.finish()


# --------------------------------------------------------------------------- equality


@pytest.mark.parametrize("wk_iters", [1, 3])
def test_the_adapter_is_that_of_the_embedded_engine(world, start, wk_iters):
    algorithm, loaders = start(wk_iters=wk_iters), make_loaders(world)
    play(algorithm, loaders, 4, wk_iters)
    train = {"rounds": 4, "local_epochs": wk_iters, "batch_size": 8, "lr": 0.01}
    fed = embedded(world.features, train, seed=3)
    *_, last = federate(fed)
    ours = algorithm.server_model.state_dict()
    assert list(ours) == list(KEYS)
    assert all(torch.equal(ours[key], last.state[key]) for key in KEYS)
    for model in algorithm.client_model:
        assert all(torch.equal(model.state_dict()[key], ours[key]) for key in KEYS)
    scores = score_clients(fed.algorithm, last.state, fed.clients, fed.task)
    for split, part in (("val", loaders[1]), ("test", loaders[2])):
        got = [algorithm.client_eval(i, part[i])[1] for i in range(4)]
        assert got == [scores[domain][split] for domain in DOMAINS]


def test_class_metrics_and_personal_adapters_as_in_fedclip_run(
    world, start, monkeypatch, tmp_path
):
    monkeypatch.setenv("FEDCLIP_PERSONALIZE", "finetune")
    monkeypatch.setenv("FEDCLIP_OUT", str(tmp_path / "out"))
    algorithm, loaders = start(), make_loaders(world)
    play(algorithm, loaders, 4)
    algorithm.finish()
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    settings = {"rounds": 4, "batch_size": 8, "lr": 0.01}
    fed = embedded(world.features, settings, seed=3)
    *_, last = federate(fed)
    keep = {}
    want = personalize(fed, last.best, "finetune", keep.__setitem__)
    assert summary["personalization"] == json.loads(json.dumps(want))
    assert summary["metrics"]["fedclip"]["macro_f1"] > 0
    for name, state in keep.items():
        file = load_file(tmp_path / "out" / "personal" / f"{name}.safetensors")
        assert all(torch.equal(file[key], state[key]) for key in KEYS)


def test_every_call_of_a_round_is_one_more_local_epoch(world, start):
    algorithm, loaders = start(wk_iters=2), make_loaders(world)
    client = clients_of(world.features, 3, 0.4)[1]
    for epochs in (1, 2):
        train = {"local_epochs": epochs, "batch_size": 8, "lr": 0.01}
        task = embedded(world.features, train, seed=3).task
        loss, right = algorithm.client_train(1, loaders[0][1], 0)
        update = FedClip().local_train(FedClip().init(task), client, task, 1)
        assert loss == pytest.approx(update.metrics["loss"])
        assert 0 <= right <= 1
        ours = state_of(algorithm.client_model[1])
        assert all(torch.equal(ours[key], update.state[key]) for key in KEYS)


def test_results_are_written_as_those_of_fedclip_run(world, start, monkeypatch, capsys):
    out = world.root / "out"
    monkeypatch.setenv("FEDCLIP_OUT", str(out))
    algorithm = start()
    play(algorithm, make_loaders(world), 4)
    algorithm.finish()
    told = capsys.readouterr()
    assert "zero-shot" in told.out
    assert str(out) in told.err
    summary = json.loads((out / "summary.json").read_text())
    train = {"rounds": 4, "batch_size": 8, "lr": 0.01}
    fed = embedded(world.features, train, seed=3)
    *_, last = federate(fed)
    scores = score_clients(fed.algorithm, last.best, fed.clients, fed.task)
    assert summary["result"]["clients"] == {d: scores[d]["test"] for d in DOMAINS}
    assert set(summary["zero_shot"]["clients"]) == set(DOMAINS)
    assert summary["best_round"] == last.progress.best_round
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 4
    for name in ("adapter.safetensors", "evaluation.json", "report.html"):
        assert (out / name).is_file()
    algorithm.finish()  # once is enough
    assert capsys.readouterr().out == ""


def test_a_run_that_ends_early_says_so(world, start, capsys):
    algorithm = start()
    play(algorithm, make_loaders(world), 2)
    capsys.readouterr()
    algorithm._print_results()  # what happens at exit
    told = capsys.readouterr()
    assert "ended before round 4" in told.err
    assert told.out == ""


def test_an_adapter_of_both_sides_fits_too(world, start, monkeypatch):
    monkeypatch.setenv("FEDCLIP_SIDE", "both")
    algorithm, loaders = start(), make_loaders(world)
    play(algorithm, loaders, 2)
    train = {"rounds": 2, "batch_size": 8, "lr": 0.01, "side": "both"}
    *_, last = federate(embedded(world.features, train, seed=3))
    ours = algorithm.server_model.state_dict()
    assert set(ours) == set(last.state)
    assert all(torch.equal(ours[key], last.state[key]) for key in ours)


def test_only_adapters_go_to_and_fro(world, start):
    algorithm = start()
    play(algorithm, make_loaders(world), 1)
    algorithm.finish()
    size = sum(4 * value.numel() for value in algorithm.run.state.values())
    result = algorithm.run.now.result
    for sent in (result.bytes_up, result.bytes_down):
        assert 4 * size <= sent <= 4 * (size + 500)
    held = [*algorithm.client_model, algorithm.server_model]
    assert all(
        sum(value.nbytes for value in model.state_dict().values()) == size
        for model in held
    )


# ------------------------------------------------------------------------- evaluation


def test_before_training_every_loader_can_be_evaluated(world, start, capsys):
    algorithm = start()
    assert "art_painting 0." in capsys.readouterr().out  # zero-shot, at the start
    loaders = make_loaders(world)
    loss, right = algorithm.client_eval(2, loaders[1][2])
    fed = embedded(world.features, {}, seed=3)
    part = fed.clients[2].val
    scores = fed.algorithm.predict(algorithm.run.state, part.x, fed.task)
    assert loss == pytest.approx(
        float(torch.nn.functional.cross_entropy(scores, part.y))
    )
    assert right == float((scores.argmax(1) == part.y).float().mean())
    assert algorithm.server_eval(loaders[1][2]) == (loss, right)


@pytest.mark.parametrize("share", [0.6, 0.5])
def test_a_split_without_images_does_not_stop_the_run(world, start, share, capsys):
    algorithm, loaders = start(), make_loaders(world, share)
    assert len(loaders[2][0].dataset) == 0
    play(algorithm, loaders, 2)
    loss, right = algorithm.client_eval(0, loaders[2][0])
    assert np.isnan([loss, right]).all()
    assert "art_painting" in capsys.readouterr().err
    algorithm.finish()
    assert "-" in capsys.readouterr().out


def test_an_empty_validation_split_counts_as_zero(world, start):
    algorithm, images = start(), world.images("photo")
    train, val = (DataLoader(Subset(images, rows)) for rows in (range(8), []))
    algorithm.client_train(2, train, 0)
    algorithm.server_aggre()
    algorithm.client_eval(2, train)
    assert algorithm.client_eval(2, val) == (0.0, 0.0)


# ----------------------------------------------------------------------------- faults


def test_a_client_without_rows_changes_nothing(world, start):
    algorithm, loaders = start(), make_loaders(world)
    nothing = DataLoader(Subset(world.images("sketch"), []))
    loss, right = algorithm.client_train(3, nothing, 0)
    assert np.isnan([loss, right]).all()
    for i in range(3):
        algorithm.client_train(i, loaders[0][i], 0)
    trained = [state_of(model) for model in algorithm.client_model[:3]]
    algorithm.server_aggre()
    for key in KEYS:
        mean = torch.stack([state[key] for state in trained]).mean(dim=0)
        torch.testing.assert_close(algorithm.server_model.state_dict()[key], mean)


def spoil_by_another_model(algorithm):
    algorithm.client_model[1] = torch.nn.Linear(3, 3)


def spoil_by_half_precision(algorithm):
    algorithm.client_model[1].half()


@pytest.mark.parametrize("spoil", [spoil_by_another_model, spoil_by_half_precision])
def test_a_spoilt_model_is_left_out_and_named(world, start, spoil, caplog):
    algorithm, loaders = start(), make_loaders(world)
    for i in range(4):
        algorithm.client_train(i, loaders[0][i], 0)
    others = [state_of(algorithm.client_model[i]) for i in (0, 2, 3)]
    spoil(algorithm)
    algorithm.server_aggre()
    assert "cartoon" in caplog.text
    for key in KEYS:
        mean = torch.stack([state[key] for state in others]).mean(dim=0)
        got = algorithm.server_model.state_dict()[key]
        torch.testing.assert_close(got, mean)
        assert torch.equal(algorithm.client_model[1].state_dict()[key], got)
    play(algorithm, loaders, 1)
    algorithm.finish()
    assert algorithm.run.now.progress.quarantined == 1


def test_a_spoilt_model_comes_back(world, start, monkeypatch, caplog):
    monkeypatch.setenv("FEDCLIP_COMPRESS", "int8")
    algorithm, loaders = start(), make_loaders(world)
    for spoil in (torch.nn.Linear(3, 3), None):
        for i in range(4):
            algorithm.client_train(i, loaders[0][i], 0)
        if spoil is not None:
            algorithm.client_model[1] = spoil
        algorithm.server_aggre()
    assert caplog.text.count("client cartoon left out: keys") == 1


def test_features_of_other_images_are_refused(world, capsys):
    (world.root / "data/pacs/photo/class0/more.jpg").touch()
    assert_one_line(capsys, world.args(), "photo")


@pytest.mark.parametrize(
    ("changes", "variables", "named"),
    [
        ({"dataset": "pamap"}, {}, "pamap"),
        ({"dataset": "cats", "domains": None}, {}, "cats"),
        ({"device": "cuda:99"}, {}, "cuda:99"),
        ({"iters": 0}, {}, "rounds = 0: expected a whole number >= 1"),
        ({}, {"FEDCLIP_TARGET": "photo"}, "data.targets"),
        ({}, {"FEDCLIP_PARTITION": "iid", "FEDCLIP_CLIENTS": "3"}, "data.partition"),
        ({}, {"FEDCLIP_PARTICIPATION": "0.5"}, "server.participation"),
        ({}, {"FEDCLIP_CLASSES": "base"}, "data.classes"),
        ({}, {"FEDCLIP_SPLIT": "coop.json"}, "data.split"),
        ({}, {"FEDCLIP_SHOTS": "4"}, "data.shots"),
        ({}, {"FEDCLIP_LRR": "0.5"}, "FEDCLIP_LR"),
    ],
)
def test_bad_input_ends_main_in_one_line(
    world, changes, variables, named, capsys, monkeypatch
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert_one_line(capsys, world.args(**changes), named)


def assert_one_line(capsys, args, named):
    with pytest.raises(SystemExit) as stop:
        PersonalizedFedClip(args)
    assert stop.value.code == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("fedclip: error: ")
    assert named in line


# ---------------------------------------------------------------------------- settings


def test_the_host_decides_what_it_has_options_for(world, monkeypatch):
    monkeypatch.setenv("FEDCLIP_ROUNDS", "99")
    monkeypatch.setenv("FEDCLIP_SEED", "99")
    config, out, _ = settings_of(world.args(wk_iters=2))
    train = config.train
    assert (train.rounds, train.batch_size, train.local_epochs) == (4, 8, 2)
    assert config.seeds == (3,)
    assert config.data.dataset == "pacs"
    assert config.data.root == str(world.root / "data" / "pacs")
    assert out is None


@pytest.mark.parametrize(
    ("argv", "lr"),
    [([], 0.01), (["--lr", "0.5"], 0.5), (["--lr=0.5"], 0.5), (["--lrx=1"], 0.01)],
)
def test_a_learning_rate_counts_where_it_was_said(world, monkeypatch, argv, lr):
    monkeypatch.setattr(sys, "argv", ["main.py", *argv])
    assert settings_of(world.args(lr=0.5))[0].train.lr == lr


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("fedavg", "--alg fedavg trains CLIP itself"),
        ("local", "local sends nothing"),
        ("facmic", "facmic aligns clients to each other's features"),
    ],
)
def test_what_main_cannot_play_is_refused(world, monkeypatch, capsys, name, told):
    monkeypatch.setenv("FEDCLIP_ALG", name)
    assert_one_line(capsys, world.args(), told)


def test_the_algorithm_is_the_one_that_main_was_asked_for(world, monkeypatch, capsys):
    monkeypatch.setenv("FEDCLIP_ALG", "linear")
    assert settings_of(world.args(alg="gda"))[0].algorithm == "gda"
    assert "FEDCLIP_ALG=linear has no effect here" in capsys.readouterr().err


def test_a_name_of_mains_own_stays_its_own(monkeypatch):
    algs = types.SimpleNamespace(fedprox=int)
    monkeypatch.setattr(start_room, "_module", lambda name: algs)
    monkeypatch.setattr(start_room, "_check_dataset", lambda name: None)
    monkeypatch.setattr(start_room, "_settle_root", lambda args: None)
    monkeypatch.setattr(start_room, "_check_files", lambda args: None)
    monkeypatch.setattr(np, "int", int, raising=False)
    for name in ("fedprox", "gda", "nobody"):
        monkeypatch.setattr(sys, "argv", ["main.py", "--alg", name])
        start_room.fit(str)
    assert vars(algs) == {"fedprox": int, "gda": str}


def test_what_main_overrules_is_noted(world, monkeypatch, capsys):
    monkeypatch.setenv("FEDCLIP_ROUNDS", "99")
    (note,) = settings_of(world.args())[0].notes
    assert note == "FEDCLIP_ROUNDS=99 has no effect here: main.py: rounds = 4 decides"
    assert f"fedclip: note: {note}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("dataset", "files", "told"),
    [
        ("pacs", [], "art_painting has no folders of images"),
        ("pacs", ["art_painting/dog/1.png"], "cartoon has no folders of images"),
        ("vlcs", ["Caltech101/dog/note.txt"], "Caltech101/dog has no image"),
        ("medmnistA", ["xdata.npy"], "ydata.npy is missing"),
    ],
)
def test_half_a_data_set_is_one_line(dataset, files, told, tmp_path):
    for file in [f"{dataset}/x/a", *(f"{dataset}/{file}" for file in files)]:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    args = argparse.Namespace(dataset=dataset, root_dir=f"{tmp_path}/")
    with pytest.raises(ConfigError, match=told) as caught:
        start_room._check_files(args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("root", "told"),
    [
        ("{}/data", "write --root_dir {}/data/"),
        ("{}/nowhere/", "is not a folder; expected the images of --dataset pacs"),
        ("$NOT_SET/", "variable $NOT_SET is not set"),
        ("{}/data/", None),
        ("{}/da", "is not a folder"),
        ("~/data/", None),
    ],
)
def test_the_root_is_checked_before_main_begins(world, monkeypatch, capsys, root, told):
    monkeypatch.setenv("HOME", str(world.root))
    monkeypatch.delenv("NOT_SET", raising=False)
    monkeypatch.setattr(start_room, "_check_dataset", lambda name: None)
    algs = types.SimpleNamespace()
    monkeypatch.setattr(start_room, "_module", lambda name: algs)
    monkeypatch.setattr(np, "int", int, raising=False)
    words = ["main.py", "--alg", "fedclip", "--root_dir", root.format(world.root)]
    monkeypatch.setattr(sys, "argv", words)
    if told is None:
        start_room.fit(str)
        assert sys.argv[-1] == f"{world.root}/data/"
        return
    with pytest.raises(SystemExit):
        start_room.fit(str)
    *_, line = capsys.readouterr().err.splitlines()
    assert told.format(world.root) in line
