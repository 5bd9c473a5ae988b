"""What the CUDA kernels take of a GPU, by the compiler's report; needs nvcc, no GPU.

python -m benchmarks gpu-resources
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.command import ROOT, build_parser, parse, save, table

ARCHITECTURES = ("75", "80", "90")
# Bytes of shared memory that a block may have, multiprocessors.
GPUS = {"A100": (166912, 108), "H100, H200": (232448, 132)}
DIMS = (384, 512, 640, 768, 1024, 2048)
SHAPES = """
#include <cstdio>
#include <cstdlib>
#include "plan.h"
int main(int count, char** numbers) {
    const int dim = std::atoi(numbers[1]), blocks = std::atoi(numbers[2]);
    const auto shape =
        fedclip::gpu::choose_shape(dim, blocks, std::atoi(numbers[3]) / 4, 0);
    std::printf("%d %d %d %ld", shape.features, shape.group, shape.resident,
                long(4 * shape.shared_floats()));
}
"""


class Kernel(NamedTuple):
    """One kernel on one architecture."""

    name: str
    architecture: str
    registers: int
    spilled: int  # bytes stored and loaded
    stack: int


def kernels_in(report: str) -> Iterator[Kernel]:
    """The kernels in what `ptxas -v` says."""
    pattern = (
        r"Compiling entry function '(\w+)' for 'sm_(\w+)'.*?"
        r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?"
        r"Used (\d+) registers"
    )
    for found in re.finditer(pattern, report, re.DOTALL):
        name, arch, stack, stores, loads, registers = found.groups()
        spilled = int(stores) + int(loads)
        yield Kernel(readable(name), f"sm_{arch}", int(registers), spilled, int(stack))


def readable(mangled: str) -> str:
    """A kernel as in the source: without its namespace and arguments."""
    text = subprocess.run(["c++filt", mangled], capture_output=True, text=True).stdout
    text = text.replace("(anonymous namespace)::", "")
    return re.sub(r"^void |fedclip::|gpu::|\(.*", "", text.strip())


def compile_all(nvcc: str, quick: bool) -> tuple[list[Kernel], dict[str, float]]:
    """Every .cu file, an architecture at a time; seconds of each file.

    ``quick``: the smallest file on the first alone.
    """
    include = Path(torch.__file__).parent / "include"
    flags = ["-std=c++20", "-O3", "--expt-relaxed-constexpr", "-Xcompiler", "-fPIC"]
    flags += ["-DUSE_CUDA", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += [f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/cuda", "-isystem", str(include)]
    flags += ["-isystem", str(include / "torch/csrc/api/include"), "-Xptxas", "-v"]
    flags += ["-isystem", sysconfig.get_path("include")]  # Python.h
    kernels: list[Kernel] = []
    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
        if quick:
            sources = [min(sources, key=lambda path: path.stat().st_size)]
        for source in sources:
            for arch in ARCHITECTURES[:1] if quick else ARCHITECTURES:
                code = f"-gencode=arch=compute_{arch},code=sm_{arch}"
                command = [nvcc, *flags, code, "-c", str(source), "-o", f"{folder}/o"]
                before = os.times().children_user
                start = time.monotonic()
                done = subprocess.run(command, capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(done.stderr)
                name = f"{source.name}, sm_{arch}"
                seconds[name] = os.times().children_user - before
                print(f"{name}: {time.monotonic() - start:.0f} s", file=sys.stderr)
                kernels += kernels_in(done.stderr)
    return kernels, seconds


def threads(name: str) -> str:
    """A constant of csrc/cuda/plan.h."""
    plan = (ROOT / "csrc" / "cuda" / "plan.h").read_text()
    (value,) = re.findall(rf"constexpr int {name} = (\d+);", plan)
    return str(value)


def shapes() -> list[tuple[str, ...]]:
    """How a round is laid out, see csrc/cuda/plan.h."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "shapes.cpp"
        source.write_text(SHAPES)
        program = f"{folder}/shapes"
        paths = [f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/cuda"]
        subprocess.run(["c++", "-std=c++17", *paths, source, "-o", program], check=True)
        for gpu, (limit, blocks) in GPUS.items():
            for dim in DIMS:
                command = [program, str(dim), str(blocks), str(limit)]
                found = subprocess.run(command, capture_output=True, text=True)
                rows.append((gpu, str(dim), *found.stdout.split()))
    return rows


def markdown(nvcc: str, quick: bool) -> str:
    """The whole note."""
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = re.search(r"release ([\d.]+)", version)
    kernels, seconds = compile_all(nvcc, quick)
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    compiled = ", ".join(f"{k}: {v:.0f}" for k, v in seconds.items())
    lines = [
        "# Resources of the CUDA kernels",
        "",
        f"{date}; nvcc {release.group(1) if release else '?'}, torch "
        f"{torch.__version__}, {platform.machine()}. By `ptxas -v`; nothing ran on a "
        f"GPU. No kernel has static shared memory; blocks have {threads('kThreads')} "
        f"threads, those of train_round {threads('kTrainThreads')}.",
        "",
        *table(
            ["kernel", "architecture", "registers", "spilled, bytes", "stack, bytes"],
            [list(map(str, kernel)) for kernel in sorted(kernels)],
        ),
        "",
        "`train_round` takes this dynamic shared memory, one block a multiprocessor "
        "(`prepare_round`: 1 KB):",
        "",
        *table(
            [
                *("GPU", "D", "features of a block", "blocks of a group"),
                *("slabs on chip, of 6", "bytes of shared memory"),
            ],
            shapes(),
        ),
        "",
        f"Processor seconds of the compiler, by file and architecture: {compiled}.",
    ]
    modules = list((ROOT / "fedclip_plugin").glob("_C_cuda*.so"))
    if modules:
        size = modules[0].stat().st_size / 2**20
        lines[-1] += f" The module as built here: {size:.1f} MB."
    return "\n".join(lines) + "\n"


def find_nvcc() -> str:
    """`nvcc` itself, also where the one on the path is a wrapper."""
    try:
        done = subprocess.run(
            ["nvcc", "--dryrun", "x.cu"], capture_output=True, text=True
        )
    except FileNotFoundError:
        raise SystemExit("gpu-resources: nvcc is not on the path") from None
    found = re.search(r"^#\$ TOP=(.+)$", done.stderr, re.MULTILINE)
    return str((Path(found.group(1)) / "bin/nvcc").resolve()) if found else "nvcc"


def main(argv: Sequence[str] | None = None) -> None:
    args = parse(build_parser("gpu-resources", __doc__), argv)
    page = markdown(find_nvcc(), args.quick)
    save(args.out, "cuda-resources", md=page)
    print(page)
