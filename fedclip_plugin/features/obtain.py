"""The features of a run: read from a directory, or encoded once and cached."""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from ..clip.descriptions import unused
from ..config.inputs import DataConfig
from ..config.schema import RunConfig
from ..data.dataset import ImageDataset
from ..data.folders import list_images
from ..data.partition import check_names, resolve_target
from ..data.progress import Progress, silent
from ..data.split_file import split_notes
from ..errors import ConfigError, GpuMemoryError
from ..ops.kernels import resolve_devices
from ..storage.hashes import cache_dir
from .choice import halved, with_listed
from .encode import (
    EncodeStats,
    EncodingJob,
    encode_once,
    encode_shard,
    merge_shards,
)
from .feature_set import FeatureSet, load_features
from .shards import Shard

if TYPE_CHECKING:
    from ..clip.encoder import EncoderSpec

_log = logging.getLogger("fedclip")


def open_data(config: RunConfig) -> ImageDataset | FeatureSet:
    """The data of a run, listed or read; raises FedClipError before any work.

    Of the classes that it is about; both halves of them, where one is trained on.
    """
    if config.data.features is not None:
        if config.data.class_names is not None:
            raise ConfigError(
                f"--class-names {config.data.class_names} comes too late for the "
                f"captions of --features {config.data.features}: give it to `fedclip "
                "features`"
            )
        return with_listed(load_features(config.data.features), config.data)
    dataset = list_images(config.data)
    return with_listed(dataset, config.data)


def obtain_features(
    config: RunConfig,
    progress: Progress = silent,
    data: ImageDataset | FeatureSet | None = None,
) -> tuple[FeatureSet, EncodeStats]:
    """The features of a run: from ``data.features``, else encoded once and cached."""
    start = time.perf_counter()
    data = data or open_data(config)
    if isinstance(data, ImageDataset):
        features, stats = encode_dataset(data, config, progress)
    else:
        features, count = data, sum(len(v) for v in data.label.values())
        stats = EncodeStats(count, 0, time.perf_counter() - start)
    features = halved(features, config.data)
    notes = (*features.notes, *notes_on_split(features, config.data))
    return replace(features, notes=notes), stats


def notes_on_prompts(dataset: ImageDataset, data: DataConfig) -> list[str]:
    """Lines on descriptions of no class, but for those that were left out by choice."""
    return [] if data.classes else unused(dataset.classes, data.prompts)


def notes_on_split(features: FeatureSet, data: DataConfig) -> list[str]:
    """Lines on images of ``--split`` that are not there, or that it does not name."""
    if data.split is None:
        return []
    held = None  # of several targets each is a client's domain in another run
    if len(data.targets) == 1:
        held = resolve_target(features.domains, data.targets[0])
    return split_notes(data.split, features.files, bool(data.classes), held)


def encode_dataset(
    dataset: ImageDataset, config: RunConfig, progress: Progress = silent
) -> tuple[FeatureSet, EncodeStats]:
    """The features of any data set by the model of ``config``, through the cache.

    Where ``--device auto`` finds a GPU whose memory is full, the CPU encodes, which a
    note says.
    """
    from ..clip.encoder import EncoderSpec

    check_names([domain.name for domain in dataset.domains])
    spec = EncoderSpec.from_config(config)
    try:
        return encode_once(_job(dataset, config, spec), cache_dir(), progress)
    except GpuMemoryError as error:
        if spec.device != "auto":
            raise
        note = f"encoded on the CPU, as --device auto may: {error}"
    _log.warning("%s", note)
    job = _job(dataset, config, replace(spec, device="cpu"))
    return encode_once(replace(job, notes=(*job.notes, note)), cache_dir(), progress)


def obtain_shard(
    config: RunConfig, shard: Shard, progress: Progress = silent
) -> EncodeStats:
    """Encode one shard of the images of a run into the cache."""
    job = _job_of_images(config, f"--shard {shard}")
    return encode_shard(job, cache_dir(), shard, progress)


def obtain_merged(
    config: RunConfig, count: int, progress: Progress = silent
) -> tuple[FeatureSet, EncodeStats]:
    """The features of a run from ``count`` shards; ConfigError names a missing one."""
    job = _job_of_images(config, f"--merge {count}")
    features, stats = merge_shards(job, cache_dir(), count, progress)
    return halved(features, config.data), stats


def _job_of_images(config: RunConfig, flag: str) -> EncodingJob:
    from ..clip.encoder import EncoderSpec

    dataset = open_data(config)
    if not isinstance(dataset, ImageDataset):
        raise ConfigError(f"{flag}: --features {config.data.features} is encoded")
    check_names([domain.name for domain in dataset.domains])
    return _job(dataset, config, EncoderSpec.from_config(config))


def _job(dataset: ImageDataset, config: RunConfig, spec: EncoderSpec) -> EncodingJob:
    from ..clip.encoder import EncoderSpec, FrozenClip, fingerprint, record

    source = spec.source()
    devices = resolve_devices(spec.device)
    key = f"{fingerprint(spec)}|{spec.precision}|{devices[0].type}"
    first, others = spec, list[EncoderSpec]()
    if len(devices) > 1:
        first, *others = [replace(spec, device=str(d)) for d in devices]
    return EncodingJob(
        dataset=dataset,
        model=source.asked,
        pretrained=source.tag,
        prompts=config.data.prompts,
        encoder_key=hashlib.sha256(key.encode()).hexdigest(),
        load_encoder=partial(FrozenClip.load, first),
        more_encoders=tuple(partial(FrozenClip.load, other) for other in others),
        on_bad_image=config.data.on_bad_image,
        notes=(*source.notes, *notes_on_prompts(dataset, config.data)),
        encoder=record(source),
    )
