from __future__ import annotations

import argparse
import dataclasses
import runpy
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedclip_plugin.algorithms import with_values
from fedclip_plugin.config.inputs import DataConfig, ModelConfig
from fedclip_plugin.config.schema import RunConfig, ServerConfig, TrainConfig
from fedclip_plugin.config.toml import load_toml, to_toml
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.settings.options import Table, add_run_options
from fedclip_plugin.settings.sources import (
    Given,
    configure,
    load_config,
    load_settings,
    read_config,
)


def parse(*argv: str) -> RunConfig:
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    add_run_options(parser)
    return read_config(parser.parse_args(argv))


def test_defaults_are_the_papers():
    t, s = TrainConfig(), ServerConfig()
    assert (t.rounds, t.local_epochs, t.batch_size, t.lr) == (200, 1, 32, 5e-5)
    assert (t.beta1, t.beta2, t.eps, t.weight_decay) == (0.9, 0.98, 1e-6, 0.2)
    assert (s.weighting, s.participation) == ("uniform", 1.0)
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
    assert load_config(path) == with_values(config, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[train]\nrounds = 'many'",
            r"c\.toml: train\.rounds = 'many': expected a whole number >= 1",
        ),
        ("[train]\nroundz = 3", "unknown key 'roundz'"),
        ("[trian]\nrounds = 3", "unknown key 'trian'"),
        ("train = 3", "expected a table"),
        ("[train]\nlr = true", r"train\.lr = True: expected a number"),
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


def test_options_md_is_up_to_date():
    docs = Path(__file__).resolve().parents[2] / "docs"
    made = runpy.run_path(str(docs / "options.py"))["as_markdown"](Table().groups)
    remedy = "python docs/options.py > docs/options.md"
    assert (docs / "options.md").read_text() == made, remedy


def test_a_flat_file_of_before_the_sections_is_read(tmp_path):
    """What `fedclip run` of version 0.1.0 wrote to config.toml."""
    path = tmp_path / "config.toml"
    path.write_text(
        'algorithm = "fedclip"\nseeds = [0]\n[train]\nadapter = "residual"\n'
        'side = "both"\nlogit_scale = 10.0\nrounds = 3\nweighting = "examples"\n'
        'compress = "int8"\nmu = 0.5\nprecision = "bf16"\ndp_noise_multiplier = 0.0\n'
        'error_feedback = "off"\n'
    )
    config = load_config(path)
    params = (config.params.adapter, config.params.side, config.params.logit_scale)
    assert params == ("residual", "both", 10.0)
    assert (config.train.rounds, config.train.precision) == (3, "bf16")
    assert (config.server.weighting, config.wire.compress) == ("examples", "int8")
    assert config.wire.error_feedback == "off"
    path.write_text(path.read_text().replace("fedclip", "fedprox"))
    assert load_config(path).params.mu == 0.5


def test_no_blank_in_a_value_separates_but_where_there_are_several(monkeypatch):
    monkeypatch.setenv("DATA", "/my data")
    environ = {
        "FEDCLIP_ROOT": "$DATA/of mine",
        "FEDCLIP_OUT": "~/my runs",
        "FEDCLIP_TARGET": "'Real World' Art",
    }
    config, out = load_settings(environ=environ)
    assert config.data.root == "/my data/of mine"
    assert out.directory == Path("~/my runs").expanduser()
    assert config.data.targets == ("Real World", "Art")
    with pytest.raises(ConfigError, match="FEDCLIP_PROMPT='a: No closing quotation"):
        load_settings(environ={"FEDCLIP_PROMPT": "'a"})


@pytest.mark.parametrize(
    ("yaml", "word"), [(True, "on"), (False, "off"), ("No", "off")]
)
def test_a_switch_of_yaml_is_what_the_field_says(yaml, word):
    given = {"error-feedback": Given(yaml, "x.yaml: fedclip_error_feedback: ...")}
    assert load_settings(given, environ={})[0].wire.error_feedback == word


def test_a_preset_is_an_option_of_every_source(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('preset = "best"\n[train]\nlr = 1e-3\n')
    train = parse("--config", str(path)).train
    assert (train.lr, train.weight_decay) == (1e-3, 0.0)
    train = load_settings(environ={"FEDCLIP_PRESET": "best"})[0].train
    assert (train.lr, train.weight_decay) == (2e-4, 0.0)
    with pytest.raises(ConfigError, match="--preset best: expected none for --alg lin"):
        parse("--alg", "linear", "--preset", "best")


def test_the_best_of_all_is_gda_and_said():
    config = parse("--preset", "best", "--features", "somewhere", "--seed", "3")
    assert (config.algorithm, config.train.rounds) == ("gda", 1)
    assert any("--preset best is --alg gda" in note for note in config.notes)
    assert (
        parse("--preset", "best", "--alg", "gda").train == parse("--alg", "gda").train
    )


@pytest.mark.parametrize(
    "more",
    [
        ["--alg", "fedclip"],
        ["--rounds", "100"],
        ["--adapter", "residual"],
        ["--aggregation", "median"],
        ["--compress", "int8"],
    ],
)
def test_the_best_of_fedclip_is_as_it_was(more):
    config = parse("--preset", "best", *more)
    assert config.algorithm == "fedclip"
    assert (config.train.lr, config.train.weight_decay) == (2e-4, 0.0)
    assert not any("is --alg gda" in note for note in config.notes)


def test_a_host_has_its_own_algorithm_beside_a_preset():
    config = load_settings(environ={"FEDCLIP_PRESET": "best"})[0]
    assert config.algorithm == "fedclip"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--rounds", "many"], "--rounds many: expected a whole number >= 1"),
        (["--rounds", "1.5"], "--rounds 1.5: expected a whole number >= 1"),
        (["--batch-size", str(2**32)], "expected a whole number >= 2, at most 4,294,"),
        (["--seed", "0", "x"], "--seed 0 x: expected a whole number >= 0"),
        (["--participation", "1.1"], r"--participation 1.1: expected .* in \(0, 1\]"),
        (["--compress", "gzip"], "--compress gzip: expected one of none, fp16"),
        (["--device", "cuda:x"], "--device cuda:x: expected one of auto, cpu, cuda"),
    ],
)
def test_a_wrong_value_is_named_as_it_was_written(argv, message):
    with pytest.raises(ConfigError, match=message):
        parse(*argv)


def test_options_in_python_are_those_of_the_command_line():
    config = configure({"algorithm": "linear", "train_precision": "bf16", "seed": 3})
    assert (config.algorithm, config.train.precision) == ("linear", "bf16")
    assert config.seeds == (3,)
    assert configure({"rounds": None}) == parse()
    with pytest.raises(ConfigError, match="unknown option round; did you mean rounds"):
        configure({"round": 3})
    with pytest.raises(ConfigError, match="rounds=0: expected a whole number >= 1"):
        configure({"rounds": 0})
