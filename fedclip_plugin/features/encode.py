"""Encode once: every image is encoded a single time per encoder, whatever happens.

Every image is identified by the SHA-256 of its bytes, so a renamed, copied or re-split
data set encodes nothing again, one more image costs one more encoding, and other
prompts or classes cost none.  ``store.py`` keeps the features; a file lock keeps two
processes from encoding the same images twice.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip.descriptions import Sets, caption_sets
from ..config.inputs import DESCRIPTIONS
from ..data.doubts import seen_twice
from ..data.progress import Progress, silent
from ..errors import DataError, WeightsError
from . import shards
from .digests import digest_domain
from .directions import doubts, undirected
from .feature_set import FeatureSet
from .missing import Encoder, EncodingJob, Lazy, encode_missing
from .shards import Shard
from .store import FeatureStore

__all__ = [
    "EncodeStats",
    "EncodingJob",
    "encode_captions",
    "encode_once",
    "encode_shard",
    "merge_shards",
]


@dataclass
class EncodeStats:
    """What one call did; ``encoded`` is 0 when everything was in the cache."""

    images: int = 0
    encoded: int = 0
    seconds: float = 0.0
    precision: str = ""


def encode_once(
    job: EncodingJob, cache: Path, progress: Progress = silent
) -> tuple[FeatureSet, EncodeStats]:
    """Features of ``job.dataset``, encoding only the images not yet in ``cache``.

    Raises DataError naming the image that cannot be read (``on_bad_image="skip"``
    leaves it out and lists it), RunError when the cache cannot be written.
    """
    open_job = _open(job, cache, progress)
    store, wanted, encoder = open_job.store, open_job.wanted, open_job.encoder
    rows = store.load(wanted)
    if wanted - rows.keys():
        with store.lock():
            shards.wait_for_shards(store)
            store.remove_leftovers()
            rows = store.load(wanted)  # another process may have encoded them
            missing = open_job.missing(rows)
            rows |= encode_missing(
                job, store, open_job.digests, missing, encoder, progress
            )
    return _finished(open_job, rows)


def encode_shard(
    job: EncodingJob, cache: Path, shard: Shard, progress: Progress = silent
) -> EncodeStats:
    """Encode the images of one shard that are not yet in ``cache``; no captions.

    Raises as :func:`encode_once`, and ConfigError where another process has the shard.
    """
    open_job = _open(job, cache, progress)
    store, own = open_job.store, shard.of(open_job.wanted)
    with shards.encoding(store, shard):
        rows = store.load(own)
        missing = [key for key in open_job.missing(rows) if key in own]
        if missing:
            rows |= encode_missing(
                *(job, store, open_job.digests, missing, open_job.encoder, progress),
                strict=True,
            )
        shards.finish(store, own, own - rows.keys())
    return open_job.stats(len(own))


def merge_shards(
    job: EncodingJob, cache: Path, count: int, progress: Progress = silent
) -> tuple[FeatureSet, EncodeStats]:
    """Features of ``job.dataset`` from ``count`` shards, which were encoded before.

    Raises ConfigError that names the shards that were not, or not to their end.
    """
    open_job = _open(job, cache, progress)
    rows = open_job.store.load(open_job.wanted)
    shards.check_all_there(open_job.store, open_job.wanted, rows, count)
    return _finished(open_job, rows)


@dataclass
class _Open:
    """A job whose images have been listed and hashed, and its place in the cache."""

    job: EncodingJob
    sets: Sets
    store: FeatureStore
    digests: list[list[str]]
    encoder: Lazy
    start: float

    @property
    def wanted(self) -> set[str]:
        """The images; a copy of one is no other."""
        return {digest for domain in self.digests for digest in domain if digest}

    def missing(self, rows: Mapping[str, Tensor]) -> list[str]:
        """The images that are not in ``rows``, in order."""
        listed = (key for domain in self.digests for key in domain if key)
        return list(dict.fromkeys(key for key in listed if key not in rows))

    def stats(self, images: int) -> EncodeStats:
        """What was done so far."""
        seconds = time.perf_counter() - self.start
        return EncodeStats(images, self.encoder.images, seconds, self.store.precision)


def _open(job: EncodingJob, cache: Path, progress: Progress) -> _Open:
    start = time.perf_counter()
    sets = caption_sets(job.dataset.classes, job.prompts)  # their faults come first
    store = FeatureStore(cache / "features" / job.encoder_key[:32])
    skip = job.on_bad_image == "skip"
    digests = [digest_domain(d, cache, progress, skip) for d in job.dataset.domains]
    return _Open(job, sets, store, digests, Lazy(job.load_encoder), start)


def _finished(
    open_job: _Open, rows: dict[str, Tensor]
) -> tuple[FeatureSet, EncodeStats]:
    job, sets, digests = open_job.job, open_job.sets, open_job.digests
    text, logit_scale = _text(sets, open_job.store, open_job.encoder)
    features = _assemble(job, sets, digests, rows, text, logit_scale)
    return features, open_job.stats(sum(len(v) for v in features.label.values()))


# --------------------------------------------------------------------------- assembly


def _text(sets: Sets, store: FeatureStore, encoder: Lazy) -> tuple[Tensor, float]:
    stored = store.load_text(sets)
    if stored is not None:
        return stored
    clip = encoder.get()
    text = encode_captions(clip, sets)
    store.add_text(sets, text, clip.logit_scale)
    return text, clip.logit_scale


def encode_captions(clip: Encoder, sets: Sequence[Sequence[str]]) -> Tensor:
    """Text features (C, D) float32 of the classes' captions, one list a template.

    One template gives raw features; several the mean of their normalised ones, as
    CLIP does (Radford et al. 2021, section 3.1.4); an empty caption counts for nothing.
    """
    if not all(map(all, sets)):
        return _mean_of_some(clip, sets)
    encoded = [clip.encode_text(list(captions)).cpu() for captions in sets]
    if len(encoded) == 1:
        return encoded[0]
    return torch.stack([F.normalize(e, dim=1) for e in encoded]).mean(dim=0)


def _mean_of_some(clip: Encoder, sets: Sequence[Sequence[str]]) -> Tensor:
    """(C, D): the mean of the captions that each class has, of lists with gaps."""
    place = [c for captions in sets for c, text in enumerate(captions) if text]
    texts = [text for captions in sets for text in captions if text]
    encoded = F.normalize(clip.encode_text(texts).cpu(), dim=1)  # (M, D)
    index = torch.tensor(place)
    total = torch.zeros(len(sets[0]), encoded.shape[1]).index_add_(0, index, encoded)
    return total / torch.bincount(index, minlength=len(total))[:, None]


def _assemble(
    job: EncodingJob,
    sets: Sets,
    digests: Sequence[Sequence[str]],
    rows: dict[str, Tensor],
    text: Tensor,
    logit_scale: float,
) -> FeatureSet:
    image, label, files, skipped = {}, {}, {}, []
    for domain, keys in zip(job.dataset.domains, digests):
        readable = [i for i, key in enumerate(keys) if key in rows]
        skipped += [domain.files[i] for i, key in enumerate(keys) if key not in rows]
        if not readable:
            raise DataError(
                f"domain {domain.name!r} has no readable image; check its files, "
                "or leave it out"
            )
        image[domain.name] = torch.stack([rows[keys[i]] for i in readable])
        if len(undirected(image[domain.name])) == len(readable):
            raise WeightsError(
                f"domain {domain.name!r}: {job.model} with {job.pretrained} gives only "
                f"zeros for all {len(readable):,} images, which say nothing: take "
                "another checkpoint, or leave the domain out"
            )
        label[domain.name] = torch.tensor(domain.labels)[readable]
        files[domain.name] = tuple(domain.files[i] for i in readable)
    contents = [[d.name, d.files, k] for d, k in zip(job.dataset.domains, digests)]
    told = job.prompts
    if any(prompt.startswith(DESCRIPTIONS) for prompt in job.prompts):
        told = tuple(text for captions in sets for text in captions)  # not their path
    identity = [job.encoder_key, told, job.dataset.classes, contents]
    prompts = job.prompts
    return FeatureSet(
        model=job.model,
        pretrained=job.pretrained,
        prompt=prompts[0] if len(prompts) == 1 else prompts,
        classes=job.dataset.classes,
        domains=tuple(d.name for d in job.dataset.domains),
        logit_scale=logit_scale,
        embed_dim=text.shape[1],
        key=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        image=image,
        label=label,
        text=text,
        skipped=tuple(skipped),
        notes=(
            *job.dataset.notes,
            *seen_twice(job.dataset, digests),
            *doubts(image, files, text, job.dataset.classes),
            *job.notes,
        ),
        encoder=job.encoder,
        files=files,
    )
