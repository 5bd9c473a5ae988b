"""A value means the same in every source: flags, TOML, variables, YAML, run config."""

from __future__ import annotations

import codecs
import datetime
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedclip_plugin.cli import main
from fedclip_plugin.config.inputs import ModelConfig
from fedclip_plugin.config.paths import PathError, as_file, as_path, read_text
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.config.toml import to_toml
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.registry.fedml.settings import read_settings
from fedclip_plugin.registry.flower.options import server_settings
from fedclip_plugin.settings.options import Table
from fedclip_plugin.settings.sources import (
    Output,
    config_of,
    configure,
    load_config,
    load_settings,
    read_config,
    read_run,
)
from tests.federation.toy import write_toy


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("DATA", str(tmp_path / "data"))
    monkeypatch.delenv("NOT_SET", raising=False)
    return tmp_path / "home"


def by_toml(name: str, value: Any) -> tuple[RunConfig, Output]:
    table = Table()
    (place,) = (
        (section, o.field)
        for section, options in table.groups.items()
        for o in options
        if o.name == name and section in ("", "files", "model", "data", "wire")
    )
    section, field = place
    plain = section in ("", "files")
    text = {field: value} if plain else {section: {field: value}}
    import tomli_w

    Path("fedclip.toml").write_text(tomli_w.dumps(text))
    try:
        return load_settings(environ={})
    finally:
        Path("fedclip.toml").unlink()


def by_variable(name: str, value: Any) -> tuple[RunConfig, Output]:
    variable = "FEDCLIP_" + name.replace("-", "_").upper()
    return load_settings(environ={variable: str(value)})


def by_yaml(name: str, value: Any) -> tuple[RunConfig, Output]:
    key = "fedclip_" + name.replace("-", "_")
    return read_settings(SimpleNamespace(**{key: value}))


def by_run_config(name: str, value: Any) -> tuple[RunConfig, Output]:
    return server_settings({name: value})[:2]


SOURCES = [by_toml, by_variable, by_yaml, by_run_config]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("prompt", "a photo of a {}", ("a photo of a {}",)),
        ("prompt", "['a {}', 'the {}']", ("a {}", "the {}")),
        ("prompt", "'a {}' 'the {}'", ("a {}", "the {}")),
        ("target", "Real World", ("Real World",)),
        ("target", "[0]", ("0",)),
        ("error-feedback", "false", "off"),
        ("root", "~/pacs", "home/pacs"),
        ("root", "$DATA/pacs", "data/pacs"),
        ("root", "${DATA}/../x", "x"),
        ("features", "f/../g", "g"),
        ("model-config", "~", "home"),
        ("pretrained", "openai", "openai"),
        ("pretrained", "~/w.pt", "home/w.pt"),
        ("model", "local-dir:~/clip", "local-dir:home/clip"),
        ("model", "ViT-B/32", "ViT-B/32"),
        ("out", "~/runs/x", "home/runs/x"),
    ],
)
def test_a_text_is_one_value_and_a_path_is_absolute(
    tmp_path: Path, source: Any, name: str, value: str, found: Any
) -> None:
    config, out = source(name, value)
    got = {
        "prompt": config.data.prompts,
        "target": config.data.targets,
        "error-feedback": config.wire.error_feedback,
        "root": config.data.root,
        "features": config.data.features,
        "model-config": config.model.config_dir,
        "pretrained": config.model.pretrained,
        "model": config.model.name,
        "out": str(out.directory),
    }[name]
    if isinstance(found, str) and name not in ("error-feedback",):
        got = str(got).replace(f"{tmp_path}/", "")
    assert got == found


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("$NOT_SET/x", r"the variable \$NOT_SET is not set"),
        ("~no-such-user/x", "~no-such-user has no home directory here"),
        (" ", "is not a path"),
    ],
)
def test_a_path_that_names_no_place(source: Any, value: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        source("root", value)
    assert "root" in str(caught.value).lower()


def test_numbers_in_one_text_are_several() -> None:
    for text in ("0 1 2", "0, 1, 2", "[0, 1, 2]"):
        assert load_settings(environ={"FEDCLIP_SEED": text})[0].seeds == (0, 1, 2)
        assert config_of({"seeds": text}, "c.toml").seeds == (0, 1, 2)


def test_relative_paths_begin_in_the_working_directory_whatever_file_says_them(
    tmp_path: Path,
) -> None:
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "c.toml"
    file.write_text('[data]\nroot = "images"\n')
    assert load_config(file).data.root == str(tmp_path / "images")


def test_a_link_stays_where_it_ends_a_path(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0a1b").touch()
    (tmp_path / "w.safetensors").symlink_to("blobs/0a1b")
    (tmp_path / "deep").symlink_to("blobs")
    assert as_path("w.safetensors") == tmp_path / "w.safetensors"
    assert as_path("deep/../x") == tmp_path / "x"
    assert as_path(".") == tmp_path
    assert as_path("deep/.") == tmp_path / "blobs"


@pytest.mark.parametrize("text", [".", "..", "/", "new/", "blobs"])
def test_no_folder_is_taken_for_a_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "blobs").mkdir()
    with pytest.raises(PathError, match="is a folder; expected"):
        as_file(text)


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (b"", "utf-8"),
    ],
)
def test_files_of_editors_and_spreadsheets_are_read(
    tmp_path: Path, mark: bytes, encoding: str
) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(mark + '[data]\ntargets = ["スケッチ"]\n'.encode(encoding))
    assert load_config(file).data.targets == ("スケッチ",)
    assert not read_text(file).startswith("\ufeff")


@pytest.mark.parametrize(
    "values",
    [
        {"model": "fedclip-tiny"},
        {"model": ["fedclip-tiny"]},
        {"preset": ["best"]},
        {"preset": {}},
        {"algorithm": ["fedclip"]},
        {"seeds": {}},
        {"seeds": [[0]]},
        {"train": 3},
        {"data": {"root": [1]}},
        {"data": {"targets": [["a"]]}},
        {"data": {"clients": "x"}},
        {"model": {"pretrained": {}}},
        {"train": {"lr": datetime.date(2020, 1, 1)}},
        {"fedclip": {"side": 1}},
        {"nothing": 1},
    ],
)
def test_types_are_checked_before_anything_is_merged(values: Mapping[str, Any]) -> None:
    from fedclip_plugin.settings.sources import Given, build, of_toml

    table = Table()

    def merge() -> None:
        source = of_toml(values, "c.toml", table)
        build({**source, "precision": Given("fp32", "--precision fp32")}, table)

    with pytest.raises(ConfigError) as caught:
        merge()
    assert "\n" not in str(caught.value)


# --------------------------------------------------------------- options without effect


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"alpha": 0.1}, "alpha=0.1 has no effect: it needs --partition dirichlet"),
        ({"topk_share": 0.1}, "--compress topk"),
        ({"error_feedback": "off"}, "--compress"),
        ({"byzantine": 0.1}, "--aggregation trimmed-mean, krum or multi-krum"),
        ({"weighting": "examples", "aggregation": "median"}, "weighs the clients"),
        ({"beta1": 0.5, "optimizer": "sgd"}, "--optimizer adam or adamw"),
        ({"dp_delta": 0.1}, "--dp-noise-multiplier"),
        ({"train_precision": "bf16", "side": "both"}, "as published"),
        ({"optimizer_state": "keep", "alg": "linear"}, "an --alg with an adapter"),
        ({"lr": 0.1, "alg": "zeroshot"}, "trains step by step"),
        ({"compress": "int8", "alg": "local"}, "sends something"),
        ({"gda_epsilon": 8.0, "alg": "gda", "evaluate": "f"}, "trains nothing"),
        ({"mu": 0.5}, "mu=0.5 has no effect with --alg fedclip"),
        ({"features": "f", "prompt": "a {}"}, "--features has them encoded"),
        ({"features": "f", "model": "ViT-B/16"}, "--features has them encoded"),
    ],
)
def test_what_changes_nothing_is_noted(options: dict[str, Any], told: str) -> None:
    (note,) = configure(options).notes
    assert told in note


@pytest.mark.parametrize("name", ["fedclip", "tofa", "fedpft", "local"])
def test_privacy_that_an_algorithm_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--alg {name}, which hides no image"):
        configure({"alg": name, "gda_epsilon": 8.0})
    assert configure({"alg": "gda", "gda_epsilon": 8.0}).private


def test_a_variable_of_privacy_stops_no_command_that_begins_no_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEDCLIP_GDA_EPSILON", "8")  # for Flower, whose file has alg
    (note,) = read_config(SimpleNamespace()).notes
    assert note == "FEDCLIP_GDA_EPSILON=8 has no effect with --alg fedclip"
    with pytest.raises(ConfigError, match="take --alg gda"):
        read_run(SimpleNamespace())


def test_what_counts_or_is_the_default_is_not_noted() -> None:
    assert configure({"alpha": 0.5, "weighting": "uniform"}).notes == ()
    more = {"partition": "dirichlet", "clients": 3, "alpha": 0.1}
    assert configure(more).notes == ()
    config = configure({"mu": 0.5})
    assert config == configure({})  # notes are no part of what a run is
    assert "notes" not in to_toml(config)
    assert ModelConfig() == config.model


def test_what_a_host_overrules_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCLIP_ROUNDS", "9")
    monkeypatch.setenv("FEDCLIP_PATIENCE", "3")
    config, _ = read_settings(SimpleNamespace(comm_round=2))
    assert config.train.rounds == 2
    first, second = config.notes
    assert first.startswith(
        "FEDCLIP_ROUNDS=9 has no effect here: fedml_config.yaml: co"
    )
    assert second == "patience 3 has no effect in a host"
    note = server_settings({"personalize": "finetune"})[0].notes[-1]
    assert "personalize = 'finetune' has no effect" in note
    held = {"personalize": "finetune", "target": "photo"}
    assert all("personalize" not in n for n in server_settings(held)[0].notes)


def test_variables_are_read_by_the_command_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = write_toy(tmp_path / "toy")
    (tmp_path / "c.toml").write_text("[train]\nrounds = 3\nlr = 0.5\n")
    monkeypatch.setenv("FEDCLIP_CONFIG", "c.toml")
    monkeypatch.setenv("FEDCLIP_ROUNDS", "1")
    monkeypatch.setenv("FEDCLIP_OUT", "~/out")
    argv = ["run", "--features", str(features), "--target", "photo", "--quiet"]
    assert main(argv) == 0
    train = load_config(tmp_path / "home" / "out" / "config.toml").train
    assert (train.rounds, train.lr) == (1, 0.5)


def test_the_cache_is_where_a_path_of_the_users_leads(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedclip_plugin.storage.hashes import cache_dir

    for text, found in (("~/c", home / "c"), ("c", tmp_path / "c"), ("", None)):
        monkeypatch.setenv("FEDCLIP_CACHE", text)
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        assert cache_dir() == (found or home / ".cache" / "fedclip")
    monkeypatch.setenv("FEDCLIP_CACHE", "$NOT_SET/c")
    with pytest.raises(ConfigError, match=r"FEDCLIP_CACHE: \$NOT_SET/c: the variable"):
        cache_dir()


def test_a_model_config_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    from fedclip_plugin.clip.resolve import local_configs

    text = '{"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}}'
    (tmp_path / "mine.json").write_text(text, encoding="utf-8-sig")
    assert "mine" in local_configs(str(tmp_path))
