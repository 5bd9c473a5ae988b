"""What a run is given: images or features, the model and its weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...clip.download import HUB, OFFLINE_HINT, ModelSource, cached_file, reachable
from ...clip.encoder import EncoderSpec, FrozenClip, scale_note
from ...config.schema import RunConfig
from ...data.dataset import ImageDataset
from ...data.folders import list_images
from ...data.images import decode_image
from ...errors import FedClipError
from ...features.feature_set import load_features
from .check import Check, doubted, guarded

SAMPLE = 8  # images that are encoded as a test


def _dataset(config: RunConfig) -> ImageDataset:
    return list_images(config.data)


def check_data(config: RunConfig) -> list[Check]:
    """Classes, domains and counts of the images, and what is doubtful about them."""
    dataset = _dataset(config)
    return [_describe_data(dataset), *doubted("data", dataset.notes)]


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


def check_features(directory: str) -> list[Check]:
    """What a feature directory holds; every row is read."""
    features = load_features(directory)
    counts = ", ".join(
        f"{name} {len(features.label[name])}" for name in features.domains
    )
    detail = f"{directory}: {features.model}, {len(features.classes)} classes; {counts}"
    return [Check("features", "ok", detail), *doubted("features", features.notes)]


def check_model(config: RunConfig) -> list[Check]:
    """The model, its weights, and a few images encoded with them."""
    spec = EncoderSpec.from_config(config)
    source = spec.source()
    size = "x".join(map(str, source.image_size))
    detail = f"{source.name} with {source.tag}: {size} pixels, {source.activation}"
    checks = [Check("model", "ok", detail), *doubted("model", source.notes)]
    if cached_file(source) is None:
        return [*checks, _not_here(source)]
    clip = FrozenClip.load(spec)
    return [
        *checks,
        _scale(clip),
        *guarded("encoding", lambda: [_encoding(config, clip)]),
    ]


def _not_here(source: ModelSource) -> Check:
    detail = f"{source.tag} of {source.name} is not on this machine"
    if reachable(HUB):
        return Check("weights", "warn", detail, f"the first run loads it from {HUB}")
    return Check("weights", "fail", f"{detail}, nor can {HUB} be reached", OFFLINE_HINT)


def _scale(clip: FrozenClip) -> Check:
    detail = f"loaded: {clip.embed_dim} wide, logit scale {clip.logit_scale:.2f}"
    odd = scale_note(clip.logit_scale)
    return Check("weights", "warn" if odd else "ok", detail, odd or "")


def _encoding(config: RunConfig, clip: FrozenClip) -> Check:
    """Encode a few images as a run would; NaN raises here too."""
    pixels = encode_sample(config, clip)
    precision = clip.precision
    if precision in ("bf16", "fp16"):
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
    except FedClipError:  # reported by the check of the data
        return torch.randn(SAMPLE, 3, *clip.source.image_size)
    return torch.stack([clip.preprocess(image) for image in images])
