"""FrozenClip: an open_clip model that only encodes, and its identity for the cache.

    clip = FrozenClip.load(EncoderSpec.from_config(RunConfig()))
    x = clip.encode_images(torch.stack([clip.preprocess(image)]))      # (1, D)
    t = clip.encode_text(["a picture of a seven"])                     # (1, D)

Only the image tower runs in low precision, with pure bf16 or fp16 weights; the few
captions are always encoded in fp32.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config.schema import RunConfig
from ..errors import WeightsError, translate
from ..ops.kernels import low_precision, resolve_device
from ..storage.hashes import file_sha256
from .assumed import ASSUMED
from .download import ModelSource, weights_file
from .load import build_model
from .resolve import resolve
from .tokenizer import load_tokenizer, tokenizer_hash

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MIN_COSINE = 0.999  # of every checked feature with its fp32 self, for `auto`
MIN_PARAMETERS = 8_000_000  # a smaller tower is fast anyway: keep it bit-stable
CHECKED_IMAGES = 64
CAPTION_BATCH = 256
SCALE = (20.0, 200.0)  # of the logits: 100 in CLIP, 115 in SigLIP, 14 untrained
_log = logging.getLogger("fedclip")


@dataclass(frozen=True)
class EncoderSpec:
    """What the user requested: names, tag or file, precision and device."""

    model: str
    pretrained: str
    config_dir: str | None = None
    precision: str = "auto"  # auto, fp32, bf16 or fp16
    device: str = "auto"  # auto, cpu, cuda or cuda:N

    @classmethod
    def from_config(cls, config: RunConfig) -> EncoderSpec:
        """The spec of a run, with ``auto`` names resolved."""
        model = config.model
        return cls(
            config.model_name,
            config.pretrained,
            model.config_dir,
            model.precision,
            model.device,
        )

    def source(self) -> ModelSource:
        """The model config and the weights; raises WeightsError."""
        return resolve(self.model, self.pretrained, self.config_dir)


def fingerprint(spec: EncoderSpec) -> str:
    """SHA-256 (hex) of the weights' bytes, the model config and the preprocessing.

    Does not build the model.  Precision and device are not part of it.
    """
    source = spec.source()
    identity = {
        "weights": file_sha256(weights_file(source)),
        "config": source.config,
        "preprocess": source.preprocess,
    }
    if tokenizer := tokenizer_hash(source):
        identity["tokenizer"] = tokenizer
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def record(source: ModelSource) -> dict[str, str]:
    """What a run says of its encoder: the names and the hash of what was used."""
    chosen = source.preprocess
    return {
        "name": source.name,
        "weights": source.tag,
        "sha256": file_sha256(weights_file(source)),
        "activation": source.activation,
        **{key: str(chosen[key]) for key in ASSUMED},
    }


class FrozenClip:
    """A CLIP in eval mode with constant weights: it cannot be trained by accident.

    ``embed_dim`` D; ``logit_scale`` the factor itself (100 for CLIP); ``logit_bias`` of
    SigLIP's sigmoid, None for a CLIP without; ``precision`` of the image tower,
    ``auto`` (encoding in fp32) until ``resolve_precision`` decided; ``preprocess`` (PIL
    image) -> (3, S, S) float32; ``source`` where it came from.
    """

    def __init__(
        self,
        model: nn.Module,
        source: ModelSource,
        tokenizer: Callable[[list[str]], Tensor],
        precision: str,
        device: torch.device,
    ) -> None:
        try:
            self._model: Any = model.to(device).eval().requires_grad_(False)
        except RuntimeError as error:
            raise translate(error) or error from error
        self._tokenizer = tokenizer
        self.source = source
        self.device = device
        self.embed_dim = int(source.config["embed_dim"])
        self.logit_scale = float(model.get_parameter("logit_scale").detach().exp())
        if not 0 < self.logit_scale < math.inf:
            raise WeightsError(
                f"{source.tag}: its logit scale is {self.logit_scale}: the weights are "
                "damaged; take another checkpoint"
            )
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias.detach())
        self.preprocess = image_transform(source)
        self.precision = precision
        if precision == "auto" and not self._worth_low_precision():
            self.precision = "fp32"
        elif precision in ("bf16", "fp16"):
            self._model.visual = self._model.visual.to(DTYPES[precision])

    @classmethod
    def load(cls, spec: EncoderSpec) -> FrozenClip:
        """Build the model a spec asks for; raises WeightsError or ConfigError."""
        device = resolve_device(spec.device)
        source = spec.source()
        with torch.inference_mode(False):
            model = build_model(source, weights_file(source))
            return cls(model, source, load_tokenizer(source), spec.precision, device)

    @property
    def image_tower(self) -> nn.Module:
        """The image encoder: normalised pixels (B, 3, S, S) -> (B, D)."""
        tower: nn.Module = self._model.visual
        return tower

    @property
    def model(self) -> nn.Module:
        """The open_clip model, in eval mode; its parameters require no gradient."""
        model: nn.Module = self._model
        return model

    def tokenize(self, texts: list[str]) -> Tensor:
        """N texts -> (N, context) int64, on the CPU."""
        return self._tokenizer(texts)

    def train(self, mode: bool = True) -> FrozenClip:
        """Do nothing: in train mode the BatchNorm statistics of RN50 would drift."""
        return self

    def eval(self) -> FrozenClip:
        """Do nothing: always in eval mode."""
        return self

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) preprocessed pixels -> (B, D) float32 on ``device``, raw.

        Raises WeightsError on NaN or infinity, which fp16 can overflow to, and where
        all are zeros.
        """
        features = self._encode(self.image_tower, pixels, self._dtype())  # (B, D)
        self._check("image", features, self.precision)
        return features

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """C captions -> (C, D) float32 on ``device``, raw; always encoded in fp32."""
        if not captions:
            return torch.empty(0, self.embed_dim, device=self.device)
        rows = []
        with torch.inference_mode(False), torch.no_grad():
            for start in range(0, len(captions), CAPTION_BATCH):
                tokens = self._tokenizer(list(captions[start : start + CAPTION_BATCH]))
                try:
                    tokens = tokens.to(self.device)  # (b, context)
                    rows.append(self._model.encode_text(tokens, normalize=False))
                except RuntimeError as error:
                    raise translate(error) or error from error
            features = torch.cat(rows)
        self._check("text", features, "fp32")
        return features

    def resolve_precision(self, pixels: Tensor) -> str:
        """Settle ``auto`` on real images: low precision iff every feature agrees.

        ``pixels`` (B, 3, S, S), a sample of the images to encode.  bf16 (fp16 on GPUs
        without it) is taken iff the cosine of each of up to 64 features with its fp32
        self exceeds 0.999.  Frees the other copy; returns ``precision``.
        """
        if self.precision != "auto":
            return self.precision
        candidate = low_precision(self.device) or "fp32"
        with torch.inference_mode(False):
            tower = copy.deepcopy(self.image_tower).to(DTYPES[candidate])
            sample = pixels[:CHECKED_IMAGES]
            exact = self._encode(self.image_tower, sample, torch.float32)
            try:
                rounded = self._encode(tower, sample, DTYPES[candidate])
                worst = float(F.cosine_similarity(exact, rounded).min())
            except (RuntimeError, WeightsError) as error:  # an op without that dtype
                if not isinstance(error, WeightsError) and (
                    translated := translate(error)
                ):
                    raise translated from error
                _log.info("%s is not supported here: %s", candidate, error)
                worst = float("nan")
        if worst > MIN_COSINE:  # false for NaN
            self._model.visual, self.precision = tower, candidate
        else:
            self.precision = "fp32"
        _log.info("precision %s: worst cosine %.5f", self.precision, worst)
        return self.precision

    def _dtype(self) -> torch.dtype:
        return DTYPES.get(self.precision, torch.float32)

    def _worth_low_precision(self) -> bool:
        parameters = sum(p.numel() for p in self.image_tower.parameters())
        return parameters >= MIN_PARAMETERS and low_precision(self.device) is not None

    def _encode(self, tower: nn.Module, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        height, width = self.source.image_size
        if pixels.dim() != 4 or pixels.shape[1:] != (3, height, width):
            raise ValueError(
                f"pixels {tuple(pixels.shape)}: expected (B, 3, {height}, {width})"
            )
        if not len(pixels):
            return torch.empty(0, self.embed_dim, device=self.device)
        # Not inference mode: its tensors could not enter a later autograd graph.
        with torch.inference_mode(False), torch.no_grad():
            try:
                out = tower(pixels.to(self.device, dtype))
            except RuntimeError as error:
                if dtype == torch.float32 or "not implemented for" not in str(error):
                    raise translate(error) or error from error
                raise WeightsError(
                    f"--precision {self.precision} is not supported for "
                    f"{self.source.name} on {self.device}: use --precision fp32"
                ) from error
            pooled: Tensor = out[0] if isinstance(out, tuple) else out
            return pooled.float()

    def _check(self, what: str, features: Tensor, precision: str) -> None:
        """Raise WeightsError on NaN, infinity or nothing but zeros, and say why."""
        finite = bool(torch.isfinite(features).all())
        if finite and (features.any() or len(features) < 2):  # of one, a note tells
            return
        gave = "only zeros as" if finite else "NaN or infinite"
        weights = self._model.state_dict().items()
        bad = [key for key, value in weights if not torch.isfinite(value).all()]
        if bad:
            reason = f"{self.source.tag} is damaged, its {bad[0]} holds NaN or "
            reason += "infinity: take another checkpoint"
        elif precision == "fp16":
            reason = "use --precision bf16 or fp32"
        elif precision == "bf16":
            reason = "use --precision fp32"
        else:
            reason = "its weights are damaged, or not those of this model"
        raise WeightsError(
            f"{self.source.name} gave {gave} {what} features in {precision}: {reason}"
        )


def scale_note(logit_scale: float) -> str | None:
    """What is odd about a logit scale (the factor itself), or None."""
    if SCALE[0] <= logit_scale <= SCALE[1]:
        return None
    return (
        f"the logit scale of the weights is {logit_scale:.2f}, a trained CLIP's about "
        "100: is the checkpoint a finished one?"
    )


def image_transform(source: ModelSource) -> Callable[[PIL.Image.Image], Tensor]:
    """open_clip's inference transform: resize, centre crop, normalise."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform: Callable[[PIL.Image.Image], Tensor] = image_transform_v2(
        PreprocessCfg(**source.preprocess), is_train=False
    )
    return transform
