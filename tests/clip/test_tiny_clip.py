"""`fedclip-tiny` as shipped, through plain open_clip, and its pretraining."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import fedclip_plugin
from fedclip_plugin.data.digits import digits_dataset

MODELS = Path(fedclip_plugin.__file__).parent / "models"
CONFIG = MODELS / "fedclip-tiny.json"
WEIGHTS = MODELS / "fedclip-tiny.safetensors"
EXAMPLES = Path(__file__).parents[2] / "examples"
CHANCE = 0.1


def load(weights: Path):
    open_clip.add_model_config(CONFIG)
    model, _, preprocess = open_clip.create_model_and_transforms(
        "fedclip-tiny", pretrained=str(weights)
    )
    return model.eval(), preprocess


@torch.no_grad()
def zero_shot(weights: Path) -> dict[str, float]:
    model, preprocess = load(weights)
    dataset = digits_dataset()
    tokens = open_clip.get_tokenizer("fedclip-tiny")(
        [f"a picture of a {name}" for name in dataset.classes]
    )
    text = model.encode_text(tokens, normalize=True)
    found = {}
    for domain in dataset.domains:
        images = [
            Image.open(io.BytesIO(domain.read(i))) for i in range(len(domain.files))
        ]
        pixels = torch.stack([preprocess(image) for image in images])
        image = model.encode_image(pixels, normalize=True)
        predicted = (image @ text.T).argmax(1).numpy()
        found[domain.name] = float(np.mean(predicted == domain.labels))
    return found


def test_files_are_small_and_half_precision() -> None:
    assert WEIGHTS.stat().st_size < 4.5e6
    with safe_open(WEIGHTS, "pt") as file:
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert dtypes <= {"F16", "I64"}  # I64: BatchNorm's counters


def test_loads_through_open_clip_at_the_width_of_its_config() -> None:
    model, preprocess = load(WEIGHTS)
    width = json.loads(CONFIG.read_text())["embed_dim"]
    pixels = preprocess(Image.new("L", (50, 40)))
    assert pixels.shape == (3, 32, 32)
    with torch.no_grad():
        assert model.encode_image(pixels[None]).shape == (1, width)
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=0.01)
    assert all(p.isfinite().all() for p in model.parameters())


def test_zero_shot_on_real_digits_it_was_never_shown() -> None:
    found = zero_shot(WEIGHTS)
    assert min(found.values()) > 5 * CHANCE, found
    assert np.mean(list(found.values())) > 0.75, found


def test_model_card_tells_the_measured_accuracy_and_the_checksum() -> None:
    import hashlib

    card = (MODELS / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in card
    for domain, accuracy in zero_shot(WEIGHTS).items():
        row = next(
            line for line in card.splitlines() if line.startswith(f"| {domain} ")
        )
        told = float(row.split("|")[2])
        assert told == pytest.approx(100 * accuracy, abs=0.5), (
            domain
        )  # other CPUs round


def test_pretraining_writes_a_loadable_checkpoint_without_the_digits(
    tmp_path: Path,
) -> None:
    out = tmp_path / "new" / "tiny.safetensors"
    code = (
        "import sys, pretrain_tiny_clip as example\n"
        f"example.main(['--steps', '2', '--batch', '8', '--threads', '1', "
        f"'--out', {str(out)!r}])\n"
        "assert 'sklearn.datasets' not in sys.modules, 'training saw the digits'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(EXAMPLES)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    model, _ = load(out)
    assert model.logit_scale.item() == pytest.approx(math.log(100), abs=0.01)
    assert "accuracy on drawn digits" in done.stderr


def test_pretraining_source_names_neither_digits_nor_photographs() -> None:
    for path in (EXAMPLES / "pretrain_tiny_clip.py", EXAMPLES / "glyph_painter.py"):
        source = path.read_text(encoding="utf-8")
        assert "sklearn" not in source
        assert "fedclip_plugin.data.digits" not in source


def test_drawings_are_in_range_and_reproducible(monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import glyph_painter

    glyphs = glyph_painter.load_glyphs()
    classes, styles = torch.arange(8), torch.arange(8) % 4
    one, two = (glyph_painter.Painter(glyphs, 3).batch(classes, styles) for _ in "ab")
    assert torch.equal(one, two)
    assert one.shape == (8, 3, 32, 32)
    assert one.min() >= 0
    assert one.max() <= 1
    border = one[..., 0].mean((1, 2))  # ground: dark, light, anything, light
    assert (border[styles == 0] < 0.2).all()
    assert (border[styles == 1] > 0.8).all()
    assert (border[styles == 3] > 0.8).all()
