"""The JSON of a run directory, which may come from a stranger, checked by its shape."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

MAX_TEXT = 10_000  # characters
MAX_CLASSES = 2000  # of a confusion matrix that is drawn
_CONTROL = ("Cc", "Cs")
Check = Callable[[Any], str | None]
"""Returns what is wrong with a value, None if nothing is."""


def text(value: Any) -> str | None:
    """A text that may be shown: no control characters, which terminals would obey."""
    if not isinstance(value, str):
        return f"expected a text, got {_short(value)}"
    if len(value) > MAX_TEXT:
        return f"expected a text of at most {MAX_TEXT} characters"
    if any(unicodedata.category(sign) in _CONTROL for sign in value):
        return f"control characters in {value[:60]!a}"
    return None


def number(value: Any) -> str | None:
    """A finite number."""
    fine = type(value) in (int, float) and abs(value) < 1e300 and math.isfinite(value)
    return None if fine else f"expected a number, got {_short(value)}"


def fraction(value: Any) -> str | None:
    """An accuracy."""
    fine = type(value) in (int, float) and -1e-6 <= value <= 1 + 1e-6
    return None if fine else f"expected a fraction in 0..1, got {_short(value)}"


def count(value: Any) -> str | None:
    """A whole number from 0 on."""
    fine = type(value) is int and 0 <= value < 2**53
    return None if fine else f"expected a count, got {_short(value)}"


def maybe(check: Check) -> Check:
    """What ``check`` takes, or null."""
    return lambda value: None if value is None else check(value)


def several(check: Check, most: int | None = None) -> Check:
    """A list of what ``check`` takes."""

    def found(value: Any) -> str | None:
        if not isinstance(value, list):
            return f"expected a list, got {_short(value)}"
        if most is not None and len(value) > most:
            return f"expected at most {most} entries, got {len(value)}"
        return next((wrong for v in value if (wrong := check(v))), None)

    return found


def each(check: Check) -> Check:
    """A JSON object of any names, each with what ``check`` takes."""

    def found(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return f"expected a JSON object, got {_short(value)}"
        for name, inner in value.items():
            if wrong := text(name):
                return wrong
            if wrong := check(inner):
                return f"{name}: {wrong}"
        return None

    return found


def fields(
    needed: Mapping[str, Check], known: Mapping[str, Check] | None = None
) -> Check:
    """A JSON object with the ``needed`` names, and perhaps ``known`` and other ones."""

    def found(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return f"expected a JSON object, got {_short(value)}"
        for name in needed:
            if name not in value:
                return f"{name} is missing"
        for name, check in {**needed, **(known or {})}.items():
            if name in value and (wrong := check(value[name])):
                return f"{name}: {wrong}"
        return None

    return found


def _short(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return f"a {type(value).__name__}"
    return ascii(value)[:60]


_SCORES = fields(
    {"clients": each(maybe(fraction))},
    {"target": maybe(fraction), "mean": maybe(fraction)},
)
_PERSONAL = each(fields({key: maybe(fraction) for key in ("shared", "personal")}))
SUMMARY = fields(
    {
        **dict.fromkeys(("algorithm", "dataset", "model"), text),
        "rounds": count,
        **dict.fromkeys(("zero_shot", "result"), _SCORES),
        "communication": fields(
            {}, dict.fromkeys(("bytes_up", "bytes_down", "params"), maybe(count))
        ),
        "seconds": fields(
            {}, dict.fromkeys(("features", "train", "evaluate"), maybe(number))
        ),
    },
    {
        **dict.fromkeys(("variant", "pretrained", "target"), maybe(text)),
        **dict.fromkeys(("best_round", "quarantined"), maybe(count)),
        "seed": maybe(number),
        "skipped_images": maybe(several(text)),
        "metrics": maybe(each(maybe(each(maybe(number))))),
        "privacy": maybe(fields({"epsilon": number, "promise": text})),
        "personalization": maybe(
            fields({"method": text, "clients": _PERSONAL, "new_clients": _PERSONAL})
        ),
    },
)
"""A leaf's ``summary.json``."""

ROUND = fields(
    {"round": count},
    {
        **dict.fromkeys(("loss", "epsilon"), maybe(number)),
        **dict.fromkeys(("target", "mean_val", "mean_test"), maybe(fraction)),
        "clients": maybe(each(maybe(each(maybe(fraction))))),
        **dict.fromkeys(("bytes_up", "bytes_down", "quarantined"), maybe(count)),
    },
)
"""A line of ``metrics.jsonl``."""

_MATRIX = several(several(count, MAX_CLASSES), MAX_CLASSES)
_SPLITS = dict.fromkeys(("train", "val", "test"), maybe(count))


def _matrix(value: Any) -> str | None:
    uneven = _MATRIX(value) is None and len({len(row) for row in value}) > 1
    return "rows of different lengths" if uneven else _MATRIX(value)


EVALUATION = fields(
    {},
    {
        "classes": maybe(several(text)),
        "confusion": maybe(each(maybe(_matrix))),
        "metrics": maybe(each(maybe(each(maybe(number))))),
        "clients": maybe(
            each(fields({}, {**_SPLITS, "train_per_class": maybe(several(count))}))
        ),
    },
)
"""``evaluation.json``."""
