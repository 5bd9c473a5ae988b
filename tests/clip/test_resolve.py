from __future__ import annotations

import os
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg
from safetensors.torch import load_file, save_file

from fedclip_plugin.clip.download import weights_file
from fedclip_plugin.clip.encoder import EncoderSpec, FrozenClip
from fedclip_plugin.clip.load import build_model
from fedclip_plugin.clip.resolve import resolve
from fedclip_plugin.errors import WeightsError
from tests.clip.makers import VIT, jit_archive, tiny_clip, write_config

pytestmark = pytest.mark.usefixtures("own_cache")

PAPER_NAMES = {
    "RN50": "RN50-quickgelu",
    "RN50x4": "RN50x4-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B-32": "ViT-B-32-quickgelu",
    "vit-b/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}


@pytest.mark.parametrize("name", PAPER_NAMES)
def test_openai_weights_always_get_quickgelu(name):
    source = resolve(name, "openai")
    assert source.name == PAPER_NAMES[name]
    assert source.config["quick_gelu"] is True


def test_every_registered_tag_gets_the_activation_it_was_trained_with():
    from open_clip.pretrained import get_pretrained_cfg

    own_config = {"roberta-ViT-B-32"}  # its config has QuickGELU, its tag is unmarked
    pairs = open_clip.list_pretrained()
    assert len(pairs) > 100
    for name, tag in pairs:
        source = resolve(name, tag)
        quick = get_pretrained_cfg(name, tag).get("quick_gelu", False)
        if name not in own_config:
            assert source.config.get("quick_gelu", False) == quick, (name, tag)


@pytest.mark.parametrize(
    "name", ["ViT-B-32", "ViT-B-16-SigLIP", "RN50", "coca_ViT-B-32"]
)
def test_preprocess_is_what_open_clip_would_use(name):
    tag = open_clip.list_pretrained_tags_by_model(name)[0]
    from open_clip.pretrained import get_pretrained_cfg

    known = get_pretrained_cfg(name, tag)
    got = PreprocessCfg(**resolve(name, tag).preprocess)
    assert list(got.mean) == list(known["mean"])
    assert list(got.std) == list(known["std"])
    assert (got.resize_mode, got.interpolation) == (
        known["resize_mode"],
        known["interpolation"],
    )
    assert got.size == [224, 224]


def test_default_preprocess_is_open_clips(tmp_path):
    file = tiny_clip(tmp_path, "tiny-default")
    model = open_clip.create_model("tiny-default")
    want = PreprocessCfg(**model.visual.preprocess_cfg)
    got = PreprocessCfg(**resolve("tiny-default", str(file), str(tmp_path)).preprocess)
    assert tuple(got.size) == tuple(want.size)
    assert tuple(got.mean) == tuple(want.mean)
    assert tuple(got.std) == tuple(want.std)
    assert (got.mode, got.interpolation, got.resize_mode, got.fill_color) == (
        want.mode,
        want.interpolation,
        want.resize_mode,
        want.fill_color,
    )


@pytest.mark.parametrize(
    ("model", "tag", "words"),
    [
        ("ViT-B-31", "openai", ["ViT-B-32", "--model-config", "list_pretrained"]),
        ("ViT-B/32", "opanai", ["did you mean openai?", "laion2b_s34b_b79k"]),
        ("ViT-B/32", "gone.pt", ["gone.pt", "no such file"]),
        ("ViT-S-32", "openai", ["no downloadable weights", "--pretrained FILE"]),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", ["use --model ViT-B-32"]),
        ("ViT-B/32", "fedclip-tiny", ["--model fedclip-tiny"]),
        ("local-dir:nowhere", "", ["open_clip_config.json"]),
    ],
)
def test_wrong_names_are_refused_in_one_line_with_the_remedy(model, tag, words):
    with pytest.raises(WeightsError) as caught:
        resolve(model, tag)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_a_model_config_directory_may_be_given_again(tmp_path):
    file = tiny_clip(tmp_path, "tiny-again")
    spec = EncoderSpec("tiny-again", str(file), str(tmp_path), device="cpu")
    FrozenClip.load(spec)
    known = len(open_clip.factory._MODEL_CONFIG_PATHS)
    FrozenClip.load(spec)
    assert len(open_clip.factory._MODEL_CONFIG_PATHS) == known


@pytest.mark.parametrize(
    ("content", "word"),
    [(None, "no such directory"), ("{}", "holds no"), ("{", "not a readable JSON")],
)
def test_bad_model_config(tmp_path, content, word):
    folder = tmp_path / "configs"
    if content is not None:
        folder.mkdir()
        (folder / "mine.json").write_text(content)
    with pytest.raises(WeightsError, match=word):
        resolve("mine", "openai", str(folder))


def _load(file: Path, name: str, folder: Path) -> torch.nn.Module:
    source = resolve(name, str(file), str(folder))
    return build_model(source, weights_file(source))


@pytest.mark.parametrize("suffix", ["pt", "bin", "pth", "safetensors"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_checkpoint_formats(tmp_path, suffix, wrapped):
    state = load_file(tiny_clip(tmp_path, "tiny-format"))
    file = tmp_path / f"other.{suffix}"
    if suffix == "safetensors":
        save_file(state, file)
    else:  # as open_clip's own training writes it
        torch.save(
            {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in state.items()}}
            if wrapped
            else state,
            file,
        )
    model = _load(file, "tiny-format", tmp_path)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


class Payload:
    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self):
        return (os.mkdir, (str(self.made),))


def test_pickled_programs_are_refused(tmp_path):
    tiny_clip(tmp_path, "tiny-pickle")
    file = tmp_path / "evil.pt"
    torch.save({"state_dict": Payload(tmp_path / "ran")}, file)
    with pytest.raises(WeightsError, match=r"evil\.pt holds pickled .*safetensors"):
        _load(file, "tiny-pickle", tmp_path)
    assert not (tmp_path / "ran").exists()


def _missing(state):
    del state["visual.proj"]


def _unexpected(state):
    state["visual.extra"] = torch.zeros(1)


def _wrong_shape(state):
    state["visual.conv1.weight"] = torch.zeros(8, 3, 16, 16)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (_missing, "1 missing keys (visual.proj)"),
        (_unexpected, "1 unexpected keys (visual.extra)"),
        (_wrong_shape, "visual.conv1.weight: got [8, 3, 16, 16], expected [32, 3"),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path, change, word):
    state = load_file(tiny_clip(tmp_path, "tiny-other"))
    change(state)
    file = tmp_path / "wrong.safetensors"
    save_file(state, file)
    with pytest.raises(WeightsError) as caught:
        _load(file, "tiny-other", tmp_path)
    text = str(caught.value)
    assert str(file) in text
    assert word in text
    assert "\n" not in text


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_positions_of_another_image_size_are_not_interpolated(tmp_path, suffix):
    state = load_file(tiny_clip(tmp_path, "tiny-size"))
    file = tmp_path / f"big.{suffix}"
    if suffix == "pt":
        torch.save({"state_dict": state}, file)
    else:
        save_file(state, file)
    write_config(tmp_path, "tiny-size", {**VIT, "image_size": 64})
    with pytest.raises(
        WeightsError, match=r"\[5, 32\] in the file, expected \[17, 32\]"
    ):
        _load(file, "tiny-size", tmp_path)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("keep", [0, 100, 20_000])
def test_a_truncated_file_is_named(tmp_path, suffix, keep):
    whole = tiny_clip(tmp_path, "tiny-cut")
    file = tmp_path / f"cut.{suffix}"
    if suffix == "pt":
        torch.save(load_file(whole), file)
    else:
        file.write_bytes(whole.read_bytes())
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(WeightsError) as caught:
        _load(file, "tiny-cut", tmp_path)
    assert str(file) in str(caught.value)
    assert "download it again" in str(caught.value)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ("version https://git-lfs.github.com/spec/v1\n", "git lfs"),
        ("<!DOCTYPE html>", "web"),
    ],
)
def test_pointers_and_web_pages_are_told_apart(tmp_path, content, word):
    tiny_clip(tmp_path, "tiny-page")
    file = tmp_path / "model.safetensors"
    file.write_text(content)
    with pytest.raises(WeightsError, match=word):
        _load(file, "tiny-page", tmp_path)


def test_openai_archive_loads_into_a_quickgelu_model_only(tmp_path):
    state = load_file(tiny_clip(tmp_path, "tiny-openai", quick_gelu=True))
    file = jit_archive(state, tmp_path / "ViT-tiny.pt")
    model = _load(file, "tiny-openai", tmp_path)
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, state[key].half().float())
    write_config(tmp_path, "tiny-gelu", VIT)
    with pytest.raises(
        WeightsError, match=r'ViT-tiny\.pt.*"quick_gelu": true in .*tiny'
    ):
        resolve("tiny-gelu", str(file), str(tmp_path))
    with pytest.raises(WeightsError, match="use --model ViT-B-32-quickgelu"):
        resolve("ViT-B-32", str(file))
    # OpenAI's own name can only mean OpenAI's model.
    assert resolve("ViT-B/32", str(file)).name == "ViT-B-32-quickgelu"


def test_openai_archive_of_another_size_is_refused(tmp_path):
    file = jit_archive({"visual.proj": torch.zeros(2, 2)}, tmp_path / "x.pt")
    tiny_clip(tmp_path, "tiny-misfit", quick_gelu=True)
    with pytest.raises(WeightsError, match=r"x\.pt does not fit --model tiny-misfit"):
        _load(file, "tiny-misfit", tmp_path)


class _Program(torch.nn.Module):
    """TorchScript runs ``__setstate__`` while it loads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(2))

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, bool]:
        return self.weight, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]) -> None:
        print("the program ran")
        self.weight = state[0]
        self.training = state[1]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.weight


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated
def test_an_archive_with_a_program_is_not_loaded(tmp_path, capfd):
    tiny_clip(tmp_path, "tiny-openai", quick_gelu=True)
    file = tmp_path / "x.pt"
    torch.jit.script(_Program()).save(str(file))
    torch.jit.load(str(file))
    assert "the program ran" in capfd.readouterr().out  # where nobody looks
    with pytest.raises(WeightsError, match=r"x\.pt holds code that would run"):
        _load(file, "tiny-openai", tmp_path)
    assert "the program ran" not in capfd.readouterr().out
