"""Docstrings as Markdown: what they hold of reStructuredText is rewritten."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:\w+:)?\w+:`~?(?:[\w.]*\.)?(\w+)`")


class Docstrings(griffe.Extension):
    """``:class:`Name``` becomes code, and ``::`` before a block of code a colon."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by griffe for everything that it loads."""
        if obj.docstring is not None:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.M)
