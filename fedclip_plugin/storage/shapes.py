"""The JSON of a run directory, which may come from a stranger, checked by its shape."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_TEXT = 10_000  # characters
MOST_COUNT = 2**53  # whole numbers up to here are exact as floats
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # Unicode's Cc and Cs
Check = Callable[[Any], str | None]
"""Returns what is wrong with a value, None if nothing is."""


def text(value: Any) -> str | None:
    """A string that may be shown: no control characters, which terminals would obey."""
    if not isinstance(value, str):
        return f"expected a string, got {_short(value)}"
    if len(value) > MAX_TEXT:
        return f"expected a string of at most {MAX_TEXT} characters"
    if has_control(value):
        return f"control characters in {value[:60]!a}"
    return None


def has_control(value: str) -> bool:
    """Whether a string holds control characters or lone surrogates."""
    return _CONTROL.search(value) is not None


def cleaned(value: Any) -> Any:
    """A JSON value as the checks of this module take it, to be written or shown.

    Control characters become others, long texts are cut, and numbers that are none
    become null.
    """
    if isinstance(value, str):
        fine = _CONTROL.sub("\N{REPLACEMENT CHARACTER}", value)
        return fine if len(fine) <= MAX_TEXT else f"{fine[: MAX_TEXT - 3]}..."
    if isinstance(value, Mapping):
        return {cleaned(str(name)): cleaned(inner) for name, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def number(value: Any) -> str | None:
    """A finite number."""
    fine = type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)
    return None if fine else f"expected a number, got {_short(value)}"


def fraction(value: Any) -> str | None:
    """An accuracy."""
    fine = type(value) in (int, float) and -1e-6 <= value <= 1 + 1e-6
    return None if fine else f"expected a fraction in 0..1, got {_short(value)}"


def count(value: Any) -> str | None:
    """A non-negative integer."""
    fine = type(value) is int and 0 <= value <= MOST_COUNT
    return None if fine else f"expected a count, got {_short(value)}"


def flag(value: Any) -> str | None:
    """True or false."""
    fine = isinstance(value, bool)
    return None if fine else f"expected true or false, got {_short(value)}"


def maybe(check: Check) -> Check:
    """What ``check`` accepts, or null."""
    return lambda value: None if value is None else check(value)


def several(check: Check, most: int | None = None) -> Check:
    """A list of what ``check`` accepts."""

    def check_list(value: Any) -> str | None:
        if not isinstance(value, list):
            return f"expected a list, got {_short(value)}"
        if most is not None and len(value) > most:
            return f"expected at most {most} entries, got {len(value)}"
        return next((wrong for v in value if (wrong := check(v))), None)

    return check_list


def each(check: Check) -> Check:
    """A JSON object with any names and values that ``check`` accepts."""

    def check_object(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return f"expected a JSON object, got {_short(value)}"
        for name, inner in value.items():
            if wrong := text(name):
                return wrong
            if wrong := check(inner):
                return f"{name}: {wrong}"
        return None

    return check_object


def fields(
    required: Mapping[str, Check], optional: Mapping[str, Check] | None = None
) -> Check:
    """A JSON object with ``required`` names, perhaps ``optional`` and other ones."""

    def check_fields(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return f"expected a JSON object, got {_short(value)}"
        for name in required:
            if name not in value:
                return f"{name} is missing"
        for name, check in {**required, **(optional or {})}.items():
            if name in value and (wrong := check(value[name])):
                return f"{name}: {wrong}"
        return None

    return check_fields


def _short(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__}"
    return ascii(value)[:60]
