"""Encode the images that the cache lacks: on one device, or dealt out to several."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import PIL.Image
import torch
from torch import Tensor

from ..clip.encoder import CHECKED_IMAGES
from ..data.dataset import ImageDataset, ImageDomain
from ..data.images import decode_image
from ..data.progress import Progress
from ..errors import ConfigError, DataError
from .store import FeatureStore, ShardWriter

SAMPLE = CHECKED_IMAGES  # images of the first batch
CPU_BATCH = 16  # a ViT-B/32 takes 20 % longer per image at 64: its activations spill
CUDA_BATCH = 256
AHEAD = 4  # batches that are decoded while one is encoded
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
    ``encoder`` what was resolved.  ``more_encoders`` are the same on further devices.
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
    more_encoders: tuple[Callable[[], Encoder], ...] = ()


class Lazy:
    """The encoder, loaded at its first use; counts the images that were encoded."""

    def __init__(self, load: Callable[[], Encoder]) -> None:
        self._load = load
        self._encoder: Encoder | None = None
        self.images = 0

    def get(self) -> Encoder:
        """It, loaded."""
        if self._encoder is None:
            self._encoder = self._load()
        return self._encoder


@dataclass
class _Work:
    """What the devices share: the images, and how far all of them are."""

    job: EncodingJob
    store: FeatureStore
    images: dict[str, tuple[ImageDomain, int]]
    total: int
    progress: Progress
    strict: bool  # other machines encode other images: precision is one for all
    done: dict[str, Tensor] = field(default_factory=dict)
    precision: str = ""
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)
    reading: threading.Lock = field(default_factory=threading.Lock)

    def add(self, keys: Sequence[str], features: Tensor) -> None:
        """Take in what a device has encoded."""
        with self.lock:
            self.done.update(zip(keys, features))
            self.progress("encode", len(self.done), self.total)

    def settle(self, clip: Encoder, pixels: Tensor) -> None:
        """The precision of all devices: what the first one finds on the sample."""
        with self.lock:
            if self.precision:
                if clip.precision == "auto" != self.precision:
                    clip.resolve_precision(pixels)
                if clip.precision != self.precision:
                    raise ConfigError(
                        f"{clip.device} encodes in {clip.precision} and another device "
                        f"in {self.precision}: set --precision"
                    )
                return
            self.precision = clip.resolve_precision(pixels)
            known = self.store.precision
            if self.strict and known not in ("unknown", self.precision):
                raise ConfigError(
                    f"this machine encodes in {self.precision}, and another shard was "
                    f"encoded in {known}: set --precision on every machine"
                )
            self.store.precision = self.precision


def encode_missing(
    job: EncodingJob,
    store: FeatureStore,
    digests: Sequence[Sequence[str]],
    missing: Sequence[str],
    encoder: Lazy,
    progress: Progress,
    strict: bool = False,
) -> dict[str, Tensor]:
    """Features (D,) by digest of the images ``missing``, and the cache with them.

    Every device takes an equal share of them.  What is encoded is saved whatever
    happens.
    """
    images: dict[str, tuple[ImageDomain, int]] = {}
    for domain, keys in zip(job.dataset.domains, digests):
        for i, key in enumerate(keys):
            if key:
                images.setdefault(key, (domain, i))
    work = _Work(job, store, images, len(missing), progress, strict)
    enough = -(-len(missing) // SAMPLE)  # for fewer images a device is not loaded
    loads = [encoder.get, *job.more_encoders][: max(1, enough)]
    count = len(loads)
    try:
        if count == 1:
            _encode_part(work, encoder.get, missing)
        else:
            with ThreadPoolExecutor(max_workers=count) as pool:
                parts = [
                    pool.submit(_encode_part, work, load, missing[i::count])
                    for i, load in enumerate(loads)
                ]
                try:
                    for part in parts:
                        part.result()
                except BaseException:
                    work.stopped = True
                    raise
    finally:
        encoder.images += len(work.done)
    return work.done


def _encode_part(work: _Work, load: Callable[[], Encoder], part: Sequence[str]) -> None:
    """Encode the images ``part`` on one device."""
    clip, new, missing = load(), ShardWriter(work.store), dict.fromkeys(part)
    size = CUDA_BATCH if clip.device.type == "cuda" else CPU_BATCH
    # Chosen among all images: an interrupted run, and every device, decide the same.
    step = max(1, len(work.images) // SAMPLE)
    sample = list(work.images)[::step][:SAMPLE] if clip.precision == "auto" else []
    try:
        batches = _batches(sample, list(missing), size)
        for number, (keys, pixels) in enumerate(_decode(work, clip, batches)):
            if work.stopped:
                return
            if not number:
                work.settle(clip, pixels)
            rows = [i for i, key in enumerate(keys) if key in missing]
            if not rows:
                continue  # a sample that is all in the cache
            keys = [keys[i] for i in rows]
            features = _encode(clip, pixels[rows], size)
            new.extend(keys, features)
            work.add(keys, features)
    except BaseException:
        work.stopped = True
        raise
    finally:
        new.flush()  # neither an unreadable image nor Ctrl-C loses encoded ones


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
    work: _Work, clip: Encoder, batches: Iterator[list[str]]
) -> Iterator[tuple[list[str], Tensor]]:
    """Batches of pixels (B, 3, S, S), decoded ahead of the encoder in a thread."""

    def batch(keys: list[str]) -> tuple[list[str], list[Tensor]]:
        decoded, pixels = [], []
        for key in keys:
            domain, i = work.images[key]
            try:
                with work.reading:  # a data set need not be read by several at once
                    data = domain.read(i)
                image = decode_image(data, domain.files[i])
            except DataError as error:
                if work.job.on_bad_image == "fail":
                    raise
                _log.warning("skipped: %s", error)
                continue
            decoded.append(key)
            pixels.append(clip.preprocess(image))
        return decoded, pixels

    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = [pool.submit(batch, keys) for keys in islice(batches, AHEAD)]
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
