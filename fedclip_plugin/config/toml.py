"""Configurations as TOML; ``settings.sources`` reads them back."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from ..errors import ConfigError
from .paths import read_text
from .schema import RunConfig

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same parser under its former name
    import tomli as tomllib


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Nested plain dict of a config; ``None`` is left out, tuples become lists.

    The algorithm's own parameters are a section of its name.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items() if v is not None}
        return list(value) if isinstance(value, tuple) else value

    values: dict[str, Any] = plain(dataclasses.asdict(config))
    del values["notes"]
    if params := values.pop("params", None):
        values[config.algorithm.lower()] = params
    return values


def to_toml(config: RunConfig) -> str:
    """TOML text that ``settings.sources.load_config`` reads back to an equal config."""
    return tomli_w.dumps(to_dict(config))


def load_toml(path: str | Path, what: str = "--config") -> dict[str, Any]:
    """Read a TOML file to a dict; raises ConfigError naming the file and the line.

    ``what`` it is leads its name in messages.
    """
    try:
        values: dict[str, Any] = tomllib.loads(read_text(path))
        return values
    except OSError as error:
        raise ConfigError(f"cannot read {what} {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{what} {path} is not valid TOML: {error}") from error
