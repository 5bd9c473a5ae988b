"""A small CLIP of every architecture that open_clip has, with random weights.

The blocks are those of the published models (timm's, transformers', open_clip's own);
only width, depth and pixels are cut, so that each is made and encodes in a second.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import timm.models
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.fastvit import FastVit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

PIXELS, WIDTH = 64, 48
CLIP_TEXT = {
    "context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1,
}  # fmt: skip
SIGLIP_TEXT = {
    "context_length": 16, "vocab_size": 64, "width": WIDTH, "heads": 2, "layers": 1,
    "no_causal_mask": True, "proj_bias": True, "pool_type": "last",
    "tokenizer_kwargs": {"clean": "canonicalize"}, "norm_kwargs": {"eps": 1e-6},
}  # fmt: skip
BIOMED_TEXT = {
    "hf_proj_type": "mlp", "hf_pooler_type": "cls_last_hidden_state_pooler",
    "context_length": 32,
}  # fmt: skip
HALF = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
WORDS = ("a", "picture", "of", "photo", "red", "green", "blue", "disc", "square")
IMAGES = 8  # a domain and class
SCALE = 4.6051702  # the logarithm of 100


@dataclass(frozen=True)
class Small:
    """One of them: open_clip's config, and what its published weights say beside.

    ``like`` is the published model whose architecture it has; ``tokenizer`` says that
    it brings its own, which lies beside the weights.
    """

    like: str
    vision: Mapping[str, Any]
    text: Mapping[str, Any] = field(default_factory=lambda: CLIP_TEXT)
    more: Mapping[str, Any] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: bool = False

    @property
    def config(self) -> dict[str, Any]:
        """open_clip's ``model_cfg``."""
        vision = {"image_size": PIXELS, **self.vision}
        towers = {"vision_cfg": vision, "text_cfg": dict(self.text)}
        return {"embed_dim": WIDTH, **towers, **self.more}


def _timm(name: str, pool: str, proj: str | None = None) -> dict[str, Any]:
    return {
        "timm_model_name": f"small_{name}",
        "timm_model_pretrained": False,
        "timm_pool": pool,
        "timm_proj": proj,
    }


_CUSTOM = {"custom_text": True}
_SIGLIP = _CUSTOM | {"init_logit_bias": -10}
ZOO = {
    "vit": Small("ViT-L/14, ViT-H-14", {
        "layers": 2, "width": 64, "head_width": 16, "patch_size": 14,
        "image_size": 56}),
    "vit-quickgelu": Small("ViT-L-14-quickgelu", {
        "layers": 2, "width": 64, "head_width": 16, "patch_size": 16},
        more={"quick_gelu": True}),
    "resnet": Small("RN50", {
        "layers": [1, 1, 1, 1], "width": 16, "patch_size": None}),
    "convnext": Small("convnext_base", _timm("convnext", "", "linear")),
    "eva02": Small("EVA02-B-16", _timm("eva", "token"), more=_CUSTOM),
    "mobileclip": Small("MobileCLIP-S1", _timm("fastvit", "avg"), more=_CUSTOM,
        text={**CLIP_TEXT, "no_causal_mask": True},
        preprocess={"mean": [0.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear"}),
    "coca": Small("coca_ViT-B-32", {
        "layers": 2, "width": 64, "head_width": 16, "patch_size": 16,
        "attentional_pool": True, "attn_pooler_heads": 4, "output_tokens": True},
        text={**CLIP_TEXT, "context_length": 76, "embed_cls": True,
              "output_tokens": True},
        more=_CUSTOM | {"multimodal_cfg": {
            **CLIP_TEXT, "context_length": 76, "attn_pooler_heads": 2}}),
    "siglip": Small("ViT-B-16-SigLIP", _timm("siglip", "map", "none"), SIGLIP_TEXT,
        _SIGLIP, HALF, tokenizer=True),
    "siglip2": Small("ViT-B-16-SigLIP2", _timm("siglip", "map", "none"),
        {**SIGLIP_TEXT, "act_kwargs": {"approximate": "tanh"}}, _SIGLIP, HALF,
        tokenizer=True),
    "biomedclip": Small("BiomedCLIP", _timm("vit", "", "linear"), BIOMED_TEXT,
        preprocess={"resize_mode": "shortest"}, tokenizer=True),
}  # fmt: skip
"""Name -> the small variant."""


def save(name: str, folder: Path) -> Path:
    """Write a model as a hub would hold it: config, weights and tokenizer; returns it.

    ``--model local-dir:FOLDER`` takes it; so does ``--model NAME --model-config FOLDER
    --pretrained FOLDER/open_clip_model.safetensors``.
    """
    register()
    small, folder = ZOO[name], folder / name
    folder.mkdir(parents=True, exist_ok=True)
    config = small.config
    if small.tokenizer:
        config["text_cfg"]["hf_tokenizer_name"] = f"nobody/small-{name}"
        vocabulary = _save_tokenizer(folder)
    if "hf_proj_type" in config["text_cfg"]:
        config["text_cfg"]["hf_model_name"] = f"nobody/small-text-{name}"
        _save_text_config(folder, vocabulary)
    (folder / f"{name}.json").write_text(json.dumps(config))
    whole = {"model_cfg": config, "preprocess_cfg": dict(small.preprocess)}
    (folder / "open_clip_config.json").write_text(json.dumps(whole))
    model = _build(f"small-{name}", config, folder)
    state = {key: value.contiguous() for key, value in model.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


def _build(name: str, config: dict[str, Any], folder: Path) -> nn.Module:
    own = json.loads(json.dumps(config))
    if "hf_model_name" in own["text_cfg"]:
        own["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as place:
        file = Path(place, f"{name}.json")
        file.write_text(json.dumps(own))
        open_clip.add_model_config(file)
        model: nn.Module = open_clip.create_model(name, pretrained_text=False)
    with torch.no_grad():
        model.get_parameter("logit_scale").fill_(SCALE)
        for module in model.modules():  # statistics that a real network would have
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.1, 0.1)  # type: ignore[union-attr]
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]
    return model


def _save_tokenizer(folder: Path) -> int:
    """A word tokenizer of transformers'; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    words = {word: i for i, word in enumerate((*special, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    make: Any = PreTrainedTokenizerFast  # its types do not say how it is made
    make(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]",
    ).save_pretrained(folder)  # fmt: skip
    return len(words)


def _save_text_config(folder: Path, vocabulary: int) -> None:
    """A BERT's ``config.json``."""
    from transformers import BertConfig

    BertConfig(
        vocab_size=vocabulary, hidden_size=32, num_hidden_layers=1,
        num_attention_heads=2, intermediate_size=64, max_position_embeddings=32,
        pad_token_id=0,
    ).save_pretrained(folder)  # fmt: skip


def register() -> None:
    """Make the small image towers known to timm; once is enough."""
    towers: dict[str, Callable[..., nn.Module]] = {
        "vit": partial(VisionTransformer, img_size=PIXELS, patch_size=16,
                       embed_dim=64, depth=2, num_heads=2),
        "siglip": partial(VisionTransformer, img_size=PIXELS, patch_size=16,
                          embed_dim=WIDTH, depth=2, num_heads=2, class_token=False),
        "eva": partial(Eva, img_size=PIXELS, patch_size=16, embed_dim=64, depth=2,
                       num_heads=2, qkv_fused=False, mlp_ratio=8 / 3, swiglu_mlp=True,
                       scale_mlp=True, scale_attn_inner=True, use_rot_pos_emb=True,
                       ref_feat_shape=(4, 4)),
        "convnext": partial(ConvNeXt, depths=(1, 1, 1, 1), dims=(16, 24, 32, 48)),
        "fastvit": partial(FastVit, layers=(1, 1, 1, 1), embed_dims=(16, 32, 64, 128),
                           mlp_ratios=(3, 3, 3, 3), lkc_use_act=True,
                           se_downsamples=(False, False, True, True),
                           token_mixers=(*["repmixer"] * 3, "attention")),
    }  # fmt: skip
    for name, make in towers.items():
        if not timm.models.is_model(f"small_{name}"):
            timm.models.register_model(_entry(f"small_{name}", make))


def _entry(name: str, make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def entry(pretrained: bool = False, **options: Any) -> nn.Module:
        wanted = {k: v for k, v in options.items() if k in _OF_TIMM}
        if not wanted.get("global_pool", "x"):
            del wanted["global_pool"]  # open_clip's "" is the architecture's own
        model = make(**wanted)
        vars(model)["default_cfg"] = {"pool_size": None}
        return model

    entry.__name__ = entry.__qualname__ = name
    entry.__module__ = __name__
    return entry


__all__: list[str] = []  # timm puts what it registers here
_OF_TIMM = ("global_pool", "num_classes")


def write_images(root: Path, domains: Iterable[str] = ("bright", "dark")) -> Path:
    """Discs and squares on noise, ``<domain>/<class>/<n>.png``; returns ``root``."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:PIXELS, :PIXELS] - PIXELS // 2
    shapes = {"disc": x * x + y * y < 300, "square": abs(x) + abs(y) < 18}
    for domain in domains:
        top = 200 if domain == "bright" else 90
        for name, inside in shapes.items():
            (root / domain / name).mkdir(parents=True, exist_ok=True)
            for number in range(IMAGES):
                pixels = rng.integers(0, top, (PIXELS, PIXELS, 3), dtype=np.uint8)
                pixels[np.roll(inside, rng.integers(-9, 9), axis=1)] = top + 50
                Image.fromarray(pixels).save(root / domain / name / f"{number}.png")
    return root
