"""Runs in hosts, each as a process that a disk may end; see ``full_disk.in_host``.

What is imported beside one host alone is imported when that host is asked for.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

from fedclip_plugin.errors import FedClipError, whole_line
from tests.faults.kills import running, write_to
from tests.federation.toy import write_toy

ROUNDS = 6


def toy(folder: Path) -> Path:
    """The features of all runs in ``folder``."""
    features = folder / "f"
    return features if features.exists() else write_toy(features)


def fedml(folder: Path, out: Path) -> tuple[int, str]:
    """``fedclip fedml --resume`` in one process."""
    from tests.registry.fedml.runs import FEDCLIP, finish, options, write_yaml

    values = options(toy(folder), comm_round=ROUNDS, fedclip_out=str(out))
    cf = write_yaml(folder / "fedml_config.yaml", values)
    (folder / "0.log").unlink(missing_ok=True)
    command = [*FEDCLIP, "fedml", "--cf", str(cf), "--offline", "--resume"]
    ((code, log),) = finish(folder, [command])
    return code, log


def flower(folder: Path, out: Path) -> tuple[int, str]:
    """A ServerApp's run; its nodes are in the same process."""
    os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when Flower is imported
    from tests.faults.flower_kills import serve

    log = folder / "log"
    log.unlink(missing_ok=True)
    with running(serve, toy(folder), out, ROUNDS, log) as process:
        process.join()
    return process.exitcode or 0, log.read_text()


def nvflare(folder: Path, out: Path) -> tuple[int, str]:
    """A job's server; its sites are in the same process."""
    log = folder / "log"
    log.unlink(missing_ok=True)
    with running(_job, toy(folder), out, log) as process:
        process.join()
    return process.exitcode or 0, log.read_text()


def _job(features: Path, out: Path, log: Path) -> None:
    """What goes wrong is one line, as ``controller.py`` gives it to NVFlare."""
    from tests.faults.nvflare_kills import serve

    try:
        serve(features, out, ROUNDS, log)
    except FedClipError as error:
        print(f"fedclip: error: {whole_line(error)}", file=sys.stderr)
        sys.exit(2)


def personalizedfl(folder: Path, out: Path) -> tuple[int, str]:
    """``main.py --alg fedclip``, of the double; what it says on stderr."""
    from tests.registry.personalizedfl.world import DOUBLE, World, copy_repository

    if not (folder / "world").exists():
        copy_repository(DOUBLE, folder)
        World(folder / "world")
    log = folder / "log"
    log.unlink(missing_ok=True)
    with running(main_py, folder, out, log) as process:
        process.join()
    return process.exitcode or 0, log.read_text()


def main_py(folder: Path, out: Path, log: Path) -> None:
    """A process of PersonalizedFL's, with what it says at its very end."""
    from fedclip_plugin.registry import personalizedfl_host
    from tests.registry.personalizedfl.world import words_of

    os.chdir(folder)
    write_to(log, 2)
    write_to(Path(os.devnull), 1)
    os.environ["FEDCLIP_FEATURES"] = str(folder / "world" / "features")
    os.environ["FEDCLIP_OUT"] = str(out)
    words = [str(word) for word in words_of(folder / "world")]
    try:
        personalizedfl_host.main([str(folder / "repository" / "main.py"), *words])
    finally:  # multiprocessing leaves them out
        atexit._run_exitfuncs()
