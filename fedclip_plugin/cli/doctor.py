"""What can be checked before a run: versions, machine, model, data, hosts, cache.

``diagnose`` only looks: it never repairs, downloads or prints; the command line does.
Errors become checks too, so that one fault does not hide the next.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .. import capabilities
from ..clip.download import HUB, OFFLINE_HINT, ModelSource, cached_file, reachable
from ..clip.encoder import EncoderSpec, FrozenClip, scale_note
from ..config.schema import RunConfig
from ..data.dataset import ImageDataset
from ..data.folders import load_dataset
from ..data.images import decode_image
from ..errors import FedClipError, translate
from ..features.feature_set import load_features
from ..ops.kernels import cpu_has_bf16, low_precision, resolve_device
from ..storage.hashes import cache_dir

DISTRIBUTION = "fedclip-plugin"
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "safetensors")
HOSTS = {"fedml": "fedml", "flower": "flwr"}  # extra -> distribution

EXTRAS = {
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "hub": ("huggingface_hub", "pyarrow"),
    "lora": ("peft",),
    "tensorboard": ("tensorboard",),
}

SAMPLE = 8  # images that are encoded as a test
GIB = 2**30


@dataclass(frozen=True)
class Check:
    """One finding; ``remedy`` says what to do about a warning or a failure."""

    name: str
    status: str  # ok, warn or fail
    detail: str
    remedy: str = ""


def check_versions() -> list[Check]:
    """Versions of the libraries, against what this distribution asks for."""
    versions = {name: _installed(name) for name in LIBRARIES}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    detail = f"Python {platform.python_version()}, {listed}"
    for requirement in _requirements(DISTRIBUTION):
        wanted = re.fullmatch(r"([\w.-]+)\s*>=\s*([\d.]+)", requirement.strip())
        version = versions.get(wanted[1].replace("-", "_")) if wanted else None
        if wanted and version and _numbers(version) < _numbers(wanted[2]):
            remedy = f"pip install '{requirement.strip()}'"
            return [Check("versions", "fail", detail, remedy)]
    return [Check("versions", "ok", detail)]


def check_torchvision() -> list[Check]:
    """torchvision's operators load only into the torch they were built for."""
    version = _installed("torchvision")
    built_for = next(
        (
            wanted[1]
            for line in _requirements("torchvision")
            if (wanted := re.fullmatch(r"torch\s*\(?==\s*([\d.]+)\)?", line.strip()))
        ),
        None,
    )
    detail = f"torchvision {version} with torch {torch.__version__}"
    remedy = "install torch and torchvision together, from the same index"
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError) as error:
        return [Check("torchvision", "fail", f"{detail}: {error}", remedy)]
    if built_for and _numbers(built_for) != _numbers(torch.__version__):
        detail += f", but it was built for torch {built_for}"
        return [Check("torchvision", "warn", detail, remedy)]
    return [Check("torchvision", "ok", detail)]


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _requirements(distribution: str) -> list[str]:
    try:
        return importlib.metadata.requires(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        return []  # run from a source tree


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 10, 0) of "2.10.0+cu128": enough to compare releases."""
    plain = re.match(r"\d+(?:\.\d+)*", version)
    numbers = [int(part) for part in plain[0].split(".")] if plain else []
    return (*numbers, 0, 0, 0)[:3]


def check_hosts() -> list[Check]:
    """Which host frameworks are installed; imports none of them."""
    checks = []
    for extra, distribution in HOSTS.items():
        version = _installed(distribution)
        absent = f"not installed; optional: pip install '{DISTRIBUTION}[{extra}]'"
        checks.append(Check(f"host {extra}", "ok", version or absent))
    return checks


def check_extras() -> list[Check]:
    """Which optional packages are installed."""
    missing = {
        extra: [name for name in names if _installed(name) is None]
        for extra, names in EXTRAS.items()
    }
    text = ", ".join(
        f"{extra}: {'without ' + ' '.join(names) if names else 'complete'}"
        for extra, names in missing.items()
    )
    return [Check("extras", "ok", text)]


# ----------------------------------------------------------------------------- machine


def check_kernels() -> list[Check]:
    """The processor, and whether it runs the compiled kernels."""
    facts = capabilities()
    bf16 = "with" if cpu_has_bf16() else "without"
    detail = (
        f"{torch.backends.cpu.get_cpu_capability()} {bf16} bf16 instructions, "
        f"{facts['threads']} threads of {os.cpu_count()} processors; "
    )
    if facts["compiled"]:
        detail += f"compiled kernels, {facts['isa']}"
        return [Check("kernels", "ok", detail)]
    detail += f"no compiled kernels: {facts['note']}"
    remedy = "results are the same, only slower; reinstall with a C++ compiler "
    remedy += "and Python's headers (Debian: apt install g++ python3-dev)"
    return [Check("kernels", "warn", detail, remedy)]


def check_device(requested: str) -> list[Check]:
    """The device of a run; a GPU that this PyTorch cannot use is a warning."""
    device = resolve_device(requested)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        memory = properties.total_memory / GIB
        note = capabilities()["cuda_note"]
        kernels = f"no CUDA kernels: {note}" if note else "CUDA kernels"
        detail = f"{device}: {properties.name}, {memory:.0f} GiB"
        return [Check("device", "ok", f"{detail}, {low_precision(device)}; {kernels}")]
    idle = requested == "auto" and shutil.which("nvidia-smi") is not None
    if idle and torch.version.cuda is None:
        detail = f"cpu: PyTorch {torch.__version__} is built without CUDA"
        remedy = "there seems to be an NVIDIA GPU: install a CUDA build of PyTorch"
        return [Check("device", "warn", detail, remedy)]
    return [Check("device", "ok", "cpu")]


def check_memory() -> list[Check]:
    """Main memory that is left."""
    free = _free_memory()
    if free is None:
        return [Check("memory", "ok", "unknown on this system")]
    detail = f"{free / GIB:.1f} GiB free"
    if free < 2 * GIB:
        remedy = "ViT-B/32 needs 2 GiB: close programs, or use a feature directory"
        return [Check("memory", "warn", detail, remedy)]
    return [Check("memory", "ok", detail)]


def _free_memory() -> int | None:
    """Bytes available to this process: of the machine, or its container's share."""
    try:
        text = Path("/proc/meminfo").read_text()
        free = int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024
    except (OSError, IndexError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or "max"
        return free
    return min(free, limit - used)


def check_cache() -> list[Check]:
    """Whether the cache directory can be written, and how much fits."""
    directory = cache_dir()
    remedy = "set FEDCLIP_CACHE to a directory of yours"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory):
            free = shutil.disk_usage(directory).free
    except OSError as error:
        detail = f"{directory} is not writable: {error.strerror}"
        return [Check("cache", "fail", detail, remedy)]
    detail = f"{directory}, {free / GIB:.1f} GiB free"
    if free < GIB:
        return [Check("cache", "warn", detail, remedy)]
    return [Check("cache", "ok", detail)]


def diagnose(config: RunConfig) -> list[Check]:
    """Check everything that a run of ``config`` depends on; changes nothing."""
    features = config.data.features
    parts: dict[str, Callable[[], Sequence[Check]]] = {
        "versions": check_versions,
        "torchvision": check_torchvision,
        "kernels": check_kernels,
        "device": lambda: check_device(config.model.device),
        "memory": check_memory,
        "cache": check_cache,
    }
    if features is None:
        parts["data"] = lambda: _data(_dataset(config))
        parts["model"] = lambda: _model(config)
    else:
        parts["features"] = lambda: _features(features)
    parts["options"] = lambda: _notes("options", config.notes)
    parts["hosts"] = check_hosts
    parts["extras"] = check_extras
    return [check for name, part in parts.items() for check in _guarded(name, part)]


def _guarded(name: str, part: Callable[[], Sequence[Check]]) -> Sequence[Check]:
    try:
        return part()
    except FedClipError as error:
        detail, _, remedy = str(error).partition("; ")
        return [Check(name, "fail", detail, remedy)]
    except Exception as error:  # a broken installation can fail anywhere
        if known := translate(error):
            return [Check(name, "fail", str(known))]
        return [Check(name, "fail", f"{type(error).__name__}: {error}")]


# ----------------------------------------------------------------------- data and model


def _dataset(config: RunConfig) -> ImageDataset:
    return load_dataset(config.data.dataset, config.data.root)


def _notes(name: str, notes: Sequence[str]) -> list[Check]:
    split = [note.partition("; ") for note in notes]
    return [
        Check(
            f"{name} note{f' {i}' if i else ''}", "warn", detail, remedy or "see docs"
        )
        for i, (detail, _, remedy) in enumerate(split)
    ]


def _data(dataset: ImageDataset) -> list[Check]:
    return [_describe_data(dataset), *_notes("data", dataset.notes)]


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
    return [Check("features", "ok", detail), *_notes("features", features.notes)]


def _model(config: RunConfig) -> list[Check]:
    spec = EncoderSpec.from_config(config)
    source = spec.source()
    size = "x".join(map(str, source.image_size))
    detail = f"{source.name} with {source.tag}: {size} pixels, {source.activation}"
    checks = [Check("model", "ok", detail), *_notes("model", source.notes)]
    if cached_file(source) is None:
        return [*checks, _not_here(source)]
    clip = FrozenClip.load(spec)
    return [
        *checks,
        _scale(clip),
        *_guarded("encoding", lambda: [_encoding(config, clip)]),
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
