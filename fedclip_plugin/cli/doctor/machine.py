"""The machine: processor, GPU, memory, home, disks and the terminal."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console

from ... import capabilities
from ...errors import one_line
from ...ops.kernels import (
    cpu_has_bf16,
    cuda_refusal,
    low_precision,
    resolve_device,
)
from ...storage.hashes import cache_dir
from .check import Check

GIB = 2**30
PROBE = bytes(1 << 20)  # written to a disk to time it
SLOW_SECONDS = 1.0  # to write and sync it: a disk of this machine takes 0.01
NARROW = 66  # columns of the table of results
SIGNS = "\u2500\u00e9\u4e2d"  # of tables and of class names in other languages


def check_kernels() -> list[Check]:
    """The processor, and whether it runs the compiled kernels."""
    facts = capabilities()
    bf16 = "with" if cpu_has_bf16() else "without"
    detail = (
        f"{torch.backends.cpu.get_cpu_capability()} {bf16} bf16 instructions, "
        f"{facts['threads']} threads of {os.cpu_count()} processors; "
    )
    if facts["compiled"]:
        detail += f"compiled kernels, {facts['isa']}"
        if facts["slower"]:
            slower = ", ".join(facts["slower"])
            detail += f"; PyTorch's own, which are faster here, for {slower}"
        return [Check("kernels", "ok", detail)]
    detail += f"no compiled kernels: {facts['note']}"
    remedy = "results are the same, only slower; reinstall with a C++ compiler "
    remedy += "and Python's headers (Debian: apt install g++ python3-dev)"
    return [Check("kernels", "warn", detail, remedy)]


def check_device(requested: str) -> list[Check]:
    """The device of a run; a GPU that this PyTorch cannot use is a finding."""
    device = resolve_device(requested)
    if device.type == "cuda":
        return [_check_gpu(device)]
    idle = requested == "auto" and shutil.which("nvidia-smi") is not None
    if idle and torch.version.cuda is None:
        detail = f"cpu: PyTorch {torch.__version__} is built without CUDA"
        remedy = "there seems to be an NVIDIA GPU: install a CUDA build of PyTorch"
        return [Check("device", "warn", detail, remedy)]
    return [Check("device", "ok", "cpu")]


def _check_gpu(device: torch.device) -> Check:
    properties = torch.cuda.get_device_properties(device)
    detail = f"{device}: {properties.name}, {properties.total_memory / GIB:.0f} GiB"
    try:  # a GPU can be seen without being one that this build has kernels for
        torch.ones(8, 8, device=device).mm(torch.ones(8, 8, device=device)).sum().item()
    except (RuntimeError, AssertionError) as error:
        detail += (
            f", compute capability {properties.major}.{properties.minor}, does not "
            f"compute: {one_line(error)}"
        )
        remedy = f"PyTorch {torch.__version__} has kernels for "
        remedy += f"{', '.join(torch.cuda.get_arch_list()) or 'no GPU'}: install a "
        remedy += "build for this GPU, or use --device cpu"
        return Check("device", "fail", detail, remedy)
    note = cuda_refusal(device.index or 0)
    kernels = f"no CUDA kernels: {note}" if note else "CUDA kernels"
    return Check("device", "ok", f"{detail}, {low_precision(device)}; {kernels}")


def check_memory() -> list[Check]:
    """Main memory that is left."""
    free = _free_memory()
    if free is None:
        return [Check("memory", "ok", "unknown on this system")]
    detail = f"{free / GIB:.1f} GiB free"
    if free < 2 * GIB:
        remedy = "ViT-B/32 needs 2 GiB: close programs, or use a feature directory"
        return [Check("memory", "warn", detail, remedy)]
    return [Check("memory", "ok", detail)]


def _free_memory() -> int | None:
    """Bytes available to this process: of the machine, or its container's share."""
    try:
        text = Path("/proc/meminfo").read_text()
        free = int(re.findall(r"MemAvailable:\s+(\d+) kB", text)[0]) * 1024
    except (OSError, IndexError):
        return None
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # no container, or "max"
        return free
    return min(free, limit - used)


def check_home() -> list[Check]:
    """Whether downloaded weights can be kept in the home directory."""
    remedy = "set HOME, or HF_HOME and FEDCLIP_CACHE, to directories of yours"
    try:
        home = Path.home()
        with tempfile.NamedTemporaryFile(dir=home):
            return [Check("home", "ok", str(home))]
    except RuntimeError:
        detail = "this user has none"
    except OSError as error:
        detail = f"{home} is not writable: {error.strerror}"
    if os.environ.get("HF_HOME") and os.environ.get("FEDCLIP_CACHE"):
        return [Check("home", "ok", f"{detail}; HF_HOME and FEDCLIP_CACHE are set")]
    return [Check("home", "warn", detail, remedy)]


def check_cache() -> list[Check]:
    """Whether the cache directory can be written, how fast, and how much fits."""
    remedy = "set FEDCLIP_CACHE to a directory of yours on a disk of this machine"
    directory = cache_dir()
    check = check_disk("cache", directory, remedy)
    if check.failed and (directory / "features").is_dir():
        kept = f"{check.detail}; only what it holds can be used"
        check = Check("cache", "warn", kept, remedy)
    return [check]


def check_disk(name: str, directory: Path, remedy: str) -> Check:
    """Whether files can be written to ``directory``, synced and locked, in good time.

    Nothing stays there but the directory itself.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=directory) as file:
            start = time.monotonic()
            file.write(PROBE)
            file.flush()
            doubts = _unsupported(file.fileno())
            seconds = time.monotonic() - start
            free = shutil.disk_usage(directory).free
    except OSError as error:
        detail = f"{directory} is not writable: {error.strerror}"
        return Check(name, "fail", detail, remedy)
    if seconds > SLOW_SECONDS:
        doubts.append(f"slow: 1 MiB took {seconds:.1f} s")
    detail = ", ".join((f"{directory}, {free / GIB:.1f} GiB free", *doubts))
    return Check(name, "warn" if doubts or free < GIB else "ok", detail, remedy)


def _unsupported(handle: int) -> list[str]:
    """What a file system cannot do for an open file."""
    missing = []
    try:
        os.fsync(handle)
    except OSError as error:
        missing.append(f"not synced ({error.strerror}): power loss may cost a file")
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # Windows locks in another way
        pass
    except OSError as error:
        missing.append(f"without locks ({error.strerror}): two runs may get in the way")
    return missing


def check_terminal() -> list[Check]:
    """Whether tables and names can be shown."""
    console = Console()
    detail = f"{console.width} columns, {console.encoding}"
    try:
        SIGNS.encode(console.encoding)
    except (UnicodeEncodeError, LookupError):
        remedy = "set PYTHONIOENCODING=utf-8: some signs of names cannot be shown"
        return [Check("terminal", "warn", detail, remedy)]
    if console.width < NARROW:
        remedy = f"make it {NARROW} wide, or set COLUMNS={NARROW}: tables are broken"
        return [Check("terminal", "warn", detail, remedy)]
    return [Check("terminal", "ok", detail)]
