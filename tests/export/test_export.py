from __future__ import annotations

import errno
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fedclip_plugin.algorithms.adapter import apply_adapter, initial_state
from fedclip_plugin.clip.encoder import EncoderSpec, FrozenClip
from fedclip_plugin.errors import ConfigError, RunError, WeightsError
from fedclip_plugin.export import classifier as export
from fedclip_plugin.export import classifier as recipe
from fedclip_plugin.export.classifier import export_classifier
from tests.clip.makers import RESNET, VIT, tiny_clip

CLASSES = ("dog", "guitar", "house")
needs_onnx = pytest.mark.skipif(
    any(importlib.util.find_spec(p) is None for p in ("onnx", "onnxscript")),
    reason="the export extra is not installed",
)


def _encoder(folder: Path, vision=None, precision: str = "fp32") -> FrozenClip:
    file = tiny_clip(folder, "tiny-export", vision, quick_gelu=True)
    spec = EncoderSpec("tiny-export", str(file), str(folder), precision, "cpu")
    return FrozenClip.load(spec)


def _state(seed: int = 0) -> dict[str, torch.Tensor]:
    return {k: v * 20 for k, v in initial_state(24, seed).items()}  # a marked gate


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> FrozenClip:
    return _encoder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def texts(clip) -> torch.Tensor:
    return F.normalize(clip.encode_text([f"a picture of a {c}" for c in CLASSES]))


def _image(folder: Path) -> Path:
    rng = np.random.default_rng(3)
    image = rng.integers(0, 256, (50, 80, 3), dtype=np.uint8)
    Image.fromarray(image).save(folder / "image.png")
    return folder / "image.png"


def _expected(clip: FrozenClip, texts: torch.Tensor, image: Path) -> torch.Tensor:
    pixels = clip.preprocess(Image.open(image).convert("RGB"))[None]
    z = apply_adapter(_state(), clip.encode_images(pixels))
    return torch.softmax(clip.logit_scale * z @ texts.T, dim=1)[0]


ALONE = """
import sys
for name in ("fedclip_plugin", "open_clip", "timm"):
    sys.modules[name] = None
"""


def _run_recipe(folder: Path, file: str, image: Path) -> list[float]:
    """Probabilities by the lines in classifier.json, in a process without us."""
    lines = json.loads((folder / "classifier.json").read_text())["run"][file]
    code = "\n".join(lines).replace("image.jpg", str(image))
    code += "\nprint(json.dumps(model(images)[0].tolist()))"
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE + code],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, probabilities = done.stdout.strip().splitlines()
    values = json.loads(probabilities)
    assert answer == CLASSES[int(np.argmax(values))]
    return values


def test_pt2_runs_without_this_package_by_its_own_recipe(clip, texts, tmp_path):
    out = tmp_path / "made" / "here"
    written = export_classifier(clip, _state(), texts, CLASSES, out, ("torch",))
    assert [path.name for path in written] == ["classifier.json", "classifier.pt2"]
    assert sorted(out.iterdir()) == list(written)  # no litter
    image = _image(tmp_path)
    got = _run_recipe(out, "classifier.pt2", image)
    np.testing.assert_allclose(got, _expected(clip, texts, image), atol=1e-4)
    description = json.loads((out / "classifier.json").read_text())
    assert description["classes"] == list(CLASSES)
    assert description["image_size"] == [32, 32]
    assert len(description["run"]["classifier.pt2"]) <= 7


@needs_onnx
def test_onnx_gives_the_same_probabilities_for_any_batch(clip, texts, tmp_path, capfd):
    written = export_classifier(clip, _state(), texts, CLASSES, tmp_path, ("onnx",))
    assert [path.name for path in written] == ["classifier.json", "classifier.onnx"]
    assert capfd.readouterr().out == ""
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(tmp_path / "classifier.onnx"))
    mean = torch.tensor(clip.source.preprocess["mean"]).view(3, 1, 1)
    std = torch.tensor(clip.source.preprocess["std"]).view(3, 1, 1)
    for count in (1, 5):
        images = torch.rand(count, 3, 32, 32)
        got = session.run(None, {"images": images.numpy()})[0]
        z = apply_adapter(_state(), clip.encode_images((images - mean) / std))
        want = torch.softmax(clip.logit_scale * z @ texts.T, dim=1)
        np.testing.assert_allclose(got, want, atol=1e-4)
    image = _image(tmp_path)
    np.testing.assert_allclose(
        _run_recipe(tmp_path, "classifier.onnx", image),
        _expected(clip, texts, image),
        atol=1e-4,
    )


def test_a_resnet_and_given_pixels(tmp_path, texts):
    clip = _encoder(tmp_path, RESNET)
    pixels = torch.rand(1, 3, 32, 32)
    out = tmp_path / "out"
    export_classifier(clip, _state(), texts, CLASSES, out, ("torch",), pixels)
    program = torch.export.load(out / "classifier.pt2").module()
    probabilities = program(torch.rand(4, 3, 32, 32))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(4))


def test_exporting_leaves_the_encoder_alone(clip, texts, tmp_path):
    before = {k: v.clone() for k, v in clip.image_tower.state_dict().items()}
    export_classifier(clip, _state(), texts, CLASSES, tmp_path, ("torch",))
    after = clip.image_tower.state_dict()
    assert all(torch.equal(after[k], before[k]) for k in before)


def test_torchscript_where_torch_export_fails(clip, texts, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise NotImplementedError("a loop over the data")

    monkeypatch.setattr(torch.export, "export", fail)
    written = export_classifier(clip, _state(), texts, CLASSES, tmp_path, ("torch",))
    assert [path.name for path in written] == ["classifier.json", "classifier.pt"]
    program = torch.jit.load(str(tmp_path / "classifier.pt"))
    assert program(torch.rand(5, 3, 32, 32)).shape == (5, 3)
    recipes = json.loads((tmp_path / "classifier.json").read_text())["run"]
    assert "torch.jit.load('classifier.pt')" in "\n".join(recipes["classifier.pt"])


def test_a_file_that_predicts_otherwise_is_not_left(clip, texts, tmp_path, monkeypatch):
    genuine = export._own_probabilities
    monkeypatch.setattr(
        export, "_own_probabilities", lambda *a: genuine(*a).roll(1, dims=1)
    )
    with pytest.raises(RuntimeError, match=r"classifier\.pt2 does not reproduce"):
        export_classifier(clip, _state(), texts, CLASSES, tmp_path, ("torch",))
    assert list(tmp_path.iterdir()) == []


def test_bad_requests(clip, texts, tmp_path, monkeypatch):
    def make(state=None, text=texts, formats=("torch",), encoder=clip):
        state = state or _state()
        return export_classifier(encoder, state, text, CLASSES, tmp_path, formats)

    for formats in ((), ("coreml",)):
        with pytest.raises(ConfigError, match="torch or onnx"):
            make(formats=formats)
    with pytest.raises(WeightsError, match="adapter does not fit"):
        make(state=initial_state(16, 0))
    with pytest.raises(WeightsError, match=r"expected \(3, 24\)"):
        make(text=texts[:2])
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "onnxscript" else find(n)
    )
    with pytest.raises(ConfigError, match=r"fedclip-plugin\[export\]"):
        make(formats=("torch", "onnx"))
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write "):
        export_classifier(clip, _state(), texts, CLASSES, tmp_path / "file", ("torch",))


def test_a_rounded_encoder_is_refused(tmp_path, texts):
    clip = _encoder(tmp_path, VIT, "bf16")
    with pytest.raises(ConfigError, match="--precision fp32"):
        export_classifier(clip, _state(), texts, CLASSES, tmp_path, ("torch",))


@pytest.mark.parametrize(
    ("mode", "size", "words"),
    [
        ("squash", [32, 24], "T.Resize((32, 24)"),
        ("shortest", [32, 24], "ImageOps.fit(i, (24, 32)"),
        ("longest", [32, 32], "ImageOps.pad(i, (32, 32)"),
    ],
)
def test_the_recipe_follows_the_resize_rule(mode, size, words):
    rule = recipe._resize_rule(
        {"size": size, "resize_mode": mode, "interpolation": "bilinear"}
    )
    assert words in rule
    assert "BILINEAR" in rule


def test_a_full_disk_is_named_and_leaves_nothing(clip, texts, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.replace", full)  # torch's own writer ends the process
    with pytest.raises(RunError, match=r"classifier\.pt2.*free some space"):
        export_classifier(clip, _state(), texts, CLASSES, tmp_path, ("torch",))
    assert list(tmp_path.iterdir()) == []
