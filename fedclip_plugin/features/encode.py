"""Encode once: every image is encoded a single time per encoder, whatever happens.

Every image is identified by the SHA-256 of its bytes, so a renamed, copied or re-split
data set encodes nothing again, one more image costs one more encoding, and other
prompts or classes cost none.  ``store.py`` keeps the features; a file lock keeps two
processes from encoding the same images twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

import PIL.Image
import torch
import torch.nn.functional as F
from torch import Tensor

from ..clip.descriptions import Sets, caption_sets
from ..config.inputs import DESCRIPTIONS
from ..data.dataset import ImageDataset, ImageDomain
from ..data.doubts import seen_twice
from ..data.images import decode_image
from ..data.listing import some
from ..data.progress import Progress, silent
from ..errors import DataError
from .digests import digest_domain
from .feature_set import FeatureSet
from .store import FeatureStore, ShardWriter

SAMPLE = 64  # images of the first batch
CPU_BATCH = 16  # a ViT-B/32 takes 20 % longer per image at 64: its activations spill
CUDA_BATCH = 256
_log = logging.getLogger("fedclip")


class Encoder(Protocol):
    """What the cache needs of a FrozenClip."""

    embed_dim: int
    logit_scale: float
    precision: str
    device: torch.device
    preprocess: Callable[[PIL.Image.Image], Tensor]

    def encode_images(self, pixels: Tensor) -> Tensor: ...  # noqa: D102
    def encode_text(self, captions: Sequence[str]) -> Tensor: ...  # noqa: D102
    def resolve_precision(self, pixels: Tensor) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class EncodingJob:
    """What to encode: the data set, the encoder (loaded only when needed), prompts.

    ``encoder_key`` identifies weights, model configuration, preprocessing and the
    precision asked for; equal keys mean equal features.  ``notes`` are on the model,
    ``encoder`` what was resolved.
    """

    dataset: ImageDataset
    model: str
    pretrained: str
    prompts: tuple[str, ...]
    encoder_key: str
    load_encoder: Callable[[], Encoder]
    on_bad_image: str = "fail"
    notes: tuple[str, ...] = ()
    encoder: Mapping[str, str] = field(default_factory=dict)


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
    start, stats = time.perf_counter(), EncodeStats()
    sets = caption_sets(job.dataset.classes, job.prompts)  # their faults come first
    store = FeatureStore(cache / "features" / job.encoder_key[:32])
    skip = job.on_bad_image == "skip"
    digests = [digest_domain(d, cache, progress, skip) for d in job.dataset.domains]
    wanted = {digest for domain in digests for digest in domain if digest}
    encoder = _Lazy(job.load_encoder)
    rows = store.load(wanted)
    if wanted - rows.keys():
        with store.lock():
            store.remove_leftovers()
            rows = store.load(wanted)  # another process may have encoded them
            rows.update(_encode_missing(job, store, digests, rows, encoder, progress))
    stats.encoded = encoder.images
    text, logit_scale = _text(sets, store, encoder)
    features = _assemble(job, sets, digests, rows, text, logit_scale)
    stats.images = sum(len(v) for v in features.label.values())
    stats.seconds = time.perf_counter() - start
    stats.precision = store.precision
    return features, stats


class _Lazy:
    """The encoder, loaded at its first use; counts the images it encoded."""

    def __init__(self, load: Callable[[], Encoder]) -> None:
        self._load = load
        self._encoder: Encoder | None = None
        self.images = 0

    def get(self) -> Encoder:
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder


# -------------------------------------------------------------------------- encoding


def _encode_missing(
    job: EncodingJob,
    store: FeatureStore,
    digests: Sequence[Sequence[str]],
    stored: dict[str, Tensor],
    encoder: _Lazy,
    progress: Progress,
) -> dict[str, Tensor]:
    images: dict[str, tuple[ImageDomain, int]] = {}
    for domain, keys in zip(job.dataset.domains, digests):
        for i, key in enumerate(keys):
            if key:
                images.setdefault(key, (domain, i))
    missing = dict.fromkeys(key for key in images if key not in stored)
    clip, new = encoder.get(), ShardWriter(store)
    size = CUDA_BATCH if clip.device.type == "cuda" else CPU_BATCH
    # Chosen among all images: an interrupted run must decide the same.
    step = max(1, len(images) // SAMPLE)
    sample = list(images)[::step][:SAMPLE] if clip.precision == "auto" else []
    done: dict[str, Tensor] = {}
    try:
        batches = _batches(sample, list(missing), size)
        for number, (keys, pixels) in enumerate(_decode(job, clip, images, batches)):
            if not number:
                store.precision = clip.resolve_precision(pixels)
            rows = [i for i, key in enumerate(keys) if key in missing]
            if not rows:
                continue  # a sample that is all in the cache
            keys = [keys[i] for i in rows]
            features = _encode(clip, pixels[rows], size)
            new.extend(keys, features)
            done.update(zip(keys, features))
            encoder.images += len(keys)
            progress("encode", len(done), len(missing))
    finally:
        new.flush()  # neither an unreadable image nor Ctrl-C loses encoded ones
    return done


def _encode(clip: Encoder, pixels: Tensor, size: int) -> Tensor:
    """Features (N, D) float32 of pixels (N, 3, S, S), by batches of exactly ``size``.

    Matrix products round by the number of rows: so an image has the same bits whatever
    is encoded with it, and however often a run was interrupted.
    """
    features = []
    for part in pixels.split(size):  # (B, 3, S, S), B <= size
        more = part[-1:].expand(size - len(part), *part.shape[1:])
        encoded = clip.encode_images(torch.cat([part, more]))  # (size, D)
        features.append(encoded[: len(part)].float().cpu())
    return torch.cat(features)


def _decode(
    job: EncodingJob,
    clip: Encoder,
    images: dict[str, tuple[ImageDomain, int]],
    batches: Iterator[list[str]],
) -> Iterator[tuple[list[str], Tensor]]:
    """Batches of pixels (B, 3, S, S), decoded ahead of the encoder in a thread."""

    def batch(keys: list[str]) -> tuple[list[str], list[Tensor]]:
        decoded, pixels = [], []
        for key in keys:
            domain, i = images[key]
            try:
                image = decode_image(domain.read(i), domain.files[i])
            except DataError as error:
                if job.on_bad_image == "fail":
                    raise
                _log.warning("skipped: %s", error)
                continue
            decoded.append(key)
            pixels.append(clip.preprocess(image))
        return decoded, pixels

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = [pool.submit(batch, keys) for keys in islice(batches, 4)]
        while ahead:
            decoded, pixels = ahead.pop(0).result()
            ahead.extend(pool.submit(batch, keys) for keys in islice(batches, 1))
            if decoded:
                yield decoded, torch.stack(pixels)


def _batches(sample: list[str], keys: list[str], size: int) -> Iterator[list[str]]:
    """First a sample of all domains, which decides the precision, then the rest."""
    first = set(sample)
    rest = (key for key in keys if key not in first)
    if sample:
        yield sample
    while batch := list(islice(rest, size)):
        yield batch


# --------------------------------------------------------------------------- assembly


def _text(sets: Sets, store: FeatureStore, encoder: _Lazy) -> tuple[Tensor, float]:
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
            *_alike(job.dataset.classes, text),
            *job.notes,
        ),
        encoder=job.encoder,
        files=files,
    )


def _alike(classes: Sequence[str], text: Tensor) -> Iterator[str]:
    """Classes that no image can be told apart by: their captions are encoded alike."""
    groups: dict[bytes, list[str]] = {}
    for name, row in zip(classes, text):
        groups.setdefault(row.numpy().tobytes(), []).append(name)
    if alike := [name for group in groups.values() if group[1:] for name in group]:
        yield (
            f"the captions of {some(alike)} are encoded alike, so that nothing tells "
            "these classes apart; shorten --prompt, which is cut at the model's "
            "context, or rename the folders"
        )
