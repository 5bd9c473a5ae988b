"""The CUDA operators compiled as plain C++ and run on the CPU, without a GPU.

The host code of ``csrc/cuda`` runs over a fake runtime (``cuda_runtime.h``), its
kernels over fibres, one for each thread (``emulation.h``).  It shows that both compute
the right numbers, stay inside their memory and reach their barriers, under a random
order of threads, and what the host does where a GPU refuses.  It says nothing about
caches, the visibility of writes between processors, or speed.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import torch

from fedclip_plugin import ops

HERE = Path(__file__).parent
TORCH, PYTHON = Path(torch.__file__).parent, sysconfig.get_path("include")
KERNELS = HERE.parents[2] / "csrc" / "cuda"
DEFINED = ["-DFEDCLIP_EMULATION", "-DFEDCLIP_GPU"]
DEFINED += ["-DTORCH_TARGET_VERSION=0x020a000000000000"]
FLAGS = [
    "-std=c++20",
    "-g1",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
    "-Wall",
    "-Wno-unknown-pragmas",
]
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
INNER = "CUDA_EMULATION_SANITIZE"  # set where the tests run under AddressSanitizer
LIBRARY = "fedclip_emulated"


class Device(ctypes.Structure):
    """As in cuda_runtime.h."""

    _fields_ = tuple(
        (name, ctypes.c_int64)
        for name in (
            *("multiprocessors", "shared_bytes", "granted", "cooperative"),
            *("capturing", "has_code", "capability", "seed"),
            *("launches", "blocks", "shared_asked", "refused"),
        )
    )


class Emulation:
    """The operators in ``ops``, and the device that they believe to run on."""

    def __init__(self, folder: Path) -> None:
        self.library = _build(folder)
        self.ops: Any = getattr(torch.ops, LIBRARY)
        self.library.emulated_device.restype = ctypes.POINTER(Device)
        self.device = self.library.emulated_device().contents
        self._first = bytes(self.device)

    def reset(self) -> None:
        """The device as it was, and no error left behind."""
        assert self.library.emulated_error() == 0
        ctypes.memmove(ctypes.addressof(self.device), self._first, len(self._first))

    def group(self, blocks: object) -> None:
        """Blocks that train one client, in place of the rule's."""
        os.environ["FEDCLIP_CUDA_GROUP"] = str(blocks)

    def shape(self, dim: int, blocks: int, shared: int, group: int = 0) -> list[int]:
        """Features of a block, blocks of a group, slabs on chip, bytes, fast or not."""
        found = (ctypes.c_int64 * 5)()
        sizes = (ctypes.c_int64(v) for v in (dim, blocks, shared, group))
        self.library.emulated_shape(*sizes, found)
        return list(found)


_defined: list[torch.library.Library] = []  # they own the schemas


def _build(folder: Path) -> ctypes.CDLL:
    """Compile the operators, with sanitizers if `INNER` is set, and register them."""
    if not _defined:
        _defined.append(torch.library.Library(LIBRARY, "DEF"))
        for name, schema in ops.SCHEMAS.items():
            _defined[0].define(name + schema)
    library = folder / "operators.so"
    flags = [*FLAGS, *(SANITIZE if INNER in os.environ else ["-O2"]), *DEFINED]
    folders = (HERE, KERNELS, KERNELS.parent)
    include = [f"-I{path}" for path in folders]
    include += [f"-isystem{TORCH / 'include'}", f"-isystem{PYTHON}"]
    sources = [str(HERE / name) for name in ("emulation.cpp", "operators.cpp")]
    libraries = (f"-L{TORCH / 'lib'}", "-ltorch_cpu", "-lc10")
    command = ["g++", *flags, *include, *sources, *libraries, "-o", str(library)]
    plain = {k: v for k, v in os.environ.items() if k != "LD_PRELOAD"}  # no sanitizer
    done = subprocess.run(command, capture_output=True, text=True, env=plain)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    torch.ops.load_library(library)
    return ctypes.CDLL(str(library))
