"""What mkdocs does beyond its configuration: pages from all over the repository.

Pages keep their places, so that links work in a forge as they do here: a page is named
by its path in the repository, and only its address on the site is shorter.  What is
linked and no page is shown in the repository, whose address pyproject.toml has.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))
import tutorials  # noqa: E402

RAN = ROOT / ".nox" / "docs" / "tutorials"  # where they left their pages
PAGES = ("docs/*.md", "docs/reference/*.md", "*.md", "benchmarks/*.md")
PAGES += (
    "benchmarks/results/*.md",
    "examples/*/README.md",
    "fedclip_plugin/models/*.md",
)
PICTURES = ("benchmarks/results/*.svg", "docs/site/*.css", "docs/site/*.svg")
LEFT_OUT = ("README.md",)  # the site's first page says it
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.M | re.S)
_MORE = "More"


def repository() -> str:
    """The address of the project's repository."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        urls: dict[str, str] = tomllib.load(file)["project"]["urls"]
    return urls["Repository"]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """What pyproject.toml knows, and the pages that the navigation has not named."""
    config.repo_url, config.repo_name = repository(), "Source"
    config.nav = [*(config.nav or []), *_unnamed(config.nav or [])]
    return config


def _unnamed(nav: list[Any]) -> list[dict[str, list[str]]]:
    named = set(_paths(nav))
    rest = [place for place in _places(PAGES) if place not in named]
    rest = [p for p in rest if not p.startswith("benchmarks/results/")]
    return [{_MORE: rest}] if rest else []


def _paths(nav: Any) -> Iterable[str]:
    if isinstance(nav, str):
        yield nav
    for item in nav.values() if isinstance(nav, dict) else nav:
        if not isinstance(nav, str):
            yield from _paths(item)


def _places(patterns: Iterable[str]) -> list[str]:
    found = (path for pattern in patterns for path in sorted(ROOT.glob(pattern)))
    places = [path.relative_to(ROOT).as_posix() for path in found]
    return [place for place in places if place not in LEFT_OUT]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """All pages and pictures, by their paths in the repository."""
    for file in list(files):
        if file.src_uri.startswith(("tutorials/", "site/")) or not _is_theme(file):
            files.remove(file)
    for place in _places(PAGES):
        files.append(_file(place, config, _address(place) + "index.html"))
    for place in _places(PICTURES):
        files.append(_file(place, config, place.removeprefix("docs/")))
    for script in tutorials.pages():
        ran = RAN / f"{script.stem}.md"
        text = ran.read_text("utf-8") if ran.exists() else tutorials.as_page(script)
        page = File.generated(
            config, f"docs/tutorials/{script.stem}.md", content=_headed(script, text)
        )
        page.dest_uri = f"tutorials/{script.stem[2:]}/index.html"
        files.append(page)
    return files


def _is_theme(file: File) -> bool:
    return file.src_uri.startswith("assets/")


def _headed(script: Path, text: str) -> str:
    """The page with a line under its title: where to get the script."""
    title, _, rest = text.partition("\n")
    source = f"{repository()}/blob/main/docs/tutorials/{script.name}"
    return f"{title}\n\n*A [script]({source}) that our checks run.*\n{rest}"


def _file(place: str, config: MkDocsConfig, address: str) -> File:
    short = config.use_directory_urls
    return File(place, str(ROOT), config.site_dir, short, dest_uri=address)


def _address(place: str) -> str:
    """``docs/data.md`` -> ``data/``; ``benchmarks/README.md`` -> ``benchmarks/``."""
    parts = Path(place.removeprefix("docs/")).with_suffix("").parts
    parts = tuple(p.lower() for p in parts if p not in ("README", "index"))
    return "".join(f"{part}/" for part in parts)


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, **_: Any) -> str:
    """Links to tutorials go to their pages, those to no page to the repository."""
    near = Path(page.file.src_uri).parent
    pieces = _CODE.split(markdown)
    pieces[::2] = [_LINK.sub(lambda m: _relinked(m, near), p) for p in pieces[::2]]
    return "".join(pieces)


def _relinked(match: re.Match[str], near: Path) -> str:
    text, link, anchor = match[1], match[2], match[3] or ""
    if "://" in link or link.startswith("mailto:"):
        return match[0]
    target = (ROOT / near / link).resolve()
    place = target.relative_to(ROOT).as_posix() if target.is_relative_to(ROOT) else ""
    if re.fullmatch(r"docs/tutorials/\d\w*\.py", place):
        return f"[{text}]({re.sub(r'[.]py$', '.md', link)}{anchor})"
    shown = place and place in _SHOWN
    if shown or not target.exists():
        return match[0]  # what leads nowhere is mkdocs' to tell
    kind = "tree" if target.is_dir() else "blob"
    return f"[{text}]({repository()}/{kind}/main/{place})"


_SHOWN = {*_places(PAGES), *_places(PICTURES)}
