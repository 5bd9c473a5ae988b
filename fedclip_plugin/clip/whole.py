"""The CLIP itself, for baselines that train more than features: model, tokens, pixels.

FedCLIP needs none of this; the comparison with fine-tuning does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import PIL.Image
import torch
from torch import Tensor, nn

from ..config.inputs import DESCRIPTIONS
from ..config.schema import RunConfig
from ..data.dataset import ImageDataset
from ..data.images import decode_image
from ..errors import ConfigError
from .encoder import EncoderSpec, FrozenClip
from .prompts import captions

MEMORY = 2 << 30  # bytes of preprocessed images in memory; the rest is decoded again


class Pixels:
    """Preprocessed images by row over all domains: ``pixels[rows]`` (B, 3, S, S).

    Decoded on demand, and cached up to :data:`MEMORY`.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        preprocess: Callable[[PIL.Image.Image], Tensor],
        device: torch.device,
        skipped: Sequence[str] = (),
    ) -> None:
        self._places = [
            (domain, i)
            for domain in dataset.domains
            for i, name in enumerate(domain.files)
            if name not in skipped
        ]
        self._preprocess = preprocess
        self._device = device
        self._cache: dict[int, Tensor] = {}
        self._free = MEMORY

    @classmethod
    def none(cls, device: torch.device) -> Pixels:
        """Of no images at all."""
        return cls(ImageDataset("none", (), ()), lambda image: torch.empty(0), device)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return torch.stack([self._one(i) for i in rows.tolist()]).to(self._device)

    def _one(self, row: int) -> Tensor:
        if row in self._cache:
            return self._cache[row]
        domain, i = self._places[row]
        pixels = self._preprocess(decode_image(domain.read(i), domain.files[i]))
        self._free -= pixels.nbytes
        if self._free >= 0:
            self._cache[row] = pixels
        return pixels


@dataclass(frozen=True)
class WholeClip:
    """A CLIP in fp32 and eval mode; ``model(pixels, tokens)`` normalises its features.

    ``tokenize`` makes (N, context) int64 of N texts; ``tokens`` (C, context) are the
    classes' captions.
    """

    model: nn.Module
    tokenize: Callable[[list[str]], Tensor]
    tokens: Tensor
    classes: tuple[str, ...]
    prompt: str
    pixels: Pixels


def open_whole_clip(
    config: RunConfig,
    dataset: ImageDataset,
    classes: tuple[str, ...],
    skipped: Sequence[str] = (),
) -> WholeClip:
    """The model of ``config`` with the images of ``dataset``; raises FedClipError.

    ``skipped`` files have no rows: the rows of the pixels are those of the features.
    """
    if config.data.prompts[0].startswith(DESCRIPTIONS):
        raise ConfigError(
            f"--alg {config.algorithm} trains with a template, not with descriptions: "
            'give a --prompt such as "a photo of a {}"'
        )
    if len(config.data.prompts) != 1:
        raise ConfigError(
            f"--alg {config.algorithm} trains with one caption per class: give one "
            f"--prompt, not {len(config.data.prompts)}"
        )
    spec = EncoderSpec.from_config(config)
    clip = FrozenClip.load(
        EncoderSpec(spec.model, spec.pretrained, spec.config_dir, "fp32", spec.device)
    )
    prompt = config.data.prompts[0]
    texts = captions(classes, prompt)
    return WholeClip(
        clip.model,
        clip.tokenize,
        clip.tokenize(texts).to(clip.device),
        classes,
        prompt,
        Pixels(dataset, clip.preprocess, clip.device, skipped),
    )
