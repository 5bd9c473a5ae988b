"""An algorithm of others: its options appear everywhere, without a line elsewhere."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from fedclip_plugin.cli import main
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.registry.fedml.settings import read_settings
from fedclip_plugin.registry.flower.options import server_settings
from fedclip_plugin.settings.options import Table
from fedclip_plugin.settings.sources import load_config, load_settings
from tests.algorithms.installed import install, install_warm_start, write_plugin
from tests.federation.toy import write_toy

WANTED = (0.5, True, ("0",), "image")


@pytest.fixture(autouse=True)
def warm_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    install_warm_start(monkeypatch)
    monkeypatch.chdir(tmp_path)


def found(params: object) -> tuple[object, ...]:
    return tuple(getattr(params, n) for n in ("scale", "zero_bias", "layers", "side"))


def test_help_shows_its_options(capsys):
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--warm-start-scale F of the first adapter's weights" in text
    assert "--warm-start-zero-bias" in text


def test_toml_has_a_section_of_its_name(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(
        'algorithm = "warm-start"\n[train]\nrounds = 3\n'
        '[warm-start]\nscale = 0.5\nzero_bias = true\nlayers = ["0"]\n'
    )
    assert found(load_config(file).params) == WANTED
    file.write_text("[warm-start]\nscale = 11\n")
    with pytest.raises(ConfigError, match=r"c\.toml: warm-start\.scale = 11: expected"):
        load_config(file)
    file.write_text("[warm-start]\nscle = 1\n")
    with pytest.raises(
        ConfigError, match=r"unknown key 'scle' in \[warm-start\].*scale"
    ):
        load_config(file)


def test_variables_are_named_after_it():
    environ = {
        "FEDCLIP_ALG": "warm-start",
        "FEDCLIP_WARM_START_SCALE": "0.5",
        "FEDCLIP_WARM_START_ZERO_BIAS": "on",
        "FEDCLIP_WARM_START_LAYERS": "0",
    }
    assert found(load_settings(environ=environ)[0].params) == WANTED
    with pytest.raises(ConfigError, match="did you mean FEDCLIP_WARM_START_SCALE"):
        load_settings(environ={"FEDCLIP_WARM_START_SCALES": "1"})


def test_fedmls_yaml_has_its_keys():
    args = SimpleNamespace(
        dataset="digits",
        fedclip_alg="warm-start",
        fedclip_warm_start_scale="5e-1",  # YAML reads it as a text
        fedclip_warm_start_zero_bias=True,
        fedclip_warm_start_layers=[0],
    )
    assert found(read_settings(args)[0].params) == WANTED
    args.fedclip_warm_start_scale = 0
    with pytest.raises(ConfigError, match="fedclip_warm_start_scale: 0: expected"):
        read_settings(args)


def test_flowers_run_config_has_its_keys():
    run_config = {
        "alg": "warm-start",
        "warm-start-scale": 0.5,
        "warm-start-zero-bias": True,
        "warm-start-layers": "0",
    }
    assert found(server_settings(run_config)[0].params) == WANTED


def test_a_run_has_what_was_said(tmp_path):
    features, out = write_toy(tmp_path / "features"), tmp_path / "out"
    argv = f"run --features {features} --out {out} --rounds 2 --target 0".split()
    own = ["--alg", "warm-start", "--warm-start-scale", "0.5", "--warm-start-zero-bias"]
    assert main([*argv, *own, "--warm-start-layers", "0"]) == 0
    assert found(load_config(out / "config.toml").params) == WANTED
    told = json.loads((out / "summary.json").read_text())["variant"]
    assert told == "scale 0.5, zero-bias True, layers ('0',)"


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("late", "1 / 0", "ZeroDivisionError"),
        ("thawed", "class Mine(FedClip):\n    class Params: pass", "frozen dataclass"),
        (
            "batch",
            "@dataclass(frozen=True)\nclass Params:\n    size: int = 1\n"
            "class Mine(FedClip):\n    Params = Params",
            "its option --batch-size is taken",
        ),
        (
            "nodefault",
            "@dataclass(frozen=True)\nclass Params:\n    size: int\n"
            "class Mine(FedClip):\n    Params = Params",
            "Params.size needs a default",
        ),
        (
            "train",
            "class Mine(FedClip):\n    pass",
            "its section is taken",
        ),
    ],
)
def test_a_broken_plugin_is_one_line_of_the_help(
    tmp_path, monkeypatch, capsys, name, code, told
):
    head = (
        "from dataclasses import dataclass\n"
        "from fedclip_plugin.algorithms import FedClip\n"
    )
    folder = tmp_path / "site"
    folder.mkdir()
    module = f"{name}_plugin"
    write_plugin(folder, module, head + code, f"{name} = {module}:Mine")
    install(monkeypatch, folder, module)
    with pytest.raises(SystemExit) as stop:
        main(["run", "--help"])
    assert stop.value.code == 0
    (line,) = (
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("not available: ")
    )
    assert name in line
    assert told in line
    assert set(Table().broken) == {name}
    load_settings(environ={})  # the others work
    with pytest.raises(ConfigError, match=told.replace("(", ".")):
        load_settings(environ={"FEDCLIP_ALG": name})
