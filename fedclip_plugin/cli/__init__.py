"""The command line: ``fedclip``, and ``python -m fedclip_plugin.cli``."""

from __future__ import annotations

from .parser import main

__all__ = ["main"]
