"""The example's deployment of NVFlare, for tests and benchmarks."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "nvflare" / "deploy.py"


def load_example() -> ModuleType:
    """``examples/nvflare/deploy.py`` as a module."""
    spec = importlib.util.spec_from_file_location("nvflare_deploy", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
