"""What the examples' scripts show, without the hosts that they start."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from fedclip_plugin.registry.fedml.log import final_lines
from tests.waiting import SECONDS

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PREFIX = (
    "[FedML-Server @device-id-0] [Thu, 26 Nov 2026 07:00:00] [INFO] [server.py:1:x]"
)


@pytest.mark.skipif(not Path("/bin/sh").exists(), reason="needs a shell")
def test_the_script_for_cross_silo_shows_the_table_with_its_rows(
    tmp_path: Path,
) -> None:
    scores = {"clients": {"scan": 0.5, "photo": 0.25}, "mean": 0.375, "target": None}
    summary = {"zero_shot": scores, "result": scores, "target": None, "best_round": 1}
    summary |= {"rounds": 2, "communication": {"bytes_up": 7, "bytes_down": 8}}
    table = final_lines(summary)
    first = "FedCLIP round 1/2; test accuracy in %: scan 50.0; bytes up 7, down 8"
    log = [f"{PREFIX} {line}" for line in ("noise", first, *table, "more noise")]
    (tmp_path / "log").write_text("\n".join(log) + "\n")
    fake = tmp_path / "bin" / "fedclip"
    fake.parent.mkdir()
    fake.write_text(f"#!/bin/sh\ncat {tmp_path / 'log'}\n")
    fake.chmod(0o755)
    script = shutil.copy(EXAMPLES / "fedml" / "start_cross_silo.sh", tmp_path)
    path = f"{fake.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["/bin/sh", script, "x.yaml", "1"],
        env={**os.environ, "PATH": path},
        capture_output=True, text=True, check=True, timeout=SECONDS,
    )  # fmt: skip
    assert done.stdout.splitlines() == [first, *table]
