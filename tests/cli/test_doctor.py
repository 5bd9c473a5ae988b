"""`fedclip doctor`: model, weights, data and features."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fedclip_plugin.cli.doctor import (
    Check,
    diagnose,
    inputs,
)
from fedclip_plugin.clip import download as hub
from fedclip_plugin.clip import encoder
from fedclip_plugin.config.inputs import DataConfig, ModelConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.features.feature_set import FeatureSet, save_features
from tests.clip.makers import tiny_clip


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, and two domains of two classes with four images each."""
    root = tmp_path_factory.mktemp("doctor")
    tiny_clip(root, "tiny-doctor")
    rng = np.random.default_rng(0)
    for domain in ("photo", "sketch"):
        for name in ("cat", "dog"):
            (root / "images" / domain / name).mkdir(parents=True)
            for i in range(4):
                image = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
                file = root / "images" / domain / name / f"{i}.png"
                Image.fromarray(image).save(file)
    return root


def _config(folder: Path, file: str = "tiny-doctor.safetensors", **model) -> RunConfig:
    return RunConfig(
        model=ModelConfig(
            "tiny-doctor",
            str(folder / file),
            str(folder),
            **{"precision": "fp32", "device": "cpu", **model},
        ),
        data=DataConfig("mine", str(folder / "images")),
    )


def _by_name(config: RunConfig) -> dict[str, Check]:
    checks = diagnose(config)
    assert all(check.status in ("ok", "warn", "fail") for check in checks)
    assert all("\n" not in check.detail + check.remedy for check in checks)
    assert all(check.remedy for check in checks if check.status == "warn")
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def test_a_sound_setup(folder):
    found = _by_name(_config(folder))
    failed = [check for check in found.values() if check.status == "fail"]
    assert not failed
    assert torch.__version__.split("+")[0] in found["versions"].detail
    assert "2 classes; images: photo 8, sketch 8" in found["data"].detail
    assert "32x32 pixels, GELU" in found["model"].detail
    assert "logit scale 100.00" in found["weights"].detail
    assert found["encoding"] == Check(
        "encoding", "ok", "fp32 on 8 images: cosine with fp32 1.00000"
    )


def test_nothing_is_printed_or_fetched(folder, capfd, monkeypatch):
    monkeypatch.setattr(hub, "reachable", lambda url: pytest.fail("asked the network"))
    diagnose(_config(folder))
    assert capfd.readouterr().out == ""


def test_every_fault_is_found_at_once(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("FEDCLIP_CACHE", str(folder / "tiny-doctor.json" / "below"))
    config = RunConfig(
        model=ModelConfig("ViT-B-31", device="cuda"),
        data=DataConfig("mine", str(folder / "gone")),
    )
    found = _by_name(config)
    for name in ("device", "data", "model", "cache"):
        assert found[name].status == "fail", name
        assert found[name].remedy, name
    assert "FEDCLIP_CACHE" in found["cache"].remedy
    assert "ViT-B-32" in found["model"].remedy


def test_a_quickgelu_mismatch_fails(folder):
    config = RunConfig(
        model=ModelConfig("ViT-B-32-quickgelu", "laion2b_s34b_b79k", device="cpu")
    )
    check = _by_name(config)["model"]
    assert (check.status, check.remedy) == ("fail", "use --model ViT-B-32")


@pytest.mark.parametrize(("online", "status"), [(True, "warn"), (False, "fail")])
def test_weights_that_are_not_here_yet(folder, monkeypatch, tmp_path, online, status):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(inputs, "reachable", lambda url: online)
    config = RunConfig(model=ModelConfig("ViT-B/32", device="cpu"))
    found = _by_name(config)
    assert found["model"].detail.startswith("ViT-B-32-quickgelu with openai")
    assert found["weights"].status == status
    assert ("--pretrained FILE" in found["weights"].remedy) is not online


def _damaged(folder: Path, name: str, change) -> str:
    state = load_file(folder / "tiny-doctor.safetensors")
    change(state)
    save_file(state, folder / name)
    return name


def test_an_implausible_logit_scale_warns(folder):
    file = _damaged(
        folder, "raw.safetensors", lambda s: s["logit_scale"].fill_(np.log(1 / 0.07))
    )
    assert _by_name(_config(folder, file))["weights"].status == "warn"


def test_nan_in_fp16_is_found_before_the_run(folder):
    def overflow(state):
        state["visual.ln_post.bias"].fill_(100)
        state["visual.proj"].fill_(6e4)

    file = _damaged(folder, "hot.safetensors", overflow)
    check = _by_name(_config(folder, file, precision="fp16"))["encoding"]
    assert check.status == "fail"
    assert "--precision bf16" in check.detail + check.remedy
    assert _by_name(_config(folder, file))["encoding"].status == "ok"


def test_a_rounded_encoder_is_compared_with_fp32(folder, monkeypatch):
    check = _by_name(_config(folder, precision="bf16"))["encoding"]
    assert check.status == "ok"
    assert check.detail.startswith("bf16 on 8 images: cosine with fp32 0.99")
    monkeypatch.setattr(encoder, "MIN_PARAMETERS", 0)
    monkeypatch.setattr(encoder, "low_precision", lambda device: "bf16")
    check = _by_name(_config(folder, precision="auto"))["encoding"]
    assert check.detail.startswith("bf16 on 8 images")


def test_a_truncated_checkpoint_is_named(folder):
    whole = (folder / "tiny-doctor.safetensors").read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[:-9])
    check = _by_name(_config(folder, "cut.safetensors"))["model"]
    assert check.status == "fail"
    assert "cut.safetensors" in check.detail


def test_a_missing_class_warns(folder, tmp_path):
    for name in ("a/cat", "a/dog", "b/cat", "b/dog"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("a/cat", "a/dog", "b/cat"):
        Image.new("RGB", (8, 8), "white").save(tmp_path / name / "1.png")
    config = RunConfig(data=DataConfig("mine", str(tmp_path)))
    check = _by_name(config)["data"]
    assert check.status in ("warn", "fail")
    assert "dog" in check.detail


def _features(directory: Path, rows: int) -> None:
    names = ("photo", "sketch")
    features = FeatureSet(
        model="m",
        pretrained="p",
        prompt="a {}",
        classes=("cat", "dog"),
        domains=names,
        logit_scale=100.0,
        embed_dim=4,
        key="k",
        text=torch.randn(2, 4),
        image={n: torch.randn(rows, 4) for n in names},
        label={n: torch.tensor([0, 1] * (rows // 2)) for n in names},
    )
    save_features(features, directory)


def test_a_feature_directory_needs_neither_model_nor_images(tmp_path):
    _features(tmp_path / "f", 6)
    found = _by_name(RunConfig(data=DataConfig(features=str(tmp_path / "f"))))
    assert "photo 6, sketch 6" in found["features"].detail
    assert not {"model", "weights", "data", "encoding"} & set(found)
    gone = RunConfig(data=DataConfig(features=str(tmp_path / "gone")))
    assert _by_name(gone)["features"].status == "fail"
