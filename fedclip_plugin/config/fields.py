"""An option is a field of a frozen config class; its metadata say the rest.

:func:`option` declares one, and that is all: its flag, its variable, the keys of the
hosts, its checks, its help and its place in docs/options.md follow from the field.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import math
import os
import re
import shlex
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..errors import ConfigError
from .paths import as_path

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")
_NUMBERS = {int: "a whole number", float: "a number"}
MOST_WHOLE = 2**32 - 1  # what a seed can be; nothing is counted that goes beyond


@dataclass(frozen=True)
class Option:
    """A field as users meet it; ``name`` is its flag without the dashes.

    ``kind`` is the type of one value, ``several`` whether there may be more.
    """

    name: str
    field: str
    kind: type
    several: bool
    default: Any
    help: str = ""
    aliases: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    within: str = ""
    path: bool | str = False
    metavar: str = ""
    shown: str = ""

    @property
    def flag(self) -> str:
        """The long flag of ``fedclip run``."""
        return f"--{self.name}"

    @property
    def expected(self) -> str:
        """What a value has to be, in words."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        if self.kind is bool:
            return "true or false"
        what = _NUMBERS.get(self.kind, "a text")
        if not self.within:
            return what
        low, high = self.within[1:-1].split(", ")
        if high != "inf":
            return f"{what} in {self.within}"
        return f"{what} {'>=' if self.within[0] == '[' else '>'} {low}"

    @property
    def default_text(self) -> str:
        """The default for help and docs; "" where there is none to tell."""
        if self.shown or self.default is None or self.default == ():
            return self.shown
        if isinstance(self.default, tuple):
            return " ".join(map(str, self.default))
        if isinstance(self.default, float):
            return f"{self.default:g}"
        return str(self.default)


PATH = Option("", "", str, False, None, path=True)
"""How a path is read from a key that is not an option."""


def option(default: Any, help: str = "", **more: Any) -> Any:
    """A field of a config class, or of an algorithm's ``Params``.

    ``more`` are fields of :class:`Option`: ``name`` where the flag is not named after
    the field (of an algorithm: ``<algorithm>-<field>``), ``aliases`` (further flags),
    ``choices``, ``within`` (an interval such as ``"(0, 1]"``), ``path`` (True:
    :func:`as_path`; ``"file"``: unless it is a mere name; ``"x:"``: what comes after
    this prefix), ``metavar``, and ``shown``, the default in words.
    A field without this is an option as well.
    """
    return dataclasses.field(default=default, metadata={"help": help, **more})


def options_of(cls: type, prefix: str = "") -> tuple[Option, ...]:
    """The options of a config class, in the order of its fields.

    ``prefix`` begins the names of fields that have no name of their own.  Raises
    TypeError for a field whose type no option can have.
    """
    return _cached(cls, prefix)


@lru_cache(maxsize=256)
def _cached(cls: Any, prefix: str) -> tuple[Option, ...]:
    return tuple(_options(cls, prefix))


def _options(cls: Any, prefix: str) -> Iterator[Option]:
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        meta = dict(f.metadata)
        hint = hints[f.name]
        if hint is Any or dataclasses.is_dataclass(hint):  # a section of its own
            continue
        if f.default is dataclasses.MISSING:
            raise TypeError(f"{cls.__qualname__}.{f.name} needs a default")
        kind, several = _kind(hint, f"{cls.__qualname__}.{f.name}")
        name = meta.pop("name", "") or prefix + f.name.replace("_", "-")
        yield Option(name, f.name, kind, several, f.default, **meta)


def _kind(hint: Any, where: str) -> tuple[type, bool]:
    """(type of one value, whether several) of ``int | None``, ``tuple[int, ...]``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not type(None))
    several = typing.get_origin(hint) is tuple
    kind = typing.get_args(hint)[0] if several else hint
    if kind not in (int, float, str, bool):
        raise TypeError(f"{where}: no option can be of type {hint}")
    return kind, several


def parse(option: Option, value: Any, written: str) -> Any:
    """``value``, a text or what a file had, as the field's type.

    ``written`` is the option with its value as the user wrote it; ConfigError begins
    with it.  Every source comes here, so a value means the same in all of them.
    """
    if value is None and option.default is None:
        return None
    try:
        if not option.several:
            return _one(option, value)
        values = _listed(option, value) if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)):
            values = [values]
        return tuple(_one(option, each) for each in values)
    except ValueError as error:
        raise ConfigError(f"{written}: {error}") from error


def _listed(option: Option, text: str) -> list[Any]:
    """The values in one text: itself, unless it is written as a list, or quoted.

    Numbers need no quotes; ``'a {}' 'the {}'`` are the words of a shell.
    """
    if option.kind is not str:
        return text.strip("[] ").replace(",", " ").split()
    if text.startswith(("'", '"')):
        return shlex.split(text)
    if text.startswith("["):
        with contextlib.suppress(ValueError, TypeError, SyntaxError, RecursionError):
            return list(ast.literal_eval(text.strip()))
    return [text]


def _one(option: Option, value: Any) -> Any:
    converted = _convert(option, value)
    if converted is None or not _allowed(option, converted):
        raise ValueError(f"expected {option.expected}")
    if option.kind is int and abs(converted) > MOST_WHOLE:
        raise ValueError(f"expected {option.expected}, at most {MOST_WHOLE:,}")
    if option.kind is str and any("\ud800" <= char <= "\udfff" for char in converted):
        raise ValueError("expected text in UTF-8; rename it")
    return _located(option.path, converted) if option.path else converted


def _located(kind: bool | str, text: str) -> str:
    """``text`` with what is a path in it made absolute."""
    if isinstance(kind, str) and kind.endswith(":"):
        is_path = text.startswith(kind)
        return f"{kind}{as_path(text.removeprefix(kind))}" if is_path else text
    named = kind == "file" and os.sep not in text and not text.startswith(("~", "$"))
    return text if named and not os.path.isfile(text) else str(as_path(text))


def _convert(option: Option, value: Any) -> Any:
    """``value`` as ``option.kind``; None where it cannot be one."""
    if option.kind is bool or "on" in option.choices:
        word = str(value).strip().lower()
        is_switch = word in _TRUE or word in _FALSE
        switch = word in _TRUE if is_switch else None
        if option.kind is bool or switch is None:
            return switch
        return "on" if switch else "off"
    if option.kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    if option.kind is str:
        return str(value)
    try:
        number = float(value)
        if option.kind is float:
            return number
        return int(value) if isinstance(value, str) or number == int(number) else None
    except (ValueError, OverflowError):
        return None


def _allowed(option: Option, value: Any) -> bool:
    if option.choices:
        parts = [str(value)]
        if "cuda:N" in option.choices and len(several := str(value).split(",")) > 1:
            parts = several  # the auto of some is not a device
        numbered = [re.sub(r":\d+$", ":N", part.strip()) for part in parts]
        if len(parts) > 1:
            return all(n in option.choices and n != "auto" for n in numbered)
        return value in option.choices or numbered[0] in option.choices
    if option.kind not in _NUMBERS:
        return True
    if not math.isfinite(value):
        return False
    if not option.within:
        return True
    low, high = map(float, option.within[1:-1].split(", "))
    inside = low < value < high
    at_low = option.within[0] == "[" and value == low
    at_high = option.within[-1] == "]" and value == high
    return bool(inside or at_low or at_high)


class Section:
    """A config class that checks its fields, however it is made."""

    def __post_init__(self) -> None:
        cls = type(self)
        for o in options_of(cls):
            value = getattr(self, o.field)
            written = f"{cls.__qualname__}({o.field}={value!r})"
            object.__setattr__(self, o.field, parse(o, value, written))
