"""The features of a run: read from a directory, or encoded once and cached."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

from ..config.schema import RunConfig
from ..data.dataset import ImageDataset
from ..data.folders import load_dataset
from ..data.partition import check_names
from ..data.progress import Progress, silent
from ..ops.kernels import resolve_device
from ..storage.hashes import cache_dir
from .encode import EncodeStats, EncodingJob, encode_once
from .feature_set import FeatureSet, load_features


def open_data(config: RunConfig) -> ImageDataset | FeatureSet:
    """The data of a run, listed or read; raises FedClipError before any work."""
    if config.data.features is not None:
        return load_features(config.data.features)
    return load_dataset(config.data.dataset, config.data.root)


def obtain_features(
    config: RunConfig,
    progress: Progress = silent,
    data: ImageDataset | FeatureSet | None = None,
) -> tuple[FeatureSet, EncodeStats]:
    """The features of a run: from ``data.features``, else encoded once and cached."""
    start = time.perf_counter()
    data = data or open_data(config)
    if isinstance(data, ImageDataset):
        return encode_dataset(data, config, progress)
    count = sum(len(v) for v in data.label.values())
    return data, EncodeStats(count, 0, time.perf_counter() - start)


def encode_dataset(
    dataset: ImageDataset, config: RunConfig, progress: Progress = silent
) -> tuple[FeatureSet, EncodeStats]:
    """The features of any data set by the model of ``config``, through the cache."""
    from ..clip.encoder import EncoderSpec, FrozenClip, fingerprint

    check_names([domain.name for domain in dataset.domains])
    spec = EncoderSpec.from_config(config)
    device = resolve_device(spec.device).type
    key = f"{fingerprint(spec)}|{spec.precision}|{device}"
    job = EncodingJob(
        dataset=dataset,
        model=config.model_name,
        pretrained=Path(config.pretrained).name,
        prompts=config.data.prompts,
        encoder_key=hashlib.sha256(key.encode()).hexdigest(),
        load_encoder=lambda: FrozenClip.load(spec),
        on_bad_image=config.data.on_bad_image,
        notes=spec.source().notes,
    )
    return encode_once(job, cache_dir(), progress)
