"""Encode once: a content-addressed store of image features, one per encoder.

Every image is known by the SHA-256 of its bytes, so a renamed, copied or re-split
data set encodes nothing again, and one more image costs one more encoding.  Features
are kept in shards of at most ``SHARD_ROWS`` rows, each written in one step and
checked when read: a killed run goes on after its last shard, and a damaged shard
costs only its own images.  A file lock keeps two processes from encoding the same
images twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from filelock import FileLock, Timeout
from torch import Tensor

from .dataset import ImageDataset, ImageDomain
from .errors import DataError
from .features import FeatureSet
from .images import decode_image
from .prompts import captions
from .storage import DamagedFileError, read_tensors, write_json, write_tensors

SHARD_ROWS = 512
SHARD_SECONDS = 10.0  # a slow encoder keeps its work at least this often
BATCH = 64
_log = logging.getLogger("fedclip")

Progress = Callable[[str, int, int], None]
"""``progress(what, done, total)``: called as work goes on."""


def silent(what: str, done: int, total: int) -> None:
    """A Progress that shows nothing."""


class Encoder(Protocol):
    """What the cache needs of a FrozenClip."""

    embed_dim: int
    logit_scale: float
    precision: str

    def preprocess(self, image: object) -> Tensor: ...  # noqa: D102
    def encode_images(self, pixels: Tensor) -> Tensor: ...  # noqa: D102
    def encode_text(self, captions: Sequence[str]) -> Tensor: ...  # noqa: D102
    def resolve_precision(self, pixels: Tensor) -> str: ...  # noqa: D102


@dataclass(frozen=True)
class EncodingJob:
    """What to encode: the data set, the encoder (loaded only when needed), prompts.

    ``encoder_key`` identifies weights, model configuration, preprocessing and the
    precision asked for; equal keys mean equal features.
    """

    dataset: ImageDataset
    model: str
    pretrained: str
    prompts: tuple[str, ...]
    encoder_key: str
    load_encoder: Callable[[], Encoder]
    on_bad_image: str = "fail"


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
    store = FeatureStore(cache / "features" / job.encoder_key[:32])
    skip = job.on_bad_image == "skip"
    digests = [digest_domain(d, cache, progress, skip) for d in job.dataset.domains]
    wanted = {digest for domain in digests for digest in domain if digest}
    encoder = _Lazy(job.load_encoder)
    found = store.load(wanted)
    if wanted - found.keys():
        with store.lock():
            found = store.load(wanted)  # another process may have encoded them
            found.update(_encode_missing(job, store, digests, found, encoder, progress))
    stats.encoded = encoder.images
    text, logit_scale = store.text(_caption_sets(job), encoder)
    features = _assemble(job, digests, found, text, logit_scale)
    stats.images = sum(len(v) for v in features.label.values())
    stats.seconds = time.perf_counter() - start
    stats.precision = store.precision()
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


# ------------------------------------------------------------------------- the store


class FeatureStore:
    """Shards of one encoder under ``directory``; safe under several processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def lock(self) -> FileLock:
        """The lock to hold while encoding; freed by the system if its holder dies."""
        self.directory.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.directory / "lock")
        try:
            lock.acquire(timeout=0.1)
            lock.release()
        except Timeout:
            _log.warning("another process is encoding these images; waiting for it")
        return lock

    def load(self, wanted: set[str]) -> dict[str, Tensor]:
        """Stored features (D,) by digest; a damaged shard is dropped, and said so."""
        found: dict[str, Tensor] = {}
        for path in sorted(self.directory.glob("shard-*.safetensors")):
            try:
                tensors, _ = read_tensors(path)
                keys = [bytes(row).hex() for row in tensors["digest"].numpy()]
                rows = tensors["image"].float()
            except FileNotFoundError:
                continue  # dropped by another process meanwhile
            except (DamagedFileError, KeyError) as error:
                _log.warning("%s; its images are encoded again", error)
                path.unlink(missing_ok=True)
                continue
            found.update((k, r) for k, r in zip(keys, rows) if k in wanted)
        return found

    def add(self, digests: Sequence[str], image: Tensor) -> None:
        """Write one shard: ``image`` (N, D) float32 for N digests."""
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:24]
        raw = torch.tensor([list(bytes.fromhex(d)) for d in digests], dtype=torch.uint8)
        write_tensors(
            self.directory / f"shard-{name}.safetensors",
            {"digest": raw, "image": image},
        )

    def text(
        self, captions_of: Sequence[Sequence[str]], encoder: _Lazy
    ) -> tuple[Tensor, float]:
        """Text features (C, D) and the logit scale, encoded at most once."""
        key = hashlib.sha256(json.dumps(captions_of).encode()).hexdigest()[:32]
        path = self.directory / f"text-{key}.safetensors"
        try:
            tensors, meta = read_tensors(path)
            return tensors["text"], float(meta["logit_scale"])
        except FileNotFoundError:
            pass
        except (DamagedFileError, KeyError, ValueError) as error:
            _log.warning("%s; the captions are encoded again", error)
        clip = encoder.get()
        sets = [clip.encode_text(list(c)).cpu() for c in captions_of]
        text = sets[0] if len(sets) == 1 else _ensemble(sets)
        write_tensors(path, {"text": text}, {"logit_scale": repr(clip.logit_scale)})
        return text, clip.logit_scale

    def precision(self) -> str:
        """The precision in which this store's images were encoded."""
        try:
            saved = json.loads((self.directory / "encoder.json").read_text())
            return str(saved["precision"])
        except (OSError, ValueError, KeyError):
            return "unknown"


def _ensemble(sets: Sequence[Tensor]) -> Tensor:
    """Mean of the normalised text features of every template (Radford 2021, 3.1.4)."""
    return torch.stack([F.normalize(s, dim=1) for s in sets]).mean(dim=0)


def _caption_sets(job: EncodingJob) -> list[list[str]]:
    return [captions(job.dataset.classes, prompt) for prompt in job.prompts]


# -------------------------------------------------------------------------- encoding


def _encode_missing(
    job: EncodingJob,
    store: FeatureStore,
    digests: Sequence[Sequence[str]],
    found: dict[str, Tensor],
    encoder: _Lazy,
    progress: Progress,
) -> dict[str, Tensor]:
    missing: dict[str, tuple[ImageDomain, int]] = {}
    for domain, keys in zip(job.dataset.domains, digests):
        for i, key in enumerate(keys):
            if key and key not in found:
                missing.setdefault(key, (domain, i))
    clip, new = encoder.get(), _Shard(store)
    done: dict[str, Tensor] = {}
    try:
        for keys, pixels in _decode(job, clip, missing):
            if not done:
                precision = clip.resolve_precision(pixels)
                write_json(store.directory / "encoder.json", {"precision": precision})
            features = clip.encode_images(pixels).float().cpu()
            new.extend(keys, features)
            done.update(zip(keys, features))
            encoder.images += len(keys)
            progress("encode", len(done), len(missing))
    finally:
        new.flush()  # an unreadable image or Ctrl-C costs nothing already encoded
    return done


class _Shard:
    """Rows waiting to be written; flushed by count and by time."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.keys: list[str] = []
        self.rows: list[Tensor] = []
        self.since = time.monotonic()

    def extend(self, keys: Sequence[str], features: Tensor) -> None:
        self.keys.extend(keys)
        self.rows.append(features)
        late = time.monotonic() - self.since > SHARD_SECONDS
        if len(self.keys) >= SHARD_ROWS or late:
            self.flush()

    def flush(self) -> None:
        if self.keys:
            self.store.add(self.keys, torch.cat(self.rows))
        self.keys, self.rows, self.since = [], [], time.monotonic()


def _decode(
    job: EncodingJob, clip: Encoder, missing: dict[str, tuple[ImageDomain, int]]
) -> Iterator[tuple[list[str], Tensor]]:
    """Batches of pixels (B, 3, S, S), decoded ahead of the encoder in a thread."""

    def batch(keys: list[str]) -> tuple[list[str], list[Tensor]]:
        kept, pixels = [], []
        for key in keys:
            domain, i = missing[key]
            try:
                image = decode_image(domain.read(i), domain.files[i])
            except DataError as error:
                if job.on_bad_image == "fail":
                    raise
                _log.warning("skipped: %s", error)
                continue
            kept.append(key)
            pixels.append(clip.preprocess(image))
        return kept, pixels

    todo = iter(missing)
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = [pool.submit(batch, k) for k in _take(todo, 2)]
        while ahead:
            kept, pixels = ahead.pop(0).result()
            ahead.extend(pool.submit(batch, k) for k in _take(todo, 1))
            if kept:
                yield kept, torch.stack(pixels)


def _take(keys: Iterator[str], batches: int) -> list[list[str]]:
    chunks = (list(islice(keys, BATCH)) for _ in range(batches))
    return [chunk for chunk in chunks if chunk]


# ----------------------------------------------------------------------- fingerprints


def digest_domain(
    domain: ImageDomain, cache: Path, progress: Progress = silent, skip: bool = False
) -> list[str]:
    """SHA-256 of every image's bytes, remembered by the file's change stamp.

    With ``skip`` an unreadable file gets an empty digest instead of a DataError.
    """
    memo_path = cache / "digests" / (_name_key(domain) + ".json")
    memo = _read_memo(memo_path) if domain.stat else {}
    digests, fresh = [], False
    for i, file in enumerate(domain.files):
        stamp = domain.stat(i) if domain.stat else None
        known = memo.get(file)
        if stamp is None or known is None or known[0] != stamp:
            known = (stamp or "", _digest(domain, i, skip))
            memo[file], fresh = known, True
            if i % 512 == 0:
                progress(f"hash {domain.name}", i, len(domain.files))
        digests.append(known[1])
    if domain.stat and fresh:
        write_json(memo_path, memo)
    return digests


def _digest(domain: ImageDomain, i: int, skip: bool) -> str:
    try:
        return hashlib.sha256(domain.read(i)).hexdigest()
    except DataError as error:
        if not skip:
            raise
        _log.warning("skipped: %s", error)
        return ""


def _name_key(domain: ImageDomain) -> str:
    first = domain.stat(0) if domain.stat and domain.files else ""
    names = "\n".join((domain.name, first, *domain.files[:1]))
    return hashlib.sha256(names.encode()).hexdigest()[:32]


def _read_memo(path: Path) -> dict[str, tuple[str, str]]:
    try:
        saved = json.loads(path.read_text())
        return {file: (str(stamp), str(sha)) for file, (stamp, sha) in saved.items()}
    except (OSError, ValueError, AttributeError, TypeError):
        return {}  # only a shortcut: without it the files are hashed again


# --------------------------------------------------------------------------- assembly


def _assemble(
    job: EncodingJob,
    digests: Sequence[Sequence[str]],
    found: dict[str, Tensor],
    text: Tensor,
    logit_scale: float,
) -> FeatureSet:
    image, label, skipped = {}, {}, []
    for domain, keys in zip(job.dataset.domains, digests):
        kept = [i for i, key in enumerate(keys) if key in found]
        skipped += [domain.files[i] for i, key in enumerate(keys) if key not in found]
        if not kept:
            raise DataError(
                f"domain {domain.name!r} has no readable image; check its files, "
                "or leave it out"
            )
        image[domain.name] = torch.stack([found[keys[i]] for i in kept])
        label[domain.name] = torch.from_numpy(domain.labels)[kept]
    identity = [job.encoder_key, job.prompts, job.dataset.classes]
    identity += [[d.name, d.files, k] for d, k in zip(job.dataset.domains, digests)]
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
    )
