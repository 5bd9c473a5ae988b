"""Errors that a user can cause and mend.

The command line prints the message of a :class:`FedClipError` as one line and exits
with code 2.  Say what was got, what was expected, and how to put it right; name the
file or the flag.  Any other exception is a fault of ours and exits with code 1.
"""

from __future__ import annotations


class FedClipError(Exception):
    """Base class: bad input, told in one line with its remedy."""


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
    """An output directory or checkpoint that cannot be used as asked."""
