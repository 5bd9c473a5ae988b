"""The server of a job in NVFlare, killed: its sites are in the same process.

A site that is killed, and NVFlare's own server: ``tests/registry/nvflare``.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from fedclip_plugin.registry.nvflare.server import Server
from fedclip_plugin.registry.nvflare.site import Site
from tests.faults.kills import break_serving, write_to
from tests.federation.toy import DOMAINS
from tests.registry.nvflare.world import Local, log


def serve(toy: Path, out: Path, rounds: int, said: Path) -> None:
    """A job's run, which goes on where there is one."""
    write_to(said)
    sites = {
        f"site-{n}": Site(f"site-{n}", {"features": toy}, {})
        for n in range(1, len(DOMAINS) + 1)
    }
    options = {"features": str(toy), "rounds": rounds, "out": str(out), "resume": True}
    Server(options, out.parent / "job", Local(sites), log).play()


break_server = partial(break_serving, serve, "NVFlare server")
