"""The commands about host frameworks: ``hosts``, ``register`` and ``fedml``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from .console import Display
from .errors import ConfigError

if TYPE_CHECKING:
    from .registry import Host


def hosts(args: argparse.Namespace, display: Display) -> int:
    """``fedclip hosts``."""
    from .registry import HOSTS

    for host in HOSTS.values():
        display.out.print(f"[bold]{host.title}[/] {_found(host)}", highlight=False)
        for label, text in (
            ("supported", host.supported),
            ("install", host.install),
            ("select", host.select),
        ):
            line = f"  {label:<10} {text}"
            display.out.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _found(host: Host) -> str:
    if host.package is None:
        return "(a repository of yours)"
    version = host.version()
    return f"{version} is installed" if version else "is not installed here"


def register(args: argparse.Namespace, display: Display) -> int:
    """``fedclip register``."""
    from .registry import get_host, register

    if get_host(args.host).name == "fedml" and args.path is None:
        raise ConfigError(
            "FedML is registered for one process: use `fedclip fedml --cf FILE`, or "
            'call fedclip_plugin.registry.register("fedml") in your script'
        )
    display.say(register(args.host, args.path, undo=args.undo))
    return 0


def fedml(args: argparse.Namespace, display: Display) -> int:
    """``fedclip fedml``."""
    from .registry import fedml_host

    fedml_host.run(
        args.cf, args.rank, args.role, args.offline, args.algorithm, args.run_id,
        resume=args.resume,
    )  # fmt: skip
    return 0
