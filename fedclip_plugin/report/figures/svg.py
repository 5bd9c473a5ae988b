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
from typing import Any, Literal

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ..tables import Table

_COLOURS = (
    *("ink", "muted", "grid", "surface", "method", "base", "clients"),
    *(f"k{i}" for i in range(10)),
)
SMALL = 8.0  # points; a phone shows them at about as many pixels
WIDTH = 4.8  # inches; one column of the page, and a phone, at about the same text size

_STYLE: dict[Any, Any] = {
    # all but what rc_context would not restore
    **{k: v for k, v in matplotlib.rcParamsDefault.items() if "backend" not in k},
    "svg.fonttype": "none",  # text stays text: it can be selected and searched
    "svg.image_inline": True,
    "text.parse_math": False,  # a class may be named "$1"
    "text.usetex": False,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "font.size": 9.0,
    "path.simplify_threshold": 0.3,
}


@dataclass(frozen=True)
class Key:
    """A legend entry: ``mark`` is ``fill``, ``line``, ``dash`` or ``band``."""

    colour: str
    text: str
    mark: str = "fill"


@dataclass(frozen=True)
class Chart:
    """An inline SVG with what stands around it; all other texts are plain, not HTML.

    ``table`` has the numbers behind it, for those who cannot see it.
    """

    title: str
    svg: Markup
    legend: tuple[Key, ...] = ()
    note: str = ""
    table: Table | None = None


def colour(name: str) -> str:
    """What matplotlib is given for the page's colour ``name``."""
    return f"#0001{_COLOURS.index(name):02x}"  # not black, which is written by no fill


@contextmanager
def figure_style(name: str = "") -> Iterator[None]:
    """Matplotlib's defaults with our settings, whatever the user's matplotlibrc.

    Ids differ between figures of one ``with``, and between those of other names.
    """
    with warnings.catch_warnings(), matplotlib.rc_context():
        # glyphs that DejaVu lacks: the browser has them
        warnings.simplefilter("ignore")
        matplotlib.rcParams.update(_STYLE)
        matplotlib.rcParams["svg.hashsalt"] = f"{name}:0"  # see to_svg
        yield


def clean(text: str, limit: int = 18) -> str:
    """A name that fits a label and holds no character that XML forbids."""
    text = re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]", "?", text)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def new_axes(
    height: float, x: str = "", y: str = "", grid: Literal["x", "y", ""] = "y"
) -> tuple[Figure, Axes]:
    """A figure, ``height`` in inches, with bare axes; ``y`` stands above the axis."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.add_subplot()
    for side, spine in axes.spines.items():
        spine.set_visible(side == ("left" if grid == "x" else "bottom"))
        spine.set_color(colour("muted"))
    axes.tick_params(length=0, colors=colour("muted"), pad=4)
    if grid:
        axes.grid(True, axis=grid, color=colour("grid"), linewidth=0.7)
    axes.set_xlabel(x, color=colour("muted"), labelpad=3)
    axes.set_title(y, color=colour("muted"), fontsize=9.0, loc="left", pad=4)
    return figure, axes


def dashed(axes: Axes, accuracy: float | None, name: str, text: str) -> list[Key]:
    """The line that a method must stay above, with its legend entry."""
    if accuracy is None:
        return []
    style: dict[str, Any] = {"linestyle": (0, (4, 3)), "linewidth": 1.2}
    axes.axhline(100 * accuracy, color=colour(name), **style)
    return [Key(name, text, "dash")]


def _laid_out(figure: Figure) -> FigureCanvasSVG:
    """Place everything, on no ground of its own: ``savefig`` would draw it twice."""
    canvas = FigureCanvasSVG(figure)
    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set(facecolor="none", edgecolor="none")
    figure.set_dpi(72)  # what an SVG is drawn in
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
        figure.set_layout_engine("none")
    return canvas


_UNUSED = re.compile(
    r' id="[\w.]+_\d+"'  # groups' ids, the same in every figure
    r'|(?<=") transform="rotate\(-0 [^"]*"'
    r"|\s*font-family:[^;\"]*;?"  # the page has its own
)


def to_svg(figure: Figure, label: str) -> Markup:
    """The figure as an ``<svg>`` element for HTML, ``label`` for screen readers.

    Ids are unique as ``figure_style`` says.  Nothing in it refers to the outside.
    """
    out = io.StringIO()
    name, number = matplotlib.rcParams["svg.hashsalt"].rsplit(":", 1)
    matplotlib.rcParams["svg.hashsalt"] = f"{name}:{int(number) + 1}"  # makes the ids
    canvas: Any = _laid_out(figure)  # matplotlib does not type print_svg
    empty = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    canvas.print_svg(out, metadata=empty)
    box, body = re.findall(r'viewBox="(.*?)".*?>(.*)</svg>', out.getvalue(), re.S)[0]
    body = re.sub(r"<!--.*?-->|<(metadata|style).*?</\1>", "", body, flags=re.S)
    body = re.sub(r">\s+<", "><", re.sub(r"<[^>]+>", _tag, body))
    head = Markup('<svg class="plot" viewBox="{}" role="img" aria-label="{}">')
    return head.format(box, label) + Markup(body + "</svg>")


def _tag(match: re.Match[str]) -> str:
    """A tag of matplotlib's in the colours of the page, without what is not used."""
    tag = _UNUSED.sub("", " ".join(match[0].split()))
    tag = re.sub(r"#0001(\w\w)", lambda m: f"var(--{_COLOURS[int(m[1], 16)]})", tag)
    return re.sub(r"(\.\d\d)\d+", r"\1", tag)  # finer than any screen
