"""The compiled kernels; all that can be declared stands in pyproject.toml.

``fedclip_plugin._C`` holds the CPU kernels (``csrc/*.cpp``, ``csrc/cpu/*.cpp``) and
``fedclip_plugin._C_cuda`` the CUDA ones (``csrc/cuda/*``), where there are any.  Both
are pybind11 modules whose operators use LibTorch's stable ABI: one build serves every
torch >= 2.10, and the version of Python that it was made with.

Environment, read while building:

``FEDCLIP_PURE_PYTHON=1``  compile nothing
``FEDCLIP_CUDA=0|1|auto``  CUDA kernels: never, always, or (default) where nvcc fits
                           torch; a failed build is then a warning
``FEDCLIP_BEST_ISA=...``    CPU kernels up to this instruction set (default: all)
``FEDCLIP_CXX_FLAGS``      more compiler flags, after our own
``TORCH_CUDA_ARCH_LIST``   GPU architectures
``MAX_JOBS``               parallel compilers
"""

from __future__ import annotations

import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from glob import glob
from pathlib import Path
from typing import Any

from setuptools import find_packages, setup

STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # torch 2.10
# Messages name a source as csrc/..., wherever it was built.
PATHS = f"-ffile-prefix-map={os.getcwd()}/="
# -ffp-contract=off: an FMA only where the source says so, or an element's bits would
# depend on how the compiler split the loop around it.
CXX_FLAGS = ["-std=c++20", "-O3", "-g0", "-fvisibility=hidden", "-Wall"]
CXX_FLAGS += ["-ffp-contract=off"]
CXX_FLAGS += [PATHS, *STABLE_ABI, *os.environ.get("FEDCLIP_CXX_FLAGS", "").split()]
CUDA_ARCHITECTURES = "7.5;8.0;9.0+PTX"  # older ones run the references
# Files named *_<isa>.cpp are compiled for that instruction set, and left out (but the
# generic ones) where the processor is no x86-64; csrc/cpu/isa.cpp decides at run time
# whether they may be called.
ISA_FLAGS = {
    "avx512": ["-mavx512f", "-mavx512dq", "-mavx512bw", "-mavx512vl", "-mfma"],
    "avx2": ["-mavx2", "-mfma"],
    "generic": [],  # what every processor has
}
ISA_FLAGS["avx512bf16"] = [*ISA_FLAGS["avx512"], "-mavx512bf16"]
ISAS = ("generic", "avx2", "avx512", "avx512bf16")  # from the least to the best
X86_64 = platform.machine().lower() in ("x86_64", "amd64")


def isa_of(source: str) -> str | None:
    """The instruction set in a file's name: ``gemm_avx2.cpp`` -> ``avx2``."""
    suffix = Path(source).stem.rpartition("_")[2]
    return suffix if suffix in ISA_FLAGS else None


def kernel_headers() -> list[str]:
    return sorted(glob("csrc/**/*.h", recursive=True) + glob("csrc/cuda/*.cuh"))


def make_extension(kind: Any, name: str, sources: list[str], **flags: Any) -> Any:
    """A ``kind`` of torch's, with pybind11 but without torch's Python library."""
    import pybind11

    folders = [pybind11.get_include(), *map(os.path.abspath, ("csrc", "csrc/cuda"))]
    extension = kind(
        f"fedclip_plugin.{name}",
        sources,
        depends=kernel_headers(),
        include_dirs=folders,
        extra_compile_args=flags,
    )
    extension.libraries.remove("torch_python")  # no part of the stable ABI
    return extension


def cpu_extension() -> Any:
    from torch.utils.cpp_extension import CppExtension

    best = best_isa()
    built = (None, *ISAS[: best + 1])
    sources = sorted([*glob("csrc/*.cpp"), *glob("csrc/cpu/*.cpp")])
    sources = [s for s in sources if isa_of(s) in built]
    flags = [*CXX_FLAGS, f"-DFEDCLIP_BEST_ISA={best}"]
    return make_extension(CppExtension, "_C", sources, cxx=flags)


def best_isa() -> int:
    """The place in ISAS of the last one that is built."""
    asked = os.environ.get("FEDCLIP_BEST_ISA") or ISAS[-1]
    if asked not in ISAS:
        raise SystemExit(f"FEDCLIP_BEST_ISA={asked}: expected one of {', '.join(ISAS)}")
    return ISAS.index(asked) if X86_64 else 0


def nvcc_release(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    match = re.search(r"release (\d+)\.", text)
    return match.group(1) if match else ""


def find_cuda_home() -> str:
    """The toolkit's folder, also where ``nvcc`` on the path is a wrapper script.

    torch guesses the folder above ``nvcc``; the compiler itself knows better.
    """
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    nvcc = shutil.which("nvcc")
    if home or not nvcc:
        return home or ""
    command = [nvcc, "--dryrun", "x.cu"]
    text = subprocess.run(command, capture_output=True, text=True).stderr
    match = re.search(r"^#\$ TOP=(.+)$", text, re.MULTILINE)
    return str(Path(match.group(1)).resolve()) if match else ""


def cuda_extensions() -> list[Any]:
    """The CUDA module, or nothing; see FEDCLIP_CUDA above."""
    mode = os.environ.get("FEDCLIP_CUDA", "auto")
    sources = sorted(glob("csrc/cuda/*.cu") + glob("csrc/cuda/*.cpp"))
    if mode == "0" or not sources:
        return []
    home = find_cuda_home()
    os.environ.update({"CUDA_HOME": home} if home else {})  # before torch looks
    # No word on a missing GPU or another minor release of CUDA: both are fine.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    import torch
    from torch.utils.cpp_extension import CUDAExtension

    release = nvcc_release(f"{home}/bin/nvcc") if home else ""
    wanted = (torch.version.cuda or "").partition(".")[0]
    if not wanted or release != wanted:
        if mode == "1":
            raise SystemExit(
                f"FEDCLIP_CUDA=1: torch {torch.__version__} is built for CUDA "
                f"{torch.version.cuda}, nvcc found: {release or 'none'}; install "
                "matching ones, or set CUDA_HOME"
            )
        return []
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", CUDA_ARCHITECTURES)
    flags = [*STABLE_ABI, "-DUSE_CUDA", "-DFEDCLIP_GPU"]
    host = ["-fvisibility=hidden", "-Wall", PATHS]
    extension = make_extension(
        CUDAExtension,
        "_C_cuda",
        sources,
        cxx=[*CXX_FLAGS, "-DUSE_CUDA", "-DFEDCLIP_GPU"],
        nvcc=["-O3", *flags, f"-Xcompiler={','.join(host)}"],
    )
    # Its own runtime, unseen by others: the module loads under torch of any CUDA.
    extension.libraries.remove("cudart")
    extension.libraries += ["cudart_static", "rt", "dl", "pthread"]
    extension.extra_link_args.append("-Wl,--exclude-libs,libcudart_static.a")
    extension.optional = mode == "auto"
    return [extension]


def check_tools(compiler: str, include: str) -> None:
    """Exit with one line if the compiler or Python's headers are missing."""
    without = "or set FEDCLIP_PURE_PYTHON=1 to do without the compiled kernels"
    if not shutil.which(compiler):
        raise SystemExit(
            f"no C++ compiler ({compiler}): install one (Debian: apt install g++), "
            f"name it in CXX, {without}"
        )
    if not Path(include, "Python.h").is_file():
        raise SystemExit(
            f"no Python.h in {include}: install the headers of this Python (Debian: "
            f"apt install python3-dev), {without}"
        )


def build_command() -> Any:
    from torch.utils.cpp_extension import BuildExtension

    class BuildKernels(BuildExtension):  # type: ignore[misc]
        """torch's build_ext, with compiler flags by instruction set."""

        def build_extensions(self) -> None:
            compiler = getattr(self.compiler, "compiler_cxx", ["c++"])[0]
            check_tools(compiler, sysconfig.get_path("include"))
            super().build_extensions()

        def build_extension(self, ext: Any) -> None:
            try:
                self.compile_and_link(ext)
            except RuntimeError as error:  # of torch's ninja: setuptools knows it not
                if not ext.optional:
                    raise
                self.warn(f"{ext.name} is left out: {error}")

        def compile_and_link(self, ext: Any) -> None:
            # one long compilation each: one after another, only one core would work
            jobs = int(os.environ.get("MAX_JOBS") or os.cpu_count() or 1)
            with ThreadPoolExecutor(jobs) as pool:
                widest = sorted(ISA_FLAGS, key=lambda isa: -len(ISA_FLAGS[isa]))
                compiled = pool.map(lambda isa: self.compile_for(isa, ext), widest)
                ext.extra_objects += [o for objects in compiled for o in objects]
            ext.sources = [source for source in ext.sources if not isa_of(source)]
            super().build_extension(ext)

        def compile_for(self, isa: str, ext: Any) -> list[str]:
            sources = [source for source in ext.sources if isa_of(source) == isa]
            if not sources:
                return []
            flags = [*ext.extra_compile_args["cxx"], *ISA_FLAGS[isa]]
            objects: list[str] = self.compiler.compile(
                sources,
                output_dir=os.path.join(self.build_temp, isa),
                include_dirs=ext.include_dirs,
                extra_postargs={"cxx": flags},
                depends=ext.depends,
            )
            return objects

    return BuildKernels


def compiled() -> dict[str, Any]:
    """The arguments of ``setup`` that need torch; none where nothing is compiled."""
    pure = os.environ.get("FEDCLIP_PURE_PYTHON", "") not in ("", "0")
    if pure or {"sdist", "egg_info", "dist_info"} & set(sys.argv):
        return {}
    modules = [*cuda_extensions(), cpu_extension()]
    return {"ext_modules": modules, "cmdclass": {"build_ext": build_command()}}


def packages() -> dict[str, Any]:
    """Every folder of the package; ``registry/`` is installed below it."""
    bindings = ["registry", *(f"registry.{name}" for name in find_packages("registry"))]
    return {
        "packages": [
            *find_packages(include=["fedclip_plugin", "fedclip_plugin.*"]),
            *(f"fedclip_plugin.{name}" for name in bindings),
        ],
        "package_dir": {"fedclip_plugin.registry": "registry"},
    }


setup(**packages(), **compiled())
