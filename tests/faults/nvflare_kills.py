"""The server of a job in NVFlare, killed: its sites are in the same process.

A site that is killed, and NVFlare's own processes: ``tests/registry/nvflare``.
"""

from __future__ import annotations

import time
from pathlib import Path

from fedclip_plugin.registry.nvflare.server import Server
from fedclip_plugin.registry.nvflare.site import Site
from tests.faults.kills import (
    Toll,
    check_files,
    kill,
    rounds_in,
    running,
    sha256,
    timeless,
    write_to,
)
from tests.federation.toy import DOMAINS
from tests.registry.nvflare.world import Local, log
from tests.waiting import SECONDS, wait_until

ADAPTER = "adapter.safetensors"


def serve(toy: Path, out: Path, rounds: int, said: Path) -> None:
    """A job's run, which goes on where there is one."""
    write_to(said)
    sites = {
        f"site-{n}": Site(f"site-{n}", {"features": toy}, {})
        for n in range(1, len(DOMAINS) + 1)
    }
    options = {"features": str(toy), "rounds": rounds, "out": str(out), "resume": True}
    Server(options, out.parent / "job", Local(sites), log).play()


def break_server(folder: Path, toy: Path, toll: Toll, kills: int) -> None:
    """Kill the process of the server in some round, and submit the job again."""
    rounds, said = 6 * (kills + 1), folder / "log"
    with running(serve, toy, folder / "whole", rounds, said) as process:
        process.join(SECONDS)
        assert process.exitcode == 0, said.read_text()
    out = folder / "out"
    for _ in range(kills):
        metrics = out / "metrics.jsonl"
        goal = rounds_in(metrics) + toll.rng.randint(1, 4)
        with running(serve, toy, out, rounds, said) as process:
            wait_until(lambda m=metrics, g=goal: rounds_in(m) >= g)
            time.sleep(toll.rng.random() * 0.03)
            assert process.is_alive()
            kill(process)
        toll.count("NVFlare server")
        check_files(out)
    with running(serve, toy, out, rounds, said) as process:
        process.join(SECONDS)
        assert process.exitcode == 0, said.read_text()
    assert sha256(folder / "whole" / ADAPTER) == sha256(out / ADAPTER)
    assert timeless(folder / "whole") == timeless(out)
    toll.compared += 1
