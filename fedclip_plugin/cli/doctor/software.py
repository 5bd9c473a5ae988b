"""The installed libraries: whether they are what is needed, and fit each other."""

from __future__ import annotations

import importlib
import importlib.metadata
import platform
import re

import torch

from .check import Check

DISTRIBUTION = "fedclip-plugin"
LIBRARIES = ("torch", "torchvision", "open_clip_torch", "numpy", "safetensors")
HOSTS = {
    "fedml": "fedml",
    "flower": "flwr",
    "nvflare": "nvflare",
}  # extra -> distribution

EXTRAS = {
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "hub": ("huggingface_hub", "pyarrow"),
    "lora": ("peft",),
    "tensorboard": ("tensorboard",),
}


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
