"""Checkpoints as people save them: any name, any wrapper, any prefix."""

from __future__ import annotations

import gzip
import json
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import load_file, save_file

from fedclip_plugin.clip.checkpoint import OPENAI_INTEGERS, kind_of, read_checkpoint
from fedclip_plugin.clip.download import weights_file
from fedclip_plugin.clip.load import build_model
from fedclip_plugin.clip.resolve import resolve
from fedclip_plugin.errors import WeightsError
from tests.clip.makers import VIT, jit_archive, tiny_clip, write_config

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def whole(tmp_path):
    return tiny_clip(tmp_path, "tiny-saved")


def _load(file: Path, folder: Path, name: str = "tiny-saved") -> torch.nn.Module:
    source = resolve(name, str(file), str(folder))
    return build_model(source, weights_file(source))


def _same(model: torch.nn.Module, whole: Path) -> bool:
    state = load_file(whole)
    return all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_the_first_bytes_tell_not_the_suffix(tmp_path, whole):
    state = load_file(whole)
    as_bin, as_safetensors = tmp_path / "a.bin", tmp_path / "a.safetensors"
    as_bin.write_bytes(whole.read_bytes())
    torch.save(state, as_safetensors)
    legacy = tmp_path / "old.pt"
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    archive = jit_archive(state, tmp_path / "jit.bin")
    np.savez(tmp_path / "big.pt.npz", a=np.zeros(1))
    assert kind_of(as_bin) == "safetensors"
    assert kind_of(as_safetensors) == kind_of(legacy) == "torch"
    assert kind_of(archive) == "torchscript"
    assert kind_of(tmp_path / "big.pt.npz") == "big_vision"
    for file in (as_bin, as_safetensors, legacy):
        assert _same(_load(file, tmp_path), whole)


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "model.", "_orig_mod.", "clip.", "module.model._orig_mod.clip."],
)
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model", "model_state_dict"])
def test_prefixes_and_wrappers_come_off(tmp_path, whole, prefix, wrapper):
    state = {prefix + key: value for key, value in load_file(whole).items()}
    moments = {"state": {0: {"exp_avg": torch.ones(2)}}}
    file = tmp_path / "mine.pt"
    torch.save({wrapper: state, "optimizer": moments} if wrapper else state, file)
    assert _same(_load(file, tmp_path), whole)


def test_of_several_models_the_plain_one_is_used_and_told(tmp_path, whole):
    state = load_file(whole)
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    file = tmp_path / "two.pt"
    torch.save({"model_ema": other, "model": state}, file)
    source = resolve("tiny-saved", str(file), str(tmp_path))
    assert _same(build_model(source, file), whole)
    assert "model is used, not model_ema" in source.notes[0]
    both = {f"{who}.{k}": v for who in ("student", "teacher") for k, v in state.items()}
    torch.save(both, file)
    with pytest.raises(WeightsError, match=r"several models \(student"):
        read_checkpoint(file)


def test_positions_of_another_size_are_refused_under_a_prefix(tmp_path, whole):
    file = tmp_path / "module.safetensors"
    save_file({f"module.{k}": v for k, v in load_file(whole).items()}, file)
    write_config(tmp_path, "tiny-saved", {**VIT, "image_size": 64})
    with pytest.raises(WeightsError, match="use the model of the same image size"):
        _load(file, tmp_path)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_openais_state_dict_with_its_integers(tmp_path, prefix):
    whole = tiny_clip(tmp_path, "tiny-ints", quick_gelu=True)
    state = load_file(whole)
    file = tmp_path / "remote.pt"
    integers = {key: torch.tensor(32) for key in OPENAI_INTEGERS}
    torch.save({prefix + k: v for k, v in {**state, **integers}.items()}, file)
    assert _same(_load(file, tmp_path, "tiny-ints"), whole)
    write_config(tmp_path, "tiny-ints", VIT)
    with pytest.raises(WeightsError, match='set "quick_gelu": true'):
        resolve("tiny-ints", str(file), str(tmp_path))
    assert resolve("ViT-B/32", str(file)).activation == "QuickGELU"


def _transformers(state):
    return {f"vision_model.{key}": value for key, value in state.items()}


def _lora(state):
    return {**state, "visual.lora_A.weight": torch.zeros(2)}


@pytest.mark.parametrize(
    ("change", "words"),
    [(_transformers, "names of transformers"), (_lora, "merge_and_unload")],
)
def test_names_of_other_libraries_are_told(tmp_path, whole, change, words):
    file = tmp_path / "foreign.safetensors"
    save_file({**change(load_file(whole)), "logit_scale": torch.tensor(1.0)}, file)
    with pytest.raises(WeightsError, match=words):
        _load(file, tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"weight_map": {}}', "JSON text"),
        (gzip.compress(b"weights", mtime=0), "compressed by gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(64), "HDF5"),
        (b"GGUF" + bytes(64), "GGUF"),
        (b"PK\x03\x04" + bytes(64), "download it again"),
        (b"nonsense", "not a checkpoint"),
    ],
)
def test_what_is_no_checkpoint_is_named(tmp_path, whole, data, words):
    file = tmp_path / "w.safetensors"
    file.write_bytes(data)
    with pytest.raises(WeightsError, match=words) as caught:
        _load(file, tmp_path)
    assert str(file) in str(caught.value)


def test_big_vision_needs_a_siglip(tmp_path, whole):
    np.savez(tmp_path / "siglip.npz", **{"params/b": np.zeros(1)})
    with pytest.raises(WeightsError, match="--model ViT-B-16-SigLIP"):
        _load(tmp_path / "siglip.npz", tmp_path)


@pytest.mark.parametrize(
    "name", ["model.safetensors", "pytorch_model.bin", "model.pth", "mine.bin"]
)
def test_local_dir_takes_the_names_that_open_clip_takes(tmp_path, whole, name):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    config = {"model_cfg": json.loads((tmp_path / "tiny-saved.json").read_text())}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    state = load_file(whole)
    (save_file if name.endswith("safetensors") else torch.save)(state, folder / name)
    source = resolve(f"local-dir:{folder}", "auto")
    assert source.tag == name
    assert _same(build_model(source, weights_file(source)), whole)


def test_models_that_threads_build_at_once_leave_the_log_on(tmp_path, monkeypatch):
    """Sites of a simulation, or devices: each turns the whole log off for a while."""
    whole = tiny_clip(tmp_path, "tiny-threads")
    source = resolve("tiny-threads", str(whole), str(tmp_path))
    file, make, building = weights_file(source), open_clip.create_model, []

    def slow(*args, **options):
        building.append(logging.root.manager.disable)
        time.sleep(0.02 * len(building))  # the first one ends first
        return make(*args, **options)

    monkeypatch.setattr(open_clip, "create_model", slow)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: build_model(source, file), range(3)))
    assert building == [logging.WARNING] * 3
    assert logging.root.manager.disable == 0
