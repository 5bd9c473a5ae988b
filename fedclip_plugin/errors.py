"""Errors that a user can cause and fix.

The command line prints the message of a :class:`FedClipError` as one line and exits
with code 2.  Say what was got, what was expected, and how to fix it; name the file or
the flag.  Any other exception is a fault of ours and exits with code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedClipError(Exception):
    """Base class: bad input, explained in one line with its remedy."""


class ConfigError(FedClipError):
    """An unknown name, a malformed TOML file, or a value out of range."""


class DataError(FedClipError):
    """A missing, empty, inconsistent or unreadable image folder or data set."""


class WeightsError(FedClipError):
    """An unknown model or tag, or a checkpoint that does not fit the model."""


class FeaturesError(FedClipError):
    """A feature directory that is missing, damaged, or of another format."""


class UpdateError(FedClipError):
    """A client update with wrong keys, shapes, dtypes or non-finite values."""


class RunError(FedClipError):
    """An output directory or checkpoint that cannot be used as requested."""


def did_you_mean(
    name: str, known: Iterable[str], most: int = 1, cutoff: float = 0.6
) -> str:
    """``; did you mean X?``, or nothing: the end of an error about an unknown name.

    Case, spaces and punctuation do not count.  At most ``most`` names, none of them
    less similar than ``cutoff`` (0 to 1, see :func:`difflib.get_close_matches`).
    """
    keys = {spelling_key(item): item for item in known}
    close = difflib.get_close_matches(spelling_key(name), keys, most, cutoff)
    return f"; did you mean {' or '.join(keys[key] for key in close)}?" if close else ""


def spelling_key(name: str) -> str:
    """What is left of a name when case, spaces and punctuation do not count."""
    return "".join(char for char in name.casefold() if char.isalnum())


def one_line(error: BaseException) -> str:
    """The message of another library's error, as part of one line of ours."""
    text = " ".join(str(error).split())
    return text[:200] if text else type(error).__name__
