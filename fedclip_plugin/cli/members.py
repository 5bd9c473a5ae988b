"""``fedclip join`` and ``fedclip leave``."""

from __future__ import annotations

import argparse
from typing import Any

from ..settings.sources import load_config, read_config
from .console import Display


def join(args: argparse.Namespace, display: Display) -> int:
    """``fedclip join``."""
    from ..runs import members

    run = args.run_directory
    former = members.Former.read(run, load_config(run / "config.toml"))
    _say(members.join(former, read_config(args), args.out, args.client), args, display)
    return 0


def leave(args: argparse.Namespace, display: Display) -> int:
    """``fedclip leave``."""
    from ..runs import members

    run = args.run_directory
    former = members.Former.read(run, load_config(run / "config.toml"))
    own = read_config(args) if args.features or args.root else None
    _say(members.leave(former, args.client, args.out, own), args, display)
    return 0


def _say(summary: dict[str, Any], args: argparse.Namespace, display: Display) -> None:
    from ..report.console import print_table

    print_table(display.finish(), [summary])
    display.say(f"written: {args.out}")
