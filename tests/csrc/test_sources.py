"""What the sources of the kernels must not hold."""

from __future__ import annotations

import re
from pathlib import Path

SOURCES = Path(__file__).resolve().parents[2] / "csrc"
STREAMS = re.compile(r"#include <(\w*stream|iomanip|locale|format)>|std::\w*stream")


def test_there_are_no_streams_and_locales():
    """Where a toolchain puts libstdc++ into the module, its locales meet torch's.

    An error's message then crashed Python (seen with GCC 13, torch 2.11).
    """
    files = [p for p in SOURCES.rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert len(files) > 40
    assert [p.name for p in files if STREAMS.search(p.read_text())] == []
