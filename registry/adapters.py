"""The adapters that every host selects from; see ``fedclip_plugin.adapter``."""

from __future__ import annotations

from ..adapter import ADAPTERS, AttentionAdapter

__all__ = ["ADAPTERS", "AttentionAdapter"]
