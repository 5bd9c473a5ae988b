"""Configurations as TOML and back; ``load_toml`` and ``to_toml`` are inverse."""

from __future__ import annotations

import dataclasses
import sys
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import tomli_w

from ..errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:  # pragma: no cover - the same parser under its former name
    import tomli as tomllib

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain dict of a config; ``None`` is left out, tuples become lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items() if v is not None}
        return list(value) if isinstance(value, tuple) else value

    return {
        key: plain(value)
        for key, value in dataclasses.asdict(config).items()
        if value is not None
    }


def to_toml(config: Any) -> str:
    """TOML text that :func:`load_toml` reads back to an equal config."""
    return tomli_w.dumps(to_dict(config))


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Build a config dataclass; raises ConfigError on an unknown key or wrong type."""
    hints = typing.get_type_hints(cls)
    fields = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    unknown = sorted(set(values) - fields)
    if unknown:
        raise ConfigError(
            f"{where}: unknown key {unknown[0]!r}; known: {', '.join(sorted(fields))}"
        )
    return cls(**{k: _convert(v, hints[k], f"{where}.{k}") for k, v in values.items()})


def _convert(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where}: expected a table, got {value!r}")
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    text = str(hint)
    if text.startswith("tuple["):
        items = value if isinstance(value, (list, tuple)) else [value]
        kind = int if "int" in text else str
        return tuple(_scalar(item, kind, where) for item in items)
    if value is None and "None" in text:
        return None
    for scalar in (int, float, str):
        if hint is scalar or text == f"{scalar.__name__} | None":
            return _scalar(value, scalar, where)
    raise TypeError(f"{where}: unsupported field type {hint}")  # a fault of ours


def _scalar(value: Any, kind: type, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, kind) and not isinstance(value, bool):
        return value
    raise ConfigError(
        f"{where}: expected {kind.__name__}, got {value!r} ({type(value).__name__})"
    )


def load_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file to a dict; raises ConfigError naming the file and the line."""
    try:
        values: dict[str, Any] = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        return values
    except OSError as error:
        raise ConfigError(f"cannot read --config {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not valid TOML: {error}") from error
