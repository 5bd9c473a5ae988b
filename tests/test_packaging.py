"""The installed package: names, version, kernels and data files."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fedclip_plugin
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.ops.kernels import ISAS, load_kernels, pure_python

ROOT = Path(__file__).resolve().parents[1]
MODULE = sys.modules["fedclip_plugin.ops.kernels"]
needs_kernels = pytest.mark.skipif(pure_python(), reason="FEDCLIP_PURE_PYTHON is set")


def python(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter, outside the source tree."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT.anchor,
        env={**os.environ, **env},
        check=False,
    )


def capabilities_with(**env: str) -> dict[str, object]:
    code = "import fedclip_plugin as p, json; print(json.dumps(p.capabilities()))"
    done = python(code, **env)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def registered_kernels() -> list[str]:
    """Operators that the C++ sources register a CPU kernel for."""
    text = "".join(p.read_text(encoding="utf-8") for p in ROOT.glob("csrc/*.*"))
    return sorted(set(re.findall(r'\bm\.impl\(\s*"(\w+)"', text)))


def test_version_is_told_once() -> None:
    version = importlib.metadata.version("fedclip-plugin")
    assert fedclip_plugin.__version__ == version
    assert "version" not in re.findall(
        r"^(\w+) = ", (ROOT / "pyproject.toml").read_text().partition("[tool.")[0], re.M
    )


def test_console_script() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="fedclip")
    assert {script.value for script in scripts} == {"fedclip_plugin.cli:main"}


def test_shipped_model_is_installed() -> None:
    spec = importlib.util.find_spec("fedclip_plugin")
    assert spec is not None
    assert spec.origin is not None
    models = Path(spec.origin).parent / "models"
    suffixes = {path.suffix for path in models.iterdir()}
    assert {".json", ".safetensors", ".md"} <= suffixes


def test_templates_of_the_report_are_installed() -> None:
    spec = importlib.util.find_spec("fedclip_plugin.report.page")
    assert spec is not None
    assert spec.origin is not None
    names = {path.name for path in Path(spec.origin).parent.iterdir()}
    assert {"report.html.jinja", "parts.html.jinja", "style.css"} <= names


def test_registry_is_a_subpackage() -> None:
    assert python("import fedclip_plugin.registry").returncode == 0


def test_registry_by_its_bare_name_says_so() -> None:
    done = python(f"import sys; sys.path.insert(0, {str(ROOT)!r}); import registry")
    assert done.returncode != 0
    assert "ImportError" in done.stderr
    assert "fedclip_plugin.registry" in done.stderr


def test_import_is_light() -> None:
    done = python("import fedclip_plugin, sys; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


@needs_kernels
def test_extension_is_built() -> None:
    found = fedclip_plugin.capabilities()
    assert found["compiled"], (
        f"{found['note']}: run `make install` (or set FEDCLIP_PURE_PYTHON=1 to test "
        "without compiled kernels)"
    )


@needs_kernels
def test_every_kernel_in_the_sources_is_loaded() -> None:
    ops = fedclip_plugin.capabilities()["ops"]
    kernels = registered_kernels()
    assert kernels
    assert {name: ops.get(name) for name in kernels} == dict.fromkeys(kernels, True)


@needs_kernels
def test_isa_can_be_lowered() -> None:
    available = fedclip_plugin.capabilities()["isa_available"]
    assert available == list(ISAS[: len(available)])
    for isa in available:
        assert capabilities_with(FEDCLIP_ISA=isa)["isa"] == isa


@needs_kernels
def test_isa_beyond_the_processor_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Generic:
        @staticmethod
        def isa_detected() -> str:
            return "generic"

    monkeypatch.setattr(MODULE, "_load", lambda _: (Generic(), ""))
    monkeypatch.setenv("FEDCLIP_ISA", "avx2")
    with pytest.raises(ConfigError, match="this processor has generic"):
        load_kernels.__wrapped__()


def test_unknown_isa_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDCLIP_ISA", "sse9")
    with pytest.raises(ConfigError, match="FEDCLIP_ISA=sse9: expected one of generic"):
        load_kernels.__wrapped__()


def test_pure_python_loads_no_kernel() -> None:
    found = capabilities_with(FEDCLIP_PURE_PYTHON="1")
    assert found["compiled"] is False
    assert found["isa"] == "generic"
    assert "FEDCLIP_PURE_PYTHON" in str(found["note"])
    assert found["ops"]
    assert not any(found["ops"].values())  # type: ignore[attr-defined]


def test_missing_extension_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDCLIP_PURE_PYTHON", raising=False)
    monkeypatch.setattr(MODULE, "_MODULE", "fedclip_plugin._none")
    kernels = load_kernels.__wrapped__()
    assert kernels.cpu is None
    assert kernels.note == "fedclip_plugin._none was not built"


def test_broken_extension_warns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FEDCLIP_PURE_PYTHON", raising=False)
    (tmp_path / "broken_kernels.py").write_text("raise ImportError('no symbol x')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(MODULE, "_MODULE", "broken_kernels")
    with pytest.warns(RuntimeWarning, match="cannot be loaded: no symbol x"):
        assert load_kernels.__wrapped__().cpu is None


def test_capabilities_stays_a_function() -> None:
    code = (
        "import fedclip_plugin, fedclip_plugin.ops.kernels, fedclip_plugin.ops\n"
        "print(callable(fedclip_plugin.capabilities))"
    )
    assert python(code).stdout.strip() == "True"
