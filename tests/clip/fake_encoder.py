"""An encoder that is cheap and deterministic, and counts what it does."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fedclip_plugin.data.dataset import ImageDataset, ImageDomain
from fedclip_plugin.features.encode import EncodingJob

DIM = 12


class FakeEncoder:
    embed_dim = DIM
    logit_scale = 42.0
    precision = "auto"
    device = torch.device("cpu")

    def __init__(self, seconds_an_image: float = 0.0) -> None:
        self.seen = 0
        self.seconds = seconds_an_image
        self.captions: list[str] = []

    def preprocess(self, image: Image.Image) -> Tensor:
        return torch.from_numpy(np.array(image.resize((2, 2)))).permute(2, 0, 1) / 255

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.seen += len(pixels)
        time.sleep(self.seconds * len(pixels))
        return pixels.reshape(len(pixels), DIM)

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        self.captions += captions
        rows = [hashlib.sha256(c.encode()).digest()[:DIM] for c in captions]
        return torch.tensor([list(r) for r in rows], dtype=torch.float32)

    def resolve_precision(self, pixels: Tensor) -> str:
        self.precision = "fp32"
        return self.precision


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_images(
    root: Path, domains: Sequence[str], classes: Sequence[str], count: int
) -> Path:
    """``<domain>/<class>/<i>.png`` under ``root``, which it returns."""
    for d, domain in enumerate(domains):
        for c, name in enumerate(classes):
            folder = root / domain / name
            folder.mkdir(parents=True)
            for i in range(count):
                (folder / f"{i}.png").write_bytes(png(100 * d + 10 * c + i))
    return root


def make_dataset(
    rows: int = 20, bad: Sequence[str] = (), first: int = 0
) -> tuple[ImageDataset, list[int]]:
    """Two domains in memory; ``reads`` grows with every image read."""
    reads: list[int] = []

    def domain(name: str, offset: int) -> ImageDomain:
        files = tuple(f"{name}/c{i % 2}/{i:04}.png" for i in range(rows))

        def read(i: int) -> bytes:
            reads.append(i)
            if files[i] in bad:
                return b"no image"
            return png(first + offset + i)

        return ImageDomain(name, files, np.arange(rows) % 2, read)

    built = ImageDataset("fake", ("c0", "c1"), (domain("a", 0), domain("b", 10_000)))
    return built, reads


def make_job(
    dataset: ImageDataset, load: Callable[[], object], **changes: object
) -> EncodingJob:
    fields: dict[str, object] = {
        "dataset": dataset,
        "model": "fake",
        "pretrained": "none",
        "prompts": ("a picture of a {}",),
        "encoder_key": "k" * 64,
        "load_encoder": load,
    }
    return EncodingJob(**{**fields, **changes})  # type: ignore[arg-type]


def refuse() -> FakeEncoder:
    raise AssertionError("the encoder was loaded though nothing had to be encoded")


__all__ = ["DIM", "FakeEncoder", "make_dataset", "make_job", "png", "refuse"]
