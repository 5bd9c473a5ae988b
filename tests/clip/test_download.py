"""Weights that come as hub snapshots, from the hub's cache or over the network."""

from __future__ import annotations

import json
from pathlib import Path

import open_clip
import pytest
import torch

from fedclip_plugin.clip import download as hub
from fedclip_plugin.clip.download import weights_file
from fedclip_plugin.clip.encoder import EncoderSpec, FrozenClip
from fedclip_plugin.clip.resolve import resolve
from fedclip_plugin.errors import WeightsError
from tests.clip.makers import tiny_clip

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_hub_snapshot_tells_its_activation_and_normalisation(tmp_path):
    folder = tmp_path / "vit_base_patch32_clip_224.openai"  # as the hub names it
    folder.mkdir()
    file = folder / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(WeightsError, match="use --model ViT-B-32-quickgelu"):
        resolve("ViT-B-32", str(file))
    folder = tmp_path / "anywhere"
    folder.mkdir()
    (folder / "w.safetensors").write_bytes(b"")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": {}, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5]}})
    )
    source = resolve("ViT-B-32", str(folder / "w.safetensors"))
    assert source.preprocess["mean"] == [0.5, 0.5, 0.5]
    with pytest.raises(WeightsError, match=r"use --model ViT-B-32$"):
        resolve("ViT-B-32-quickgelu", str(folder / "w.safetensors"))


def test_local_dir_models_load(tmp_path):
    whole = tiny_clip(tmp_path, "tiny-dir")
    folder = tmp_path / "snapshot"
    folder.mkdir()
    (folder / "open_clip_model.safetensors").write_bytes(whole.read_bytes())
    config = {"model_cfg": json.loads((tmp_path / "tiny-dir.json").read_text())}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    spec = EncoderSpec(f"local-dir:{folder}", "openai", device="cpu")
    clip = FrozenClip.load(spec)
    same = FrozenClip.load(
        EncoderSpec("tiny-dir", str(whole), str(tmp_path), device="cpu")
    )
    captions = ["a picture of a dog"]
    assert torch.equal(clip.encode_text(captions), same.encode_text(captions))


def _fill_hub_cache(root: Path, repository: str, name: str, data: bytes) -> None:
    base = root / f"models--{repository.replace('/', '--')}"
    (base / "refs").mkdir(parents=True)
    (base / "refs" / "main").write_text("0" * 40)
    snapshot = base / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / name).write_bytes(data)


def test_cached_hub_weights_need_no_network(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    source = resolve("ViT-B/32", "openai")
    with pytest.raises(WeightsError) as caught:
        weights_file(source)
    assert "--pretrained FILE" in str(caught.value)
    assert "HF_HUB_OFFLINE" in str(caught.value)
    assert "\n" not in str(caught.value)
    repository = "timm/vit_base_patch32_clip_224.openai"
    _fill_hub_cache(tmp_path / "hub", repository, "open_clip_model.safetensors", b"w")
    assert weights_file(source).read_bytes() == b"w"


def test_a_download_goes_through_open_clip(tmp_path, monkeypatch):
    calls = []

    def fake(repo_id, filename, local_files_only=False, **_):
        calls.append((repo_id, filename, local_files_only))
        if local_files_only:
            raise FileNotFoundError(filename)
        return str(tmp_path / filename)

    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", fake)
    monkeypatch.setattr(hub, "reachable", lambda url: True)
    file = weights_file(resolve("ViT-B-32", "laion2b_s34b_b79k"))
    assert file.name == "open_clip_model.safetensors"
    assert calls[-1][0] == "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"
    assert calls[-1][2] is False


def test_an_unreachable_hub_is_told_with_the_remedy(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for variable in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(variable, raising=False)
        monkeypatch.delenv(variable.upper(), raising=False)
    monkeypatch.setattr(hub, "HUB", "http://127.0.0.1:9")  # a closed port
    with pytest.raises(WeightsError, match="--pretrained FILE"):
        weights_file(resolve("ViT-B-32", "laion2b_s34b_b79k"))


def test_a_user_without_a_home_downloads_to_our_cache(monkeypatch, tmp_path):
    url = "https://example.org/ViT.pt"
    monkeypatch.setenv("FEDCLIP_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", "")
    assert hub._clip_cache(url) != Path("/.cache/clip/ViT.pt")
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 7)  # nobody's
    assert hub._clip_cache(url) == tmp_path / "clip" / "ViT.pt"
