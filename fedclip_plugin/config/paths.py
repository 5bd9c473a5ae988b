"""Paths and text files as users write them: one reading, wherever they come from."""

from __future__ import annotations

import codecs
import json
import os
import re
from pathlib import Path
from typing import Any

from ..errors import ConfigError


class PathError(ConfigError, ValueError):
    """A path of the user's that names no place."""


def as_path(text: str | os.PathLike[str]) -> Path:
    """A path that a user wrote, absolute: ``~`` and ``$VARIABLES`` as in a shell.

    The one reading of paths, whatever they come from.  Relative ones begin in the
    working directory; links stay where they end the path.  Raises :class:`PathError`,
    a ConfigError and ValueError, for what names no place.
    """
    written = os.fspath(text)
    path = os.path.expanduser(os.path.expandvars(written))
    unset = re.search(r"\$(\w+|\{\w*\})", path)
    if not written.strip() or "\0" in written:
        raise PathError(f"{written!r} is not a path")
    if path.startswith("~") and not os.path.lexists(path):
        raise PathError(
            f"{written}: {path.split(os.sep)[0]} has no home directory here"
        )
    if unset and not os.path.lexists(path):
        raise PathError(f"{written}: the variable {unset[0]} is not set")
    head, name = os.path.split(path)
    try:
        if name in ("", ".", ".."):
            return Path(os.path.realpath(path))
        return Path(os.path.realpath(head), name)
    except OSError as error:
        raise PathError(f"{written}: the working directory is gone") from error


def as_file(text: str) -> Path:
    """:func:`as_path` of a file that may be written; PathError for a folder."""
    path = as_path(text)
    if path.is_dir() or text.endswith(os.sep):
        raise PathError(f"{text} is a folder; expected the path of a file")
    return path


def read_object(path: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The object in a JSON file that a person wrote; None where there is no file.

    Raises ConfigError naming the file.
    """
    try:
        values = json.loads(read_text(path))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f'{path}: expected an object, {{"key": value, ...}}')
    return values


def read_text(path: str | os.PathLike[str]) -> str:
    """A text file that a person wrote, with or without the mark of its encoding.

    UTF-8, or UTF-16 with its mark, as editors and spreadsheets save it.  Raises OSError
    or ValueError.
    """
    data = Path(path).read_bytes()
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if marked else "utf-8-sig")
