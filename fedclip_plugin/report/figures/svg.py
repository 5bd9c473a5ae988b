"""Matplotlib figures as inline SVG that follows the page's light or dark theme.

Figures use the object API only: nothing global is set but within ``figure_style``.
Colours are named after CSS variables of the page; matplotlib draws with a stand-in
that :func:`to_svg` turns into ``var(--name)``.  The output is deterministic.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_COLOURS = (
    *("ink", "muted", "grid", "surface", "method", "base", "clients", "on-method"),
    *(f"k{i}" for i in range(10)),
)
_STAND_IN = {name: f"#0000{i + 1:02x}" for i, name in enumerate(_COLOURS)}
_NAME_OF = {stand_in: name for name, stand_in in _STAND_IN.items()}

SIZE, SMALL = 9.0, 8.0  # points; a phone shows them at about as many pixels

_STYLE: dict[Any, Any] = {
    # all but what rc_context would not restore
    **{k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k},
    "svg.fonttype": "none",  # text stays text: it can be selected and searched
    "svg.hashsalt": "fedclip",
    "svg.image_inline": True,
    "text.parse_math": False,  # a class may be named "$1"
    "text.usetex": False,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "font.size": SIZE,
    "path.simplify_threshold": 0.3,
}

WIDTH = 4.8  # inches; one column of the page, and a phone, at about the same text size


@dataclass(frozen=True)
class Key:
    """A legend entry: ``mark`` is ``fill``, ``line``, ``dash`` or ``band``."""

    colour: str
    text: str
    mark: str = "fill"


@dataclass(frozen=True)
class Chart:
    """An inline SVG with what stands around it; all texts are plain, not HTML."""

    title: str
    svg: str
    legend: tuple[Key, ...] = ()
    note: str = ""


def colour(name: str) -> str:
    """What matplotlib is given for the page's colour ``name``."""
    return _STAND_IN[name]


@contextmanager
def figure_style() -> Iterator[None]:
    """Matplotlib's defaults with our settings, whatever the user's matplotlibrc."""
    with warnings.catch_warnings(), matplotlib.rc_context():
        warnings.simplefilter(
            "ignore"
        )  # glyphs that DejaVu lacks: the browser has them
        matplotlib.rcParams.update(_STYLE)
        yield


def clean(text: str, limit: int = 18) -> str:
    """A name that fits a label and holds no character that XML forbids."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "?", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def text_inches(texts: list[str], size: float = SIZE) -> float:
    """Width that the longest text takes, generously: the browser picks the font."""
    return max((len(t) for t in texts), default=0) * size * 0.6 / 72


def new_axes(
    height: float,
    *,
    width: float = WIDTH,
    left: float = 0.52,
    right: float = 0.12,
    bottom: float = 0.45,
    top: float = 0.14,
    grid: str = "y",
) -> tuple[Figure, Axes]:
    """A figure in inches with one bare axes; ``grid`` is ``x``, ``y`` or empty."""
    figure = Figure(figsize=(width, height))
    box = (
        left / width,
        bottom / height,
        (width - left - right) / width,
        (height - bottom - top) / height,
    )
    axes = figure.add_axes(box)
    for side, spine in axes.spines.items():
        spine.set_visible(side == ("left" if grid == "x" else "bottom"))
        spine.set_color(colour("muted"))
    axes.tick_params(length=0, colors=colour("muted"), pad=4)
    if grid in ("x", "y"):
        axes.grid(True, axis=grid, color=colour("grid"), linewidth=0.7)  # type: ignore[arg-type]
    return figure, axes


def label_axes(axes: Axes, x: str = "", y: str = "") -> None:
    """Name the axes: x below, y above the axis at its left, where it can be read."""
    axes.set_xlabel(x, color=colour("muted"), labelpad=3)
    if y:
        axes.text(
            *(0, 1.02, y),
            transform=axes.transAxes,
            color=colour("muted"),
            ha="left",
            va="bottom",
        )


def to_svg(figure: Figure, *, key: str, label: str) -> str:
    """The figure as an ``<svg>`` element for HTML, ``label`` for screen readers.

    ``key`` makes the ids unique within the page.  Nothing in it refers to the outside.
    """
    out = io.StringIO()
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(out, format="svg", transparent=True, metadata=empty)
    root = ElementTree.fromstring(out.getvalue())
    _tidy(root, key)
    size = root.get("viewBox", "")
    root.attrib.clear()
    root.attrib.update(
        {"class": "plot", "viewBox": size, "role": "img", "aria-label": label}
    )
    return ElementTree.tostring(root, encoding="unicode")


def _tidy(root: ElementTree.Element, key: str) -> None:
    """Drop what HTML has no use for; rename ids, colours and namespaces."""
    used = set(re.findall(r"#([mpi][0-9a-zA-Z_]+)", _references(root)))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        if element.tag != "text":
            element.text = None
        element.tail = None
        attributes = {k.rpartition("}")[2]: v for k, v in element.attrib.items()}
        if attributes.get("id") not in used:
            attributes.pop("id", None)
        if attributes.get("transform", "").startswith("rotate(-0 "):
            attributes.pop("transform")
        element.attrib.clear()
        for name, value in attributes.items():
            element.set(name, _attribute(name, value, key))


def _references(root: ElementTree.Element) -> str:
    found = []
    for element in root.iter():
        for name, value in element.attrib.items():
            if name.endswith(("href", "clip-path")) and len(value) < 80:
                found.append(value)
    return " ".join(found)


def _attribute(name: str, value: str, key: str) -> str:
    if name == "id":
        return f"{key}-{value}"
    if name in ("href", "clip-path"):
        return re.sub(r"#(?=[mpi])", f"#{key}-", value) if len(value) < 80 else value
    if name == "d":  # a hundredth of a point is finer than any screen
        return re.sub(r"(\.\d\d)\d+", r"\1", " ".join(value.split()))
    if name == "style":
        value = re.sub(r"\s*font-family:[^;]*;", "", value)
        return re.sub(r"#0000[0-9a-f]{2}", lambda m: f"var(--{_NAME_OF[m[0]]})", value)
    return value
