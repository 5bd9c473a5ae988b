"""The dry run tells what a run would cost, and changes nothing; recipes are sound."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedclip_plugin.cli import main
from fedclip_plugin.cli.dry_run import estimate
from fedclip_plugin.config.inputs import DataConfig
from fedclip_plugin.config.schema import RunConfig, TrainConfig
from fedclip_plugin.data.classes import PRESETS
from fedclip_plugin.data.dataset import KNOWN
from fedclip_plugin.features.feature_set import load_features
from fedclip_plugin.federation.build import build_federation
from fedclip_plugin.federation.engine import federate
from fedclip_plugin.settings.sources import load_config
from tests.federation.toy import name_images, write_split, write_toy

RECIPES = sorted((Path(__file__).parents[2] / "examples" / "recipes").glob("*.toml"))


def test_bytes_and_runs_are_those_of_the_run(tmp_path):
    path = write_toy(tmp_path / "f")
    data = DataConfig(features=str(path), dataset="toy", targets=("photo", "art"))
    config = RunConfig(data=data, train=TrainConfig(rounds=3), seeds=(0, 1))
    found = {cost.name: cost.detail for cost in estimate(config)}
    assert found["runs"] == "4: held out photo, art; seeds 0, 1"
    *_, last = federate(build_federation(load_features(path), config, "photo", 0))
    sent = last.progress.bytes_up + last.progress.bytes_down
    assert f"{sent / 1024:.1f} KiB a run" in found["bytes"]
    assert found["clients"].startswith("2, 2 a round; 36 to 36 training images")


def test_the_command_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    features = str(write_toy(tmp_path / "f"))
    (tmp_path / "cache").mkdir()  # asked whether it can be written to
    before = sorted(tmp_path.rglob("*"))
    assert main(["run", "--dry-run", "--features", features]) == 0
    text = capsys.readouterr().out
    assert "training: 200 rounds" in text
    assert sorted(tmp_path.rglob("*")) == before


def test_images_are_counted(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "--dry-run"]) == 0
    assert "1797 images at" in capsys.readouterr().out
    (tmp_path / "d.json").write_text('{"0": "a ring"}')
    more = {str(digit): "a ring" for digit in range(10)} | {"ten": "a ring"}
    (tmp_path / "more.json").write_text(json.dumps(more))
    words = ["--prompt", f"descriptions:{tmp_path / 'more.json'}"]
    assert main(["run", "--dry-run", *words]) == 0
    assert "describes a class twice: ten" in capsys.readouterr().out
    for file, said in (("d", "no description of the class"), ("e", "cannot be read")):
        words = ["--prompt", f"descriptions:{tmp_path / file}.json"]
        assert main(["run", "--dry-run", *words]) == 2
        assert said in capsys.readouterr().err


def test_each_held_out_domain_leaves_somebody_to_train(tmp_path, capsys):
    features = name_images(write_toy(tmp_path / "f"))
    split = Path(write_split(tmp_path / "split.json", features))
    parts = json.loads(split.read_text())
    own = [entry for entry in parts["train"] if entry[0].startswith("photo/")]
    split.write_text(json.dumps({**parts, "train": own}))
    line = ["run", "--features", str(tmp_path / "f"), "--split", str(split)]
    assert main([*line, "--dry-run"]) == 2  # photo is held out last
    assert "none of the 2 clients has a training" in capsys.readouterr().err
    assert main([*line, "--target", "art", "--dry-run"]) == 0


def test_clients_of_a_method_that_trains_clip_are_looked_at(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path / "cache"))
    line = ["run", "--alg", "fedavg", "--partition", "iid", "--target", "none"]
    assert main([*line, "--clients", "1797", "--dry-run"]) == 2
    assert "none of the 1,797 clients has a training" in capsys.readouterr().err
    assert main([*line, "--clients", "3", "--shots", "500", "--dry-run"]) == 0
    assert "note: --shots 500: in 30 of 30 cases" in capsys.readouterr().out


def test_a_sweep_names_the_trials_that_would_train_on_nothing(tmp_path, capsys):
    file, features = tmp_path / "s.toml", write_toy(tmp_path / "f")
    grid = '[grid]\npartition = ["iid"]\nclients = [3, 180]\n'
    file.write_text(f'[options]\nfeatures = "{features}"\ntarget = "none"\n{grid}')
    assert main(["sweep", str(file), "--dry-run"]) == 2
    shown = capsys.readouterr()
    assert "clients=180: none of the 180 clients has a training image" in shown.err
    assert "1 runs of 2 trials" in shown.out


def test_what_is_missing_fails_before_any_cost(tmp_path, capsys):
    argv = ["run", "--dry-run", "--dataset", "pacs", "--root", str(tmp_path / "none")]
    assert main(argv) == 2
    text = capsys.readouterr().out
    assert "does not exist" in text
    assert "encoding" not in text


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_is_the_published_run(recipe):
    config = load_config(recipe)
    assert config.data.dataset == recipe.stem
    assert config.train == TrainConfig()
    assert config.seeds == (0, 1, 2)
    assert (config.model_name, config.pretrained) == ("ViT-B/32", "openai")


MEDICAL = sorted((RECIPES[0].parent / "medical").glob("*.toml"))


def medical_folders(root, name, sites):
    """Folders as FedMedCLIP describes them: a client each, classes by their words."""
    for site in range(1, sites + 1):
        for i, kind in enumerate(("melanoma", "nevus", "squamous cell carcinoma")):
            folder = root / name / f"C_{site}" / kind
            folder.mkdir(parents=True)
            for number in range(5):
                grey = 40 * i + 5 * site + number
                image = Image.new("RGB", (40, 30), (grey, 90, 200 - grey))
                image.save(folder / f"frame_{number:04}.jpg")


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("recipe", MEDICAL, ids=lambda p: p.stem)
def test_a_medical_recipe_reads_a_folder_a_client(recipe, tmp_path, capsys):
    held_out = recipe.stem != "ich"
    medical_folders(tmp_path, recipe.stem.upper(), 5)
    words = ["--root", str(tmp_path), "--model", "fedclip-tiny"]
    words += ["--pretrained", "fedclip-tiny"]
    assert main(["run", "--config", str(recipe), *words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "75 images" in said
    assert ("held out C_5" if held_out else "clients: 5") in said
    assert f"clients: {4 if held_out else 5}" in said
    assert "no effect" not in said
    shutil.rmtree(tmp_path / recipe.stem.upper() / "C_2" / "nevus")
    assert main(["run", "--config", str(recipe), *words, "--dry-run"]) == 2
    said = capsys.readouterr()
    assert "missing nevus" in said.out + said.err


DOMAINS = ("clip", "info", "paint", "quick", "real", "sketch")


@pytest.fixture
def domainnet(tmp_path):
    """Folders of DomainNet's shape: ten classes that are chosen, and another."""
    for d, domain in enumerate(DOMAINS):
        for c, name in enumerate((*PRESETS["domainnet-10"], "The_Eiffel_Tower")):
            folder = tmp_path / "DomainNet" / domain / name
            folder.mkdir(parents=True)
            for number in range(2 if c < 10 else 1):
                image = Image.new("RGB", (16, 16), (20 * c, 40 * d, 100 * number))
                image.save(folder / f"{domain}_{number:03}_{name}.jpg")
    words = ["--dataset", "domainnet", "--root", str(tmp_path)]
    return [*words, "--model", "fedclip-tiny", "--classes", "domainnet-10"]


@pytest.mark.usefixtures("own_cache")
def test_the_ten_classes_of_domainnet(domainnet, tmp_path, capsys):
    assert main(["run", *domainnet, "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "encoding: 120 images" in said  # not those of the other classes
    assert "held out clipart, infograph, painting, quickdraw, real, sketch" in said
    out = tmp_path / "out"
    words = ["--target", "sketch", "--alg", "gda", "--out", str(out), "--quiet"]
    assert main(["run", *domainnet, *words]) == 0
    found = json.loads((out / "evaluation.json").read_text())
    assert found["classes"] == list(PRESETS["domainnet-10"])
    assert np.sum(found["confusion"]["gda"]) == 20
    summary = json.loads((out / "summary.json").read_text())
    assert tuple(summary["result"]["clients"]) == tuple(KNOWN["domainnet"].domains)[:5]


def test_the_medical_recipes_are_the_authors():
    assert {p.stem for p in MEDICAL} == {"isic2019", "brats", "ich"}
    for recipe in MEDICAL:
        config = load_config(recipe)
        train = config.train
        found = (config.algorithm, train.rounds, train.optimizer, train.weight_decay)
        assert found == ("fedmedclip", 50, "adamw", 0.02)
        assert config.data.pictures == "off"
        assert config.notes == ()


def test_there_are_recipes():
    assert {p.stem for p in RECIPES} == {"pacs", "vlcs", "officehome"}
