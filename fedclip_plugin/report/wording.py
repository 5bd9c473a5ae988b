"""How methods, numbers, bytes and seconds are worded in tables and pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..data.partition import NO_TARGET
from .records import Summary

VISIBLE = 5e-5  # of a fraction: half the last digit that is shown
MAX_CLAUSES = 6  # of a warning
TRANSDUCTIVE = "transductive"


_NAMES = {
    "faa-clip": "FAA-CLIP",
    "facmic": "FACMIC",
    "fedavg": "FedAVG",
    "fedavg-lora": "FedAVG of LoRA",
    "fedclip": "FedCLIP",
    "fedmedclip": "FedMedCLIP",
    "fedprox": "FedProx",
    "fedtpg": "FedTPG",
    "linear": "linear head",
    "local": "local adapters",
    "promptfl": "PromptFL",
    "kgcoop": "KgCoOp",
    "zero_shot": "zero-shot",
    "zeroshot": "zero-shot",
}


# -- words ----------------------------------------------------------------------------


def method_name(algorithm: str) -> str:
    """The name of an algorithm as papers write it."""
    return _NAMES.get(algorithm, algorithm)


def method_of(summary: Summary) -> str:
    """The algorithm's name, marked where training saw the held-out domain's images."""
    name = method_name(summary["algorithm"])
    return f"{name} ({TRANSDUCTIVE})" if summary.get("transductive") else name


def method_label(summary: Summary) -> str:
    """The algorithm's name with what a run changed of its defaults."""
    seen = TRANSDUCTIVE if summary.get("transductive") else ""
    name, more = method_name(summary["algorithm"]), (seen, summary.get("variant"))
    details = ", ".join(filter(None, more))
    return f"{name} ({details})" if details else name


def percent(value: float | None, missing: str = "-") -> str:
    """A fraction in per cent with two decimals, as in the paper's tables."""
    return missing if value is None else f"{100 * value:.2f}"


def points(value: float | None, missing: str = "-") -> str:
    """A difference of two fractions in signed percentage points."""
    return missing if value is None else f"{100 * value:+.2f}"


def half_width(half: float | None, sign: str = "± ") -> str:
    """The half-width of an interval in percentage points; empty where there is none."""
    return "" if half is None else f"{sign}{100 * half:.2f}"


def with_half(value: float | None, half: float | None, sign: str = " ± ") -> str:
    """Per cent with the half-width of its interval, if there is one."""
    return percent(value) + half_width(half, sign)


def lift(result: float | None, zero_shot: float | None) -> float | None:
    """How far the method is above zero-shot; None when either is unknown."""
    return None if result is None or zero_shot is None else result - zero_shot


def human_bytes(count: float) -> str:
    """Bytes in binary units: ``1.5 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_seconds(seconds: float) -> str:
    """Seconds as ``0.42 s``, ``12.3 s``, ``3 min 05 s`` or ``2 h 07 min``."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def promise(group: Sequence[Summary]) -> str:
    """What the run with the highest epsilon promises its clients; empty without."""
    promises = [p for s in group if (p := s.get("privacy"))]
    worst = max(promises, key=lambda p: float(p["epsilon"]), default={"promise": ""})
    return str(worst["promise"])


def fell_short(row: Mapping[str, Any]) -> list[str]:
    """Of ``target`` and ``clients``, those that training worsened."""
    worse = []
    for kind in ("target", "clients"):
        more = lift(row["result"][kind], row["zero_shot"][kind])
        if more is not None and more < -VISIBLE:
            worse.append(kind)
    return worse


def below_zero_shot(by_target: Mapping[str, Any]) -> list[str]:
    """A clause for every held-out domain, and clients' mean, that training worsened."""
    text = {"target": "held-out {}", "clients": "clients with {} out"}
    clauses = []
    for name, row in by_target.items():
        for kind in fell_short(row):
            where = text[kind].format(name) if name != NO_TARGET else "clients"
            got, base = row["result"][kind], row["zero_shot"][kind]
            clauses.append(f"{where} ({percent(got)} < {percent(base)})")
    return clauses


def warning(total: Mapping[str, Any], method: str) -> str:
    """What training worsened, in a sentence; empty where nothing."""
    clauses = below_zero_shot(total["by_target"])
    more = len(clauses) - MAX_CLAUSES
    shown = "; ".join(clauses[:MAX_CLAUSES]) + f"; and {more} more" * (more > 0)
    return f"{method} is below zero-shot: {shown}" if clauses else ""
