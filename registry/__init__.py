"""Bindings to the host frameworks, installed as ``fedclip_plugin.registry``.

A binding translates between a host's contract and the one engine of this package; it
computes nothing.  Importing this package imports no host.
"""

from __future__ import annotations

if __name__ != "fedclip_plugin.registry":
    raise ImportError(
        f"{__name__!r} is a source folder: import it as 'fedclip_plugin.registry' "
        "after `pip install -e .`"
    )

from .hosts import HOSTS, Host, get_host, register

__all__ = ["HOSTS", "Host", "get_host", "register"]
