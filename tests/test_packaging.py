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
import torch

import fedclip_plugin
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.ops import SCHEMAS
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
def test_every_operator_has_a_compiled_kernel() -> None:
    assert len(SCHEMAS) == 9
    assert fedclip_plugin.capabilities()["ops"] == dict.fromkeys(SCHEMAS, True)


def test_an_operator_without_a_kernel_is_told() -> None:
    code = (
        "import fedclip_plugin as p; from fedclip_plugin.ops.library import define\n"
        "define('twice', '(Tensor x) -> Tensor', lambda x: 2 * x, lambda x: x)\n"
        "found = p.capabilities(); print(found['ops']['twice'], len(found['ops']))"
    )
    assert python(code).stdout.split() == ["False", "10"]


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
    assert kernels.cuda_note == "without fedclip_plugin._none"


def test_broken_extension_warns(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("FEDCLIP_PURE_PYTHON", raising=False)
    (tmp_path / "broken_kernels.py").write_text("raise ImportError('no symbol x')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(MODULE, "_MODULE", "broken_kernels")
    with pytest.warns(RuntimeWarning, match="cannot be loaded: no symbol x"):
        assert load_kernels.__wrapped__().cpu is None


@needs_kernels
def test_why_there_are_no_cuda_kernels_is_kept(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(MODULE, "_CUDA_MODULE", "fedclip_plugin._none")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    kernels = load_kernels.__wrapped__()
    assert kernels.cpu is not None
    assert kernels.cuda_note == "fedclip_plugin._none was not built"
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(MODULE, "_CUDA_MODULE", "antigravity")  # would be found
    kernels = load_kernels.__wrapped__()
    assert kernels.cuda is None
    assert kernels.cuda_note.endswith("is without CUDA")
    assert not list(recwarn)


@needs_kernels
def test_the_cuda_kernels_can_be_left_alone_when_running() -> None:
    found = capabilities_with(FEDCLIP_CUDA="0")
    assert found["compiled"] is True
    assert found["cuda_compiled"] is False
    assert not any(found["cuda_ops"].values())  # type: ignore[attr-defined]
    assert "FEDCLIP_CUDA=0" in str(found["cuda_note"])


@pytest.mark.skipif(
    load_kernels().cuda is None, reason="the CUDA kernels are not in use"
)
def test_the_cuda_module_needs_no_cuda_runtime_of_its_environment() -> None:
    module = load_kernels().cuda
    assert module is not None
    assert module.__file__ is not None
    assert b"libcudart.so" not in Path(module.__file__).read_bytes()
    assert "-> str" in module.refusal.__doc__


def test_a_gpu_that_the_kernels_refuse_is_checked_and_named_by_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Module:
        @staticmethod
        def refusal(index: int) -> str:
            return "no kernel image is available" if index else ""

    kernels = load_kernels()._replace(cuda=Module())  # type: ignore[arg-type]
    monkeypatch.setattr(MODULE, "load_kernels", lambda: kernels)
    MODULE.cuda_refusal.cache_clear()
    first, second = (torch.device("cuda", index) for index in (0, 1))
    assert (MODULE.serves(first), MODULE.serves(second)) == (True, False)
    assert MODULE.cuda_refusal(1) == "no kernel image is available"
    MODULE.cuda_refusal.cache_clear()


@needs_kernels
def test_the_module_tells_what_it_computes_with() -> None:
    module = load_kernels().cpu
    assert module is not None
    found = fedclip_plugin.capabilities()
    assert (module.isa(), module.threads()) == (found["isa"], torch.get_num_threads())
    assert module.isa_detected() == found["isa_available"][-1]
    assert "-> str" in module.isa.__doc__  # pybind11's signature


def test_missing_tools_are_one_line_with_a_remedy(tmp_path: Path) -> None:
    code = (
        "import setuptools, sys; setuptools.setup = lambda **_: None\n"
        "import setup; setup.check_tools(*sys.argv[1:])"
    )

    def check(compiler: str, include: Path) -> str:
        done = subprocess.run(
            [sys.executable, "-c", code, compiler, str(include)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "FEDCLIP_PURE_PYTHON": "1"},
            check=False,
        )
        assert done.returncode == (1 if done.stderr else 0)
        return done.stderr

    (tmp_path / "Python.h").touch()
    assert check("ls", tmp_path) == ""
    assert "apt install g++" in check("no-such-compiler", tmp_path)
    (said,) = check("ls", tmp_path / "none").splitlines()
    assert said.startswith(f"no Python.h in {tmp_path / 'none'}: install the headers")
    assert "apt install python3-dev" in said


def test_capabilities_stays_a_function() -> None:
    code = (
        "import fedclip_plugin, fedclip_plugin.ops.kernels, fedclip_plugin.ops\n"
        "print(callable(fedclip_plugin.capabilities))"
    )
    assert python(code).stdout.strip() == "True"
