from __future__ import annotations

import argparse
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_plugin.config.schema import DataConfig, ModelConfig, RunConfig, TrainConfig
from fedclip_plugin.config.toml import from_dict, load_toml, to_toml
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.settings.options import (
    add_data_options,
    add_model_options,
    add_run_options,
)
from fedclip_plugin.settings.sources import read_config


def parse(*argv: str) -> RunConfig:
    parser = argparse.ArgumentParser()
    for add in (add_run_options, add_model_options, add_data_options):
        add(parser)
    return read_config(parser.parse_args(argv))


def test_defaults_are_the_papers():
    t = TrainConfig()
    assert (t.rounds, t.local_epochs, t.batch_size, t.lr) == (200, 1, 32, 5e-5)
    assert (t.beta1, t.beta2, t.eps, t.weight_decay) == (0.9, 0.98, 1e-6, 0.2)
    assert (t.weighting, t.participation) == ("uniform", 1.0)
    assert t.precision == "fp32"


@given(
    seeds=st.lists(st.integers(0, 2**31), min_size=1, max_size=4),
    lr=st.floats(0, 1, allow_subnormal=False),
    targets=st.lists(st.text("abc _", min_size=1), max_size=3),
    shots=st.none() | st.integers(1, 99),
)
def test_toml_round_trip(tmp_path_factory, seeds, lr, targets, shots):
    config = RunConfig(
        seeds=tuple(seeds),
        data=DataConfig(targets=tuple(targets), shots=shots),
        train=TrainConfig(lr=lr),
    )
    path = tmp_path_factory.mktemp("toml") / "c.toml"
    path.write_text(to_toml(config))
    assert from_dict(RunConfig, load_toml(path)) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nrounds = 'many'", r"train\.rounds: expected int"),
        ("[train]\nroundz = 3", "unknown key 'roundz'"),
        ("[trian]\nrounds = 3", "unknown key 'trian'"),
        ("train = 3", "expected a table"),
        ("[train]\nlr = true", r"train\.lr: expected float"),
        ("[train]\nlr = -1", r"train\.lr = -1"),
        ("[train]\nlr = nan", r"train\.lr = nan"),
        ("[train]\nbatch_size = 1", "batch_size"),
        ("[train]\nparticipation = 0", "participation"),
        ("[train]\nprecision = 'fp16'", r"train\.precision = 'fp16': .*fp32, bf16"),
        ("[data]\nprompts = ['no place']", "one of paper, ensemble"),
        ("[data]\npartition = 'iid'", "--clients"),
        ("[data]\nclients = 4", "--partition"),
        ("[model]\nprecision = 'fp8'", "fp32, bf16"),
        ("[model]\ndevice = 'tpu'", "cuda:N"),
        ("seeds = []", "--seed"),
        ("seeds = [-1]", "seed"),
    ],
)
def test_bad_toml_is_told_in_one_line(tmp_path, text, message):
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        parse("--config", str(path))
    assert "\n" not in str(error.value)


def test_malformed_toml_names_file_and_line(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[train\n")
    with pytest.raises(ConfigError, match=r"c\.toml.*line 1"):
        load_toml(path)
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        load_toml(tmp_path / "nowhere.toml")


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[train]\nrounds = 7\nlr = 0.5\n")
    config = parse("--config", str(path), "--lr", "0.25")
    assert (config.train.rounds, config.train.lr) == (7, 0.25)
    assert config.train.batch_size == 32


def test_authors_flag_names_are_accepted(tmp_path):
    config = parse(
        "--dataset", "pacs", "--iters", "300", "--wk_iters", "2", "--batch", "16",
        "--test_envs", "0", "2", "--root_dir", str(tmp_path), "--net", "ViT-B/16",
    )  # fmt: skip
    assert config.train.rounds == 300
    assert (config.train.local_epochs, config.train.batch_size) == (2, 16)
    assert config.data.targets == ("0", "2")
    assert config.data.root == str(tmp_path)
    assert config.model_name == "ViT-B/16"


def test_default_model_depends_on_the_data():
    assert (parse().model_name, parse().pretrained) == ("fedclip-tiny", "fedclip-tiny")
    pacs = parse("--dataset", "pacs")
    assert (pacs.model_name, pacs.pretrained) == ("ViT-B/32", "openai")


def test_the_precisions_of_encoding_and_of_training_are_apart():
    config = parse("--precision", "fp32", "--train-precision", "bf16")
    assert (config.model.precision, config.train.precision) == ("fp32", "bf16")


def test_features_directory_names_the_data_set(tmp_path):
    config = parse("--features", str(tmp_path / "my-features"))
    assert config.data.dataset == "my-features"


def test_relative_paths_are_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w.pt").write_text("")
    config = parse("--root", "data", "--pretrained", "w.pt", "--model-config", "m")
    assert config.data.root == str(tmp_path / "data")
    assert config.model.pretrained == str(tmp_path / "w.pt")
    assert config.model.config_dir == str(tmp_path / "m")
    assert parse("--pretrained", "openai").model.pretrained == "openai"


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig().name = "x"  # type: ignore[misc]
