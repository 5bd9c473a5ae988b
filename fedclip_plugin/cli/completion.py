"""``fedclip completion SHELL``: a script by which the shell completes words.

Commands, options and their choices are written into the script, those of algorithms
too: where TAB is pressed no Python starts, and so no torch is loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

SHELLS = ("bash", "zsh", "fish")
EPILOG = """examples:
  fedclip completion bash > ~/.local/share/bash-completion/completions/fedclip
  fedclip completion zsh > ~/.zfunc/_fedclip        fpath+=~/.zfunc before compinit
  fedclip completion fish > ~/.config/fish/completions/fedclip.fish

A new version, or a package with algorithms of its own, wants the script made anew.
"""
_FILES = ("FILE", "FILE.toml", "IMAGE|DIR|-", "NAME|FILE", "PATH")
_FOLDERS = ("DIR", "RUN")


def completion(parser: argparse.ArgumentParser, shell: str) -> str:
    """The script for ``shell``; ``parser`` is changed, and parses no more."""
    import shtab

    from ..algorithms import ALGORITHMS

    for action in _actions(parser):
        words, place = _choices(action), str(action.metavar)
        if action.dest in ("alg", "algorithm"):
            words = ALGORITHMS.names()
        if words and not action.choices:
            action.choices = words
        if place in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif place in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    return shtab.complete(parser, shell=shell)


def _choices(action: argparse.Action) -> list[str]:
    """The words of an option that is checked later, as its help shows them."""
    shown = action.metavar if isinstance(action.metavar, str) else ""
    return shown[1:-1].split(",") if shown[:1] == "{" else []


def _actions(parser: Any) -> Iterator[argparse.Action]:
    """Every action of ``parser`` and of its commands, those that come late as well."""
    if fill := getattr(parser, "fill", None):
        parser.fill = None
        fill(parser)
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
