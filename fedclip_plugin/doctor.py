"""What can be known before a run: versions, machine, model, data, hosts, cache.

``diagnose`` asks and never mends, downloads or prints; the command line renders it.
Errors become checks too, so that one fault does not hide the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from . import machine
from .config import RunConfig
from .data import load_dataset
from .dataset import ImageDataset
from .encoder import EncoderSpec, FrozenClip
from .errors import FedClipError
from .features import load_features
from .images import decode_image
from .machine import Check
from .source import HUB, OFFLINE_HINT, ModelSource, cached_file, reachable

__all__ = ["Check", "diagnose"]

SCALE = (20.0, 200.0)  # of the logits: CLIP's is 100, SigLIP's 115, an untrained 14
SAMPLE = 8  # images that are encoded as a test


def diagnose(config: RunConfig) -> list[Check]:
    """Look at everything that a run of ``config`` depends on; changes nothing."""
    features = config.data.features
    parts: dict[str, Callable[[], Sequence[Check]]] = {
        "versions": machine.check_versions,
        "torchvision": machine.check_torchvision,
        "kernels": machine.check_kernels,
        "device": lambda: machine.check_device(config.model.device),
        "memory": machine.check_memory,
        "cache": machine.check_cache,
    }
    if features is None:
        parts["data"] = lambda: [_describe_data(_dataset(config))]
        parts["model"] = lambda: _model(config)
    else:
        parts["features"] = lambda: _features(features)
    parts["hosts"] = machine.check_hosts
    parts["extras"] = machine.check_extras
    return [check for name, part in parts.items() for check in _guarded(name, part)]


def _guarded(name: str, part: Callable[[], Sequence[Check]]) -> Sequence[Check]:
    try:
        return part()
    except FedClipError as error:
        detail, _, remedy = str(error).partition("; ")
        return [Check(name, "fail", detail, remedy)]
    except Exception as error:  # a broken installation can fail anywhere
        return [Check(name, "fail", f"{type(error).__name__}: {error}")]


# ----------------------------------------------------------------------- data and model


def _dataset(config: RunConfig) -> ImageDataset:
    return load_dataset(config.data.dataset, config.data.root)


def _describe_data(dataset: ImageDataset) -> Check:
    classes = range(len(dataset.classes))
    counts = ", ".join(f"{d.name} {len(d.files)}" for d in dataset.domains)
    detail = f"{dataset.name}: {len(classes)} classes; images: {counts}"
    lacking = [
        f"{domain.name} has no {dataset.classes[label]}"
        for domain in dataset.domains
        for label in classes
        if not np.any(domain.labels == label)
    ]
    if lacking:
        return Check("data", "warn", f"{detail}; {lacking[0]}", "is the copy complete?")
    if len(dataset.domains) < 2:
        remedy = "federated training needs a second domain, or --partition iid"
        return Check("data", "warn", detail, remedy)
    return Check("data", "ok", detail)


def _features(directory: str) -> list[Check]:
    features = load_features(directory)
    counts = ", ".join(
        f"{name} {len(features.label[name])}" for name in features.domains
    )
    detail = f"{directory}: {features.model}, {len(features.classes)} classes; {counts}"
    return [Check("features", "ok", detail)]


def _model(config: RunConfig) -> list[Check]:
    spec = EncoderSpec.from_config(config)
    source = spec.source()
    activation = "QuickGELU" if source.config.get("quick_gelu") else "GELU"
    size = "x".join(map(str, source.image_size))
    detail = f"{source.name} with {source.tag}: {size} pixels, {activation}"
    found = [Check("model", "ok", detail)]
    if cached_file(source) is None:
        return [*found, _not_here(source)]
    clip = FrozenClip.load(spec)
    return [
        *found,
        _scale(clip),
        *_guarded("encoding", lambda: [_encoding(config, clip)]),
    ]


def _not_here(source: ModelSource) -> Check:
    detail = f"{source.tag} of {source.name} is not on this machine"
    if reachable(HUB):
        return Check("weights", "warn", detail, f"the first run fetches it from {HUB}")
    return Check("weights", "fail", f"{detail}, nor can {HUB} be reached", OFFLINE_HINT)


def _scale(clip: FrozenClip) -> Check:
    detail = f"loaded: {clip.embed_dim} wide, logit scale {clip.logit_scale:.2f}"
    if SCALE[0] <= clip.logit_scale <= SCALE[1]:
        return Check("weights", "ok", detail)
    remedy = "a trained CLIP has about 100: is the checkpoint a finished one?"
    return Check("weights", "warn", detail, remedy)


def _encoding(config: RunConfig, clip: FrozenClip) -> Check:
    """Encode a few images as a run would; NaN raises, as it does there."""
    pixels = encode_sample(config, clip)
    asked = clip.precision
    if asked in ("bf16", "fp16"):
        spec = replace(EncoderSpec.from_config(config), precision="fp32")
        exact = FrozenClip.load(spec).encode_images(pixels)
    else:
        exact = clip.encode_images(pixels)
        clip.resolve_precision(pixels)
    worst = float(F.cosine_similarity(exact, clip.encode_images(pixels)).min())
    detail = f"{clip.precision} on {len(pixels)} images: cosine with fp32 {worst:.5f}"
    if worst < 0.999:
        return Check("encoding", "warn", detail, "use --precision fp32 or auto")
    return Check("encoding", "ok", detail)


def encode_sample(config: RunConfig, clip: FrozenClip) -> Tensor:
    """(8, 3, S, S) preprocessed images, spread over the domains; noise without data."""
    try:
        domains = _dataset(config).domains
        picked = [domains[i % len(domains)] for i in range(SAMPLE)]
        chosen = [(d, i * len(d.files) // SAMPLE) for i, d in enumerate(picked)]
        images = [decode_image(d.read(i), d.files[i]) for d, i in chosen]
    except FedClipError:  # told by the check of the data
        return torch.randn(SAMPLE, 3, *clip.source.image_size)
    return torch.stack([clip.preprocess(image) for image in images])
