"""Run a benchmark by its name, or list them all."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.command import ROOT
from fedclip_plugin.errors import FedClipError

USAGE = """usage: python -m benchmarks                   what there is
       python -m benchmarks NAME [options]    --help of each says more
       python -m benchmarks --quick [NAME...] each in a minute or less, as CI runs them
"""


class Benchmark(NamedTuple):
    """Where it is; what says why it cannot be run here."""

    module: str
    missing: Callable[[], str] = lambda: ""

    @property
    def answer(self) -> str:
        """The first line of the module's docstring, read without importing it."""
        path = ROOT.joinpath("benchmarks", *self.module.split(".")).with_suffix(".py")
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        return doc.partition("\n")[0]


def without(package: str) -> Callable[[], str]:
    """Says so where a package is not installed."""
    spec = importlib.util.find_spec
    return lambda: "" if spec(package) else f"{package} is not installed here"


def by_hand() -> str:
    """Says so of what runs in one host's environment, and as root."""
    return "a host by its name, as root: see --help"


def without_gpu() -> str:
    """Says so where torch sees no GPU."""
    import torch

    return "" if torch.cuda.is_available() else "torch sees no GPU"


def without_kernels() -> str:
    """Says so where the operators are not compiled."""
    from fedclip_plugin import capabilities

    return (
        "" if capabilities()["compiled"] else "the kernels are not built, or not used"
    )


def without_facmic() -> str:
    """Says so where no checkout of FACMIC's released code is named."""
    return "" if os.environ.get("FACMIC_HOME") else "FACMIC_HOME is not set"


def without_fedpft() -> str:
    """Says so where there is no checkout of Flower, with its baselines."""
    return "" if os.environ.get("FLOWER_HOME") else "FLOWER_HOME is not set"


def without_nvcc() -> str:
    """Says so where there is no CUDA compiler."""
    return "" if shutil.which("nvcc") else "nvcc is not on the path"


BENCHMARKS = {
    "ablation": Benchmark("accuracy.ablation"),
    "attacks": Benchmark("accuracy.attacks"),
    "beyond-gda": Benchmark("accuracy.beyond_gda"),
    "codecs": Benchmark("accuracy.codecs"),
    "gda-attacks": Benchmark("accuracy.gda_attacks"),
    "gda-partition": Benchmark("accuracy.gda_partition"),
    "gda-privacy": Benchmark("accuracy.gda_privacy"),
    "methods": Benchmark("accuracy.methods"),
    "personalization": Benchmark("accuracy.personalization"),
    "privacy": Benchmark("accuracy.privacy", without("dp_accounting")),
    "protocols": Benchmark("accuracy.protocols"),
    "vs-fedpft": Benchmark("authors.vs_fedpft", without_fedpft),
    "vs-reference": Benchmark("authors.vs_reference"),
    "vs-facmic": Benchmark("authors.vs_facmic", without_facmic),
    "models": Benchmark("encoders.models", without("transformers")),
    "shards": Benchmark("encoders.shards"),
    "predict": Benchmark("encoders.predict"),
    "many-classes": Benchmark("encoders.many_classes"),
    "fuzz": Benchmark("faults.fuzz"),
    "kills": Benchmark("faults.kills"),
    "gpu-check": Benchmark("gpu.check", without_gpu),
    "gpu-resources": Benchmark("gpu.resources", without_nvcc),
    "ops": Benchmark("ops.operators", without_kernels),
    "payload": Benchmark("ops.payload"),
    "scale": Benchmark("scale.embedded"),
    "participants": Benchmark("scale.participants"),
    "sweep": Benchmark("scale.sweep"),
    "scale-hosts": Benchmark("scale.hosts"),
    "host-sites": Benchmark("scale.sites", by_hand),
    "flower-round": Benchmark("scale.flower_round", without("flwr")),
    "fedml-round": Benchmark("scale.fedml_round", without("fedml")),
}


def show() -> None:
    """All of them, a line each."""
    print(USAGE)
    for name, benchmark in BENCHMARKS.items():
        print(f"  {name:16} {benchmark.answer}")


def run_quickly(names: Sequence[str]) -> int:
    """``--quick`` of each in a process of its own; 1 where one failed."""
    lines = []
    failed = False
    for name in names or BENCHMARKS:
        if reason := BENCHMARKS[name].missing():
            lines.append(f"{name:16} not run: {reason}")
            continue
        print(f"==> {name}", file=sys.stderr, flush=True)
        start = time.monotonic()
        command = [sys.executable, "-m", "benchmarks", name, "--quick"]
        code = subprocess.run(
            command, stdout=subprocess.DEVNULL, check=False
        ).returncode
        failed = failed or code != 0
        said = f"exit code {code}" if code else "ok"
        lines.append(f"{name:16} {said}, {time.monotonic() - start:.0f} s")
    print("\n".join(lines))
    return int(failed)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code of the benchmark; 2 for what it refuses, as a name that is none."""
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        show()
        return 0
    quick = words[0] == "--quick"
    names = words[1:] if quick else words[:1]
    for name in names:
        if name not in BENCHMARKS:
            print(f"{USAGE}\nno benchmark {name!r}: {', '.join(BENCHMARKS)}", end="\n",
                  file=sys.stderr)  # fmt: skip
            return 2
    if quick:
        return run_quickly(names)
    module = importlib.import_module(f"benchmarks.{BENCHMARKS[words[0]].module}")
    try:
        return module.main(words[1:]) or 0
    except FedClipError as error:
        print(f"{words[0]}: error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:  # it has said why
        code = error.returncode
        print(f"{words[0]}: a process ended with exit code {code}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
