"""The table of ``attacks.py`` as a picture: a coloured cell for every accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape

CELL, HIGH, LEFT, TOP = 34, 26, 118, 74  # pixels
_GOOD, _BAD = (27, 120, 55), (178, 24, 43)


def heat_map(
    attacks: Sequence[str],
    rules: Sequence[str],
    shares: Sequence[float],
    value: Callable[[str, str, float], float | None],
    ends: tuple[float, float],
) -> str:
    """An SVG: attacks down, rules across, in each the shares of attackers.

    ``value`` is an accuracy; red is ``ends[0]`` or less, green ``ends[1]`` or more.
    """
    wide = CELL * len(shares) + 6
    width, height = LEFT + wide * len(rules), TOP + HIGH * len(attacks) + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(4, 20, "accuracy in %, by share of attackers", "start"),
    ]
    for j, rule in enumerate(rules):
        left = LEFT + wide * j
        parts.append(_text(left + wide // 2, TOP - 26, rule))
        for k, share in enumerate(shares):
            parts.append(_text(left + CELL * k + CELL // 2, TOP - 8, f"{share:.0%}"))
        for i, attack in enumerate(attacks):
            for k, share in enumerate(shares):
                found = value(attack, rule, share)
                if found is not None:
                    parts += _cell(left + CELL * k, TOP + HIGH * i, found, ends)
    for i, attack in enumerate(attacks):
        parts.append(_text(LEFT - 8, TOP + HIGH * i + 17, attack, "end"))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _cell(x: int, y: int, value: float, ends: tuple[float, float]) -> list[str]:
    low, high = ends
    place = min(max((value - low) / (high - low), 0.0), 1.0)
    rgb = ",".join(str(_mixed(place, part)) for part in range(3))
    box = f'<rect x="{x}" y="{y}" width="{CELL - 2}" height="{HIGH - 2}" rx="3" '
    ink = "white" if abs(place - 0.5) > 0.3 else "black"
    label = _text(x + CELL // 2 - 1, y + 16, f"{100 * value:.0f}", fill=ink)
    return [f'{box}fill="rgb({rgb})"/>', label]


def _mixed(place: float, part: int) -> int:
    """From red over a pale grey to green."""
    ends, share = (_BAD, 1 - 2 * place) if place < 0.5 else (_GOOD, 2 * place - 1)
    return round(240 + share * (ends[part] - 240))


def _text(x: int, y: int, text: str, anchor: str = "middle", fill: str = "#222") -> str:
    place = f'x="{x}" y="{y}" text-anchor="{anchor}" fill="{fill}"'
    return f"<text {place}>{escape(text)}</text>"
