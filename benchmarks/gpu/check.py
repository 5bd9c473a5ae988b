"""Build, test, sanitize and time the CUDA kernels on this machine's GPU.

    make gpu-check ARGS="--out DIR --seconds N"
    python -m benchmarks gpu-check

It needs torch, numpy and pytest, and nvcc and pybind11 to build the kernels.  The
files are named gpu-<name>.  Exit code 2: no GPU; 1: something failed.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.command import ROOT, as_json, build_parser, parse, save

TOOLS = ("memcheck", "racecheck", "synccheck")
GPU_TESTS = [f"tests/csrc/test_cuda{part}.py" for part in ("", "_training", "_calls")]


def say(text: str) -> None:
    print(f"==> {text}", flush=True)


def built() -> bool:
    """Whether another interpreter finds the CUDA kernels."""
    code = (
        "import fedclip_plugin as p; raise SystemExit(not p.capabilities()"
        "['cuda_compiled'])"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def build() -> None:
    """Compile in a folder without pyproject.toml: any version of setuptools will do."""
    folder = ROOT / "build" / "gpu-check"
    (folder / "fedclip_plugin").mkdir(parents=True, exist_ok=True)
    shutil.copy2(ROOT / "setup.py", folder)
    shutil.copytree(ROOT / "csrc", folder / "csrc", dirs_exist_ok=True)
    major, minor = torch.cuda.get_device_capability()
    env = {
        "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}",
        **os.environ,
        "FEDCLIP_CUDA": "1",
    }
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(
        command, cwd=folder, env=env, text=True, capture_output=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout[-6000:]}{done.stderr[-6000:]}\nbuild failed")
    for module in (folder / "fedclip_plugin").glob("*.so"):
        shutil.copy2(module, ROOT / "fedclip_plugin")


def run_tests() -> tuple[bool, str]:
    """GPU_TESTS; whether all passed and none was skipped for want of a GPU."""
    options = ["-q", "--noconftest", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, *GPU_TESTS]
    done = subprocess.run(
        command, cwd=ROOT, text=True, capture_output=True, check=False
    )
    print(done.stdout[-8000:], done.stderr[-2000:], flush=True)
    last = (done.stdout.strip() or "pytest said nothing").splitlines()[-1].strip("= ")
    ran = re.search(r"\d+ passed", last) is not None
    return done.returncode == 0 and ran and "needs a GPU" not in done.stdout, last


def sanitize(tool: str, seconds: float) -> tuple[bool, str]:
    """One tool of compute-sanitizer over exercise.py."""
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    env = dict(os.environ)
    if tool == "memcheck":  # each tensor its own allocation, not a piece of a block
        command += ["--report-api-errors", "no"]
        env["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    command += [sys.executable, "-m", "benchmarks.gpu.exercise"]
    if seconds < 20:
        return True, "left out for lack of time"
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        return True, f"not finished after {seconds:.0f} s"
    if done.returncode == 0 and "exercised" in done.stdout:
        return True, "clean"
    print(done.stdout[-3000:], done.stderr[-2000:], flush=True)
    return False, f"exit code {done.returncode}"


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    properties = torch.cuda.get_device_properties(0)
    driver = "unknown"
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        text = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        driver = text.splitlines()[0] if text else driver
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "gpu": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "driver": driver,
        "python": platform.python_version(),
    }


def write(report: dict[str, Any], folder: Path | None) -> str:
    """The page, which is also written."""
    from benchmarks.gpu.bench import markdown

    name = re.sub(r"[^a-z0-9]+", "-", report["machine"]["gpu"].lower()).strip("-")
    page = markdown(report)
    save(folder, f"gpu-{name}", json=as_json(report), md=page)
    return page


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser("gpu-check", __doc__)
    parser.add_argument("--seconds", type=float, default=460, help="for everything")
    args = parse(parser, argv, seconds=60)
    if not torch.cuda.is_available():
        print("gpu-check: torch sees no GPU on this machine", file=sys.stderr)
        return 2
    end = time.monotonic() + args.seconds
    if not built():
        say("building the kernels")
        build()
    from benchmarks.gpu import bench as gpu_bench
    from fedclip_plugin import ops  # noqa: F401  registers the operators

    say("tests")
    good, summary = run_tests()
    checks = {"tests": summary}
    # a fifth for each tool of the sanitizer that there is, the rest for the benchmark
    found = shutil.which("compute-sanitizer") is not None
    left = end - time.monotonic()
    say("benchmark")
    rows, facts = gpu_bench.run(gpu_bench.Sizes(), left * (0.4 if found else 0.9))
    report = {"machine": machine(), "checks": checks, "rows": rows, **facts}
    write(report, args.out)
    for tool in TOOLS if found else ():
        say(f"compute-sanitizer {tool}")
        clean, checks[tool] = sanitize(tool, min(150.0, end - time.monotonic() - 5))
        good = good and clean
    if not found:
        checks["compute-sanitizer"] = "not on the path"
    print(write(report, args.out), flush=True)
    return 0 if good else 1
