"""Bindings to the host frameworks, installed as ``fedclip_plugin.registry``."""

from __future__ import annotations

if __name__ != "fedclip_plugin.registry":
    raise ImportError(
        f"{__name__!r} is a source folder: import it as 'fedclip_plugin.registry' "
        "after `pip install -e .`"
    )
