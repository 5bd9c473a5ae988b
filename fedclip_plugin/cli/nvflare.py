"""``fedclip nvflare job`` and ``fedclip nvflare allow``."""

from __future__ import annotations

import argparse
from typing import Any

from ..config.fields import options_of
from ..settings import options
from .console import Display


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Every option of a run, and those of a job."""
    from ..registry.nvflare.options import Sampling

    options.add_options(parser, "sites", options_of(Sampling))
    options.add_run_options(parser)


def job(args: argparse.Namespace, display: Display) -> int:
    """``fedclip nvflare job``."""
    from ..registry import nvflare_host

    for path in nvflare_host.write_job(args.folder, _chosen(args), args.name):
        display.say(f"written: {path}")
    display.say(f"next: nvflare job submit -j {args.folder}")
    return 0


def _chosen(args: argparse.Namespace) -> dict[str, Any]:
    """The options of flags over those of ``--config``, by their names."""
    from ..registry.nvflare.options import Sampling
    from ..settings.sources import command_options

    own = {o.name for o in options_of(Sampling)}
    flags = {n: v for n, v in vars(args).items() if n in own and v is not None}
    return {**command_options(args), **flags}


def allow(args: argparse.Namespace, display: Display) -> int:
    """``fedclip nvflare allow``."""
    from ..registry import nvflare_host

    for folder in args.folders:
        for line in nvflare_host.allow(folder):
            display.say(line)
    return 0
