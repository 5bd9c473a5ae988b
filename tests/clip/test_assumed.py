"""What is assumed of weights that do not say how they were trained."""

from __future__ import annotations

import json

import pytest
import torch

from fedclip_plugin.clip.encoder import scale_note
from fedclip_plugin.clip.resolve import resolve
from fedclip_plugin.config.inputs import DataConfig, ModelConfig
from fedclip_plugin.config.schema import RunConfig
from fedclip_plugin.errors import ConfigError

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def plain(tmp_path):
    """A state dict that says nothing; that it fits no model shows only on loading."""
    file = tmp_path / "ft.pt"
    torch.save({"logit_scale": torch.tensor(4.6)}, file)
    return str(file)


@pytest.mark.parametrize(
    ("model", "mean", "interpolation", "resize"),
    [
        ("ViT-B-16-SigLIP", 0.5, "bicubic", "squash"),
        ("MobileCLIP-S1", 0.0, "bilinear", "shortest"),
        ("ViT-L-14-CLIPA", 0.485, "bilinear", "squash"),
        ("vit-b-16-siglip-256", 0.5, "bicubic", "squash"),
    ],
)
def test_what_all_published_weights_agree_on(plain, model, mean, interpolation, resize):
    source = resolve(model, plain)
    got = source.preprocess
    assert (got["mean"][0], got["interpolation"], got["resize_mode"]) == (
        mean,
        interpolation,
        resize,
    )
    assert source.notes == ()


@pytest.mark.parametrize(
    ("model", "activation", "remedy"),
    [
        ("ViT-B/32", "QuickGELU", "give --model ViT-B-32"),
        ("VIT-B/32", "QuickGELU", "give --model ViT-B-32"),
        ("ViT-B-32", "GELU", "give --model ViT-B-32-quickgelu"),
        ("RN50", "QuickGELU", '"quick_gelu": false'),
    ],
)
def test_an_activation_that_is_guessed_is_told(plain, model, activation, remedy):
    source = resolve(model, plain)
    assert source.activation == activation
    (note,) = source.notes
    assert f"{activation} is assumed" in note
    assert remedy in note


def test_a_name_that_says_it_needs_no_note(plain):
    assert resolve("ViT-B-32-quickgelu", plain).notes == ()


def test_open_clips_trainer_builds_what_its_names_say(tmp_path):
    file = tmp_path / "epoch_1.pt"
    wrapped = {"epoch": 1, "name": "mine", "optimizer": {}}
    torch.save({**wrapped, "state_dict": {"logit_scale": torch.tensor(4.6)}}, file)
    assert resolve("ViT-B/32", str(file)).activation == "GELU"


def test_preprocessing_on_which_published_weights_differ_is_told(plain, tmp_path):
    source = resolve("ViT-L-14", plain)
    assert any("CLIP's mean" in note for note in source.notes)
    told = {"preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(told))
    source = resolve("ViT-L-14", plain)
    assert source.preprocess["mean"] == [0.5] * 3
    assert not any("CLIP's mean" in note for note in source.notes)


def test_a_copy_of_a_known_config_is_known(plain, tmp_path):
    import open_clip

    config = open_clip.get_model_config("ViT-B-16-SigLIP")
    (tmp_path / "own.json").write_text(json.dumps(config))
    source = resolve("own", plain, str(tmp_path))
    assert source.preprocess["resize_mode"] == "squash"


@pytest.mark.parametrize("model", ["local-dir:x", "hf-hub:org/name"])
def test_weights_beside_a_model_that_brings_its_own_are_refused(model):
    with pytest.raises(ConfigError, match="leave out --pretrained"):
        ModelConfig(model, "no-such.pt")
    assert RunConfig(model=ModelConfig(model)).pretrained == "auto"


def test_names_in_any_case():
    config = RunConfig(data=DataConfig("Digits"))
    assert (config.model_name, config.pretrained) == ("fedclip-tiny", "fedclip-tiny")
    config = RunConfig(model=ModelConfig("FedCLIP-Tiny", "AUTO"))
    assert config.pretrained == "fedclip-tiny"
    source = resolve("vit-b/32", "OpenAI")
    assert (source.asked, source.tag) == ("ViT-B/32", "openai")
    assert resolve("vit-b-32", "LAION2B-s34b-b79k").tag == "laion2b_s34b_b79k"


def test_a_logit_scale_out_of_range_is_noted():
    assert scale_note(100.0) is None
    assert "14.29" in str(scale_note(14.29))
