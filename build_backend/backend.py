"""PEP 517 backend: setuptools, compiling against the torch of the target environment.

The kernels need torch's headers to compile.  pip builds in an isolated environment
that cannot see the packages of the environment it installs into, and naming torch in
``build-system.requires`` would download gigabytes beside a torch that is already
there.  So this backend puts the target's site-packages at the *end* of ``sys.path``
(what pip put in the isolated environment still wins), and asks for torch only where
the target has none that is new enough.  The two need not be of one version: the
kernels use LibTorch's stable ABI.
"""

from __future__ import annotations

import os
import re
import shutil
import site
import sys
from collections.abc import Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from setuptools import build_meta

ROOT = Path(__file__).resolve().parents[1]
Settings = Mapping[str, Any] | None


def _torch_requirement() -> str:
    """``torch>=X.Y`` as pyproject.toml has it (tomllib only came with Python 3.11)."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.search(r'"(torch>=\d+\.\d+)"', text)
    if found is None:
        raise RuntimeError("pyproject.toml: no dependency of the form torch>=X.Y")
    return found.group(1)


TORCH = _torch_requirement()


def _pure_python() -> bool:
    return os.environ.get("FEDCLIP_PURE_PYTHON", "") not in ("", "0")


def _target_paths() -> list[str]:
    """site-packages of the environment that this interpreter belongs to.

    ``sys.prefix`` is the target's even in pip's isolated build: pip runs the target's
    own interpreter there and only rearranges ``sys.path``.
    """
    paths = site.getsitepackages()
    if site.ENABLE_USER_SITE:
        paths.append(site.getusersitepackages())
    return [path for path in paths if os.path.isdir(path)]


def _recent(found: Distribution) -> bool:
    wanted = [int(part) for part in TORCH.partition(">=")[2].split(".")]
    return [int(part) for part in re.findall(r"\d+", found.version)[:2]] >= wanted


def _find_torch() -> bool:
    """Whether a torch is there to build with; adds the target's paths if need be."""
    if any(map(_recent, distributions(name="torch", path=sys.path))):
        return True
    paths = _target_paths()
    if any(map(_recent, distributions(name="torch", path=paths))):
        sys.path += [path for path in paths if path not in sys.path]
        return True
    return False


_HAS_TORCH = _find_torch()


def _requires() -> list[str]:
    return [] if _HAS_TORCH or _pure_python() else [TORCH]


def _forget_former_build() -> None:
    """Drop ``build/lib*``: setuptools would ship modules that were deleted since."""
    for folder in (ROOT / "build").glob("lib*"):
        shutil.rmtree(folder, ignore_errors=True)


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """Extra build requirements: torch, where the target environment has none."""
    return build_meta.get_requires_for_build_wheel(config_settings) + _requires()


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """As for a wheel."""
    return build_meta.get_requires_for_build_editable(config_settings) + _requires()


def build_wheel(
    wheel_directory: str,
    config_settings: Settings = None,
    metadata_directory: str | None = None,
) -> str:
    """Build the wheel from what is in the source tree now."""
    _forget_former_build()
    return build_meta.build_wheel(wheel_directory, config_settings, metadata_directory)


build_editable = build_meta.build_editable
build_sdist = build_meta.build_sdist
get_requires_for_build_sdist = build_meta.get_requires_for_build_sdist
prepare_metadata_for_build_editable = build_meta.prepare_metadata_for_build_editable
prepare_metadata_for_build_wheel = build_meta.prepare_metadata_for_build_wheel
