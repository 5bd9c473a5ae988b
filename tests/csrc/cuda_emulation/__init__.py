"""The CUDA kernels compiled as plain C++ and run on the CPU, a fibre for each thread.

An emulation: it shows that the device code computes the right numbers, stays inside its
memory and reaches its barriers, under a random order of threads.  It says nothing about
caches, the visibility of writes between processors, or speed.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parent
KERNELS = HERE.parents[2] / "csrc" / "cuda"
FLAGS = ["-std=c++17", "-g", "-fPIC", "-shared", "-Wall", "-Wno-unknown-pragmas"]
SANITIZE = ["-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"]
INNER = "CUDA_EMULATION_SANITIZE"  # set where the tests run under AddressSanitizer

Pointers = ctypes.POINTER(ctypes.c_void_p)
Int = ctypes.c_int64


class RoundArguments(ctypes.Structure):
    """As in kernels.cpp."""

    _fields_ = (
        *[(n, Int) for n in ("clients", "dim", "classes", "batch_size")],
        *[(n, Int) for n in ("group", "blocks", "shared_bytes")],
        ("text", ctypes.c_void_p),
        *[(n, Pointers) for n in ("x", "y", "perm")],
        *[(n, ctypes.POINTER(Int)) for n in ("rows", "samples", "step")],
        *[(n, Pointers) for n in ("state", "losses")],
        *[
            (n, ctypes.c_double)
            for n in ("lr", "beta1", "beta2", "eps", "weight_decay", "logit_scale")
        ],
        ("bf16", Int),
        ("seed", ctypes.c_uint64),
        ("found", ctypes.POINTER(Int)),
    )


def build(folder: Path) -> ctypes.CDLL:
    """Compile the kernels, with sanitizers if `INNER` is set."""
    library = folder / "kernels.so"
    flags = [*FLAGS, *(SANITIZE if INNER in os.environ else ["-O2"])]
    sources = sorted(str(path) for path in HERE.glob("*.cpp"))
    folders = [f"-I{HERE}", f"-I{KERNELS}", f"-I{KERNELS.parent}"]
    command = [
        "g++",
        *flags,
        "-DFEDCLIP_EMULATION",
        *folders,
        *sources,
        "-o",
        str(library),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    loaded = ctypes.CDLL(str(library))
    for name in ("tanh_rows", "gate_scores", "grad_scores", "grad_hidden"):
        getattr(loaded, f"emulate_{name}").restype = ctypes.c_char_p
    for name in ("round", "mean_float", "mean_int8"):
        getattr(loaded, f"emulate_{name}").restype = ctypes.c_char_p
    return loaded


def address(tensor: Tensor | None) -> ctypes.c_void_p:
    """Of a row-major tensor's data."""
    if tensor is None:
        return ctypes.c_void_p(None)
    assert tensor.is_contiguous()
    return ctypes.c_void_p(tensor.data_ptr())


def addresses(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    """A table of pointers."""
    return (ctypes.c_void_p * len(tensors))(*[t.data_ptr() for t in tensors])


def integers(values: Sequence[int]) -> ctypes.Array[Int]:
    """A table of int64."""
    return (Int * len(values))(*values)


def exact_copy(tensor: Tensor) -> Tensor:
    """The same values in memory of exactly this size, for AddressSanitizer.

    torch rounds its allocations up; the block lives as long as the tensor.
    """
    block = (ctypes.c_char * max(1, tensor.numel() * tensor.element_size()))()
    if not tensor.numel():
        return tensor.clone()
    copy = torch.frombuffer(block, dtype=tensor.dtype).view(tensor.shape)
    return copy.copy_(tensor)
