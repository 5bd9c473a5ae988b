"""Runs on a disk that is really full, in a mount namespace of their own.

    unshare -m python -m tests.faults.full_disk FOLDER run|encode PAGES...
    unshare -m python -m tests.faults.full_disk FOLDER HOST ...

mounts a small tmpfs on FOLDER/disk and prints a JSON line for every break: how much was
left, the exit code, what stderr said, and the exit code once there is space again (of a
host's run, in a line of its own).  The mount is gone with the process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from fedclip_plugin.cli import main
from tests.faults.kills import start_or_resume

SIZE = 2 << 20  # bytes of the disk
PAGE = 4096


def fill(disk: Path, left: int) -> None:
    """Leave ``left`` bytes free."""
    (disk / "filler").unlink(missing_ok=True)
    free = shutil.disk_usage(disk).free - left
    with open(disk / "filler", "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(PAGE, free))


def run(argv: list[str]) -> tuple[int, str]:
    """Exit code and stderr of ``fedclip ARGV``."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = main([*argv, "--quiet"])
    return code, said.getvalue()


def break_off(disk: Path, line: Callable[[], list[str]], left: int) -> None:
    """The command ``line()`` with ``left`` bytes, and the next one with all of them."""
    fill(disk, left)
    code, said = run(line())
    (disk / "filler").unlink()
    done, _ = run(line())
    print(json.dumps({"left": left, "code": code, "said": said, "done": done}))


def run_and_report(folder: Path, disk: Path, left: list[int]) -> None:
    """Federated runs; their adapters are kept as ``<pages>-adapter.safetensors``."""
    argv = ["run", "--features", str(folder / "f"), "--target", "photo"]
    argv += ["--rounds", "30"]
    for pages in left:
        break_off(disk, lambda: start_or_resume(argv, disk / "out"), pages * PAGE)
        name = "adapter.safetensors"
        shutil.copy(disk / "out" / name, folder / f"{pages}-{name}")
        shutil.rmtree(disk / "out")


def encode(folder: Path, disk: Path, left: list[int]) -> None:
    """The feature cache; features are kept as ``features-<pages>``."""
    os.environ["FEDCLIP_CACHE"] = str(disk / "cache")
    images = ["--dataset", "mine", "--root", str(folder / "images")]
    model = ["--model", "fedclip-tiny", "--pretrained", "fedclip-tiny"]
    for pages in left:
        to = ["--to", str(folder / f"features-{pages}")]
        argv = ["features", *images, *model, *to]
        break_off(disk, lambda line=argv: line, pages * PAGE)
        shutil.rmtree(disk / "cache")


def in_host(folder: Path, disk: Path, left: list[int], host: str) -> None:
    """The same run again and again, at last with all of the disk.

    The adapter is kept as ``disk-adapter.safetensors``, that of a run which nothing
    disturbed as ``whole-adapter.safetensors``.
    """
    play: Play = getattr(import_module("tests.faults.full_disk_hosts"), host)
    name = "adapter.safetensors"
    for pages in left:
        fill(disk, pages * PAGE)
        code, said = play(folder, disk / "out")
        print(json.dumps({"left": pages, "code": code, "said": said}))
    (disk / "filler").unlink()
    for kept, out in {"disk": disk / "out", "whole": folder / "whole"}.items():
        code, said = play(folder, out)
        print(json.dumps({"left": None, "code": code, "said": said}))
        shutil.copy(out / name, folder / f"{kept}-{name}")


Play = Callable[[Path, Path], tuple[int, str]]
"""Runs in a folder, to an output directory: the exit code, and what it said."""


if __name__ == "__main__":
    place = Path(sys.argv[1])
    mounted = place / "disk"
    mounted.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(mounted)]
    subprocess.run(["mount", *options], check=True)
    work = {"run": run_and_report, "encode": encode}.get(sys.argv[2])
    pages = [int(word) for word in sys.argv[3:]]
    if work is None:
        in_host(place, mounted, pages, host=sys.argv[2])
    else:
        work(place, mounted, pages)
