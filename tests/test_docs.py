"""Every page names files, modules and headings that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("fedclip_plugin", "registry", "csrc", "tests", "benchmarks", "examples")
PAGES = sorted(
    page
    for pattern in ("*.md", "docs/**/*.md", "examples/*/*.md", "benchmarks/**/*.md")
    for page in ROOT.glob(pattern)
)
SOURCES = sorted(
    source
    for folder in ("fedclip_plugin", "registry", "benchmarks")
    for source in (ROOT / folder).rglob("*.py")
)
SUFFIXES = ("py", "cpp", "cu", "cuh", "h")
# of the hosts, the authors, or the reader
FOREIGN = {
    *("main.py", "alg/fedclip.py", "alg/algs.py", "util/config.py", "client.py"),
    *("nets/models.py", "sheduler.py", "adaptation.py"),
    *("fed_at_clip.py", "methods/fed_at_clip.py", "prepare_data_dg_clip.py"),
    *("datautil/datasplit.py", "medmnist/info.py", "torch/extension.h", "Python.h"),
    *("standin/clip.py", "fedclip_plugin.adapters"),  # made when it runs; entry points
    "fedclip_plugin.trackers",
}
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_MODULE = re.compile(r"\bfedclip_plugin(?:\.\w+)+")
_FILE = re.compile(rf"`([\w./*<>-]+\.(?:{'|'.join(SUFFIXES)}))`")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.M | re.S)


def headings(page: Path) -> set[str]:
    """The anchors of a page, as forges make them."""
    titles = re.findall(r"^#+ (.*)$", prose(page), flags=re.M)
    plain = (re.sub(r"[^\w\- ]", "", title.lower()) for title in titles)
    return {title.replace(" ", "-") for title in plain}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if "://" in link:
            continue
        place, _, anchor = link.partition("#")
        target = page.parent / place if place else page
        assert target.exists(), link
        if anchor:
            assert anchor in headings(target), link


def exists(file: str, near: Path) -> bool:
    """Whether ``file``, perhaps a pattern, is at the root, near the page, or below."""
    if re.search("NAME|FAMILY|HOST|<", file) or file in FOREIGN:
        return True
    bases = (ROOT, ROOT / "csrc", ROOT / "fedclip_plugin", near.parent)
    if any(any(base.glob(file)) for base in bases):
        return True
    return "/" not in file and any(any((ROOT / f).rglob(file)) for f in FOLDERS)


def module_exists(dotted: str) -> bool:
    """Whether a dotted name begins with a module and goes on with a name in it."""
    if dotted in FOREIGN or dotted.startswith("fedclip_plugin._C"):
        return True
    _, *parts = dotted.split(".")
    place = ROOT / "fedclip_plugin"
    if parts[0] == "registry":
        place, parts = ROOT / "registry", parts[1:]
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if parts and (place / f"{parts[0]}.py").is_file():
        source = (place / f"{parts.pop(0)}.py").read_text("utf-8")
    else:
        source = (place / "__init__.py").read_text("utf-8")
    return not parts or bool(re.search(rf"\b{parts[0]}\b", source))


def named(texts: dict[Path, str]) -> Iterator[tuple[Path, str]]:
    for path, text in texts.items():
        for file in _FILE.findall(text):
            if not exists(file, path):
                yield path, file
        for dotted in _MODULE.findall(text):
            if not module_exists(dotted):
                yield path, dotted


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_pages_name_files_and_modules_that_exist(page: Path) -> None:
    assert list(named({page: page.read_text("utf-8")})) == []


def test_docstrings_name_files_and_modules_that_exist() -> None:
    assert list(named({path: path.read_text("utf-8") for path in SOURCES})) == []
