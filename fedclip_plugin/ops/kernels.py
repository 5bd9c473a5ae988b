"""What this installation computes with: the compiled kernels and the machine.

``FEDCLIP_PURE_PYTHON=1`` leaves the kernels alone, ``FEDCLIP_CUDA=0`` those for GPUs,
``FEDCLIP_ISA`` picks the instruction set of the others, one of ``ISAS``; all are read
when the operators are first imported.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import warnings
from pathlib import Path
from types import ModuleType
from typing import NamedTuple, TypedDict

import torch

from ..errors import ConfigError


def low_precision(device: torch.device) -> str | None:
    """The fast 16-bit format of a device's own instructions, or None."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native else "fp16"
    return "bf16" if cpu_has_bf16() else None


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 itself (AVX512-BF16, AMX, Arm BF16)."""
    try:
        flags = {k for k, v in torch.cpu.get_capabilities().items() if v}
    except (AttributeError, RuntimeError):  # PyTorch before it could tell
        try:
            text = Path("/proc/cpuinfo").read_text()
        except OSError:
            return False
        listed = re.findall(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
        flags = set(" ".join(listed[:1]).split())
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16", "arm_bf16"})


def resolve_devices(name: str) -> list[torch.device]:
    """All devices that encode: of ``cuda:0,cuda:1``, or every GPU for ``auto``.

    Raises ConfigError if one is absent, or they are of different types.
    """
    if name == "auto" and torch.cuda.is_available():
        return [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    parts = [resolve_device(part.strip()) for part in name.split(",")]
    if len({part.type for part in parts}) > 1:
        raise ConfigError(f"--device {name}: expected devices of one type")
    return parts


def resolve_device(name: str) -> torch.device:
    """``auto``, ``cpu``, ``cuda`` or ``cuda:N``; ConfigError if it is absent.

    Of several the first one.
    """
    if "," in name:
        return resolve_devices(name)[0]
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"--device {name}: expected auto, cpu or cuda:N") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            raise ConfigError(
                f"--device {name}: PyTorch {torch.__version__} sees {count} CUDA "
                "devices here; use --device cpu, or install a CUDA build of PyTorch"
            )
    return device


LIBRARY = "fedclip"
ISAS = ("generic", "avx2", "avx512", "avx512bf16")  # from the least to the best
_MODULE = "fedclip_plugin._C"
_CUDA_MODULE = "fedclip_plugin._C_cuda"


class Kernels(NamedTuple):
    """The extension modules, or ``None`` with the reason in a note."""

    cpu: ModuleType | None
    cuda: ModuleType | None
    note: str
    cuda_note: str


class Capabilities(TypedDict, total=False):
    """The keys of :func:`capabilities`."""

    version: str  # of this package
    torch: str
    compiled: bool  # the CPU extension is loaded
    note: str  # why it is not; "" if it is
    isa: str  # in use by the kernels: one of isa_available
    slower: list[str]  # operators whose kernel is left out: PyTorch is faster here
    isa_available: list[str]  # of ISAS, those that this processor has
    threads: int
    cuda: bool  # torch sees a CUDA device
    cuda_compiled: bool  # the CUDA extension is loaded
    cuda_note: str  # why it is not; "" if it is
    ops: dict[str, bool]  # operator -> has a compiled CPU kernel
    cuda_ops: dict[str, bool]  # operator -> has a compiled CUDA kernel


def pure_python() -> bool:
    """Whether ``FEDCLIP_PURE_PYTHON`` asks to do without compiled kernels."""
    return os.environ.get("FEDCLIP_PURE_PYTHON", "") not in ("", "0")


@functools.cache
def load_kernels() -> Kernels:
    """Load the extensions once; their kernels then serve ``torch.ops.fedclip``.

    To be called when the schemas are defined.  Raises ConfigError for a
    ``FEDCLIP_ISA`` that is unknown, or that this processor lacks.
    """
    requested = os.environ.get("FEDCLIP_ISA")
    if requested and requested not in ISAS:
        raise ConfigError(f"FEDCLIP_ISA={requested}: expected one of {', '.join(ISAS)}")
    if pure_python():
        return Kernels(None, None, *["FEDCLIP_PURE_PYTHON is set"] * 2)
    cpu, note = _load(_MODULE)
    if cpu is None:
        return Kernels(None, None, note, f"without {_MODULE}")
    available = _up_to(cpu.isa_detected())
    if requested and requested not in available:
        raise ConfigError(
            f"FEDCLIP_ISA={requested}: this processor has {', '.join(available)}"
        )
    if os.environ.get("FEDCLIP_CUDA") == "0":
        return Kernels(cpu, None, "", "FEDCLIP_CUDA=0 is set")
    if torch.version.cuda is None:  # a wheel may hold the module all the same
        return Kernels(cpu, None, "", f"PyTorch {torch.__version__} is without CUDA")
    cuda, cuda_note = _load(_CUDA_MODULE)
    return Kernels(cpu, cuda, "", cuda_note)


@functools.cache
def cuda_refusal(index: int) -> str:
    """Why no CUDA kernel serves the GPU ``index``; "" if they do.

    A GPU older than those that the module was built for, or an old driver, has no code
    in it: the PyTorch references compute there.
    """
    kernels = load_kernels()
    if kernels.cuda is None:
        return kernels.cuda_note
    refusal: str = kernels.cuda.refusal(index)
    return refusal


def serves(device: torch.device) -> bool:
    """Whether compiled kernels may compute on a device."""
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        return not cuda_refusal(index)
    return device.type == "cpu" and load_kernels().cpu is not None


def computes_with(device: torch.device) -> str:
    """What the bits of results depend on, in words, beside the version of PyTorch."""
    if device.type != "cuda":
        cpu = load_kernels().cpu
        return f"{device.type}, {f'{cpu.isa()} kernels' if cpu else 'no kernels'}"
    facts = torch.cuda.get_device_properties(device)
    said = f"{facts.name} of {facts.multi_processor_count} multiprocessors"
    if not serves(device):
        return f"{said}, no kernels"
    group = os.environ.get("FEDCLIP_CUDA_GROUP")
    return f"{said}, kernels{f', groups of {group}' if group else ''}"


def _load(name: str) -> tuple[ModuleType | None, str]:
    try:  # torch, imported above, brings the libraries that the kernels link to
        return importlib.import_module(name), ""
    except ModuleNotFoundError:
        return None, f"{name} was not built"
    except ImportError as error:
        note = f"{name} cannot be loaded: {error}"
        warnings.warn(f"{note}; using PyTorch instead", RuntimeWarning, stacklevel=3)
        return None, note


def _up_to(isa: str) -> list[str]:
    return list(ISAS[: ISAS.index(isa) + 1])


def _compiled_ops(dispatch_key: str) -> dict[str, bool]:
    """Operators that are registered by now, and whether that key has a kernel."""
    prefix = f"{LIBRARY}::"
    names: list[str] = torch._C._dispatch_get_all_op_names()
    has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
    return {
        name.removeprefix(prefix): has_kernel(name, dispatch_key)
        for name in sorted(names)
        if name.startswith(prefix)
    }


def capabilities() -> Capabilities:
    """What this process computes with.  Loads the kernels.

    Lists the operators registered so far; ``fedclip_plugin.capabilities()`` registers
    them all first.
    """
    kernels = load_kernels()
    cpu, serve = kernels.cpu, _compiled_ops("CPU")
    return {
        "torch": torch.__version__,
        "compiled": cpu is not None,
        "note": kernels.note,
        "isa": cpu.isa() if cpu else ISAS[0],
        "isa_available": _up_to(cpu.isa_detected()) if cpu else [ISAS[0]],
        "slower": [name for name, there in serve.items() if cpu and not there],
        "threads": cpu.threads() if cpu else torch.get_num_threads(),
        "cuda": torch.cuda.is_available(),
        "cuda_compiled": kernels.cuda is not None,
        "cuda_note": kernels.cuda_note,
        "ops": serve,
        "cuda_ops": _compiled_ops("CUDA"),
    }
