"""Imports point one way: a module uses only layers to its left, or its own, no cycles.

The table is the architecture.  A new module must be placed in it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "fedclip_plugin"
LAYERS = [
    *("errors", "config", "stats", "storage", "ops", "data", "clip", "wire"),
    *("features", "server", "algorithms", "federation", "report", "runs", "export"),
    *("settings", "registry", "api", "bench", "cli"),
]
RANK = {name: rank for rank, name in enumerate(LAYERS)}
# Top-level modules of the host frameworks, and the folder of registry/ that may import
# them.
HOSTS = {
    "fedml": "fedml",
    "flwr": "flower",
    "ray": "flower",
    "alg": "personalizedfl",
    "datautil": "personalizedfl",
    "nvflare": "nvflare",
}


def modules(root: Path) -> dict[str, Path]:
    """Dotted name below the package -> file; '' is the package itself."""
    found = {}
    for folder, prefix in ((PACKAGE, ()), ("registry", ("registry",))):
        for path in sorted((root / folder).rglob("*.py")):
            parts = (*prefix, *path.relative_to(root / folder).with_suffix("").parts)
            name = ".".join(part for part in parts if part != "__init__")
            found[name] = path
    return found


def _targets(node: ast.AST, package: list[str]) -> Iterator[tuple[str, ...]]:
    """For every name that a statement imports: the dotted names it may refer to."""
    if isinstance(node, ast.Import):
        yield from ((alias.name,) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        up = package[: len(package) - node.level + 1] if node.level else []
        base = ".".join([*up, *([node.module] if node.module else [])])
        yield from ((f"{base}.{alias.name}", base) for alias in node.names)


def imports(name: str, path: Path, known: Mapping[str, Path]) -> set[str]:
    """What a module imports: 'x.y' below the package, '!top' outside it.

    Imports inside functions count too.  ``from . import x`` is an import of the module
    ``x`` if there is one, else of the package.
    """
    package = [PACKAGE, *name.split(".")] if name else [PACKAGE]
    if path.name != "__init__.py":
        package.pop()
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for candidates in _targets(node, package):
            if candidates[-1].partition(".")[0] != PACKAGE:
                found.add("!" + candidates[-1].partition(".")[0])
                continue
            below = [c.removeprefix(PACKAGE).removeprefix(".") for c in candidates]
            found |= set([c for c in below if c in known][:1])
    return found - {name, ""}  # the root package is a facade: everyone may


def rank(name: str) -> int | None:
    return RANK.get(name.partition(".")[0])


def binding(name: str) -> str | None:
    """The host that a module binds; None for what is not in a binding."""
    top, _, module = name.partition(".")
    host = module.partition(".")[0].removesuffix("_host")
    return host if top == "registry" and host in HOSTS.values() else None


def breaches(root: Path) -> list[str]:
    """One line for every import that the rules forbid, and every unplaced module."""
    known = modules(root)
    edges = {name: imports(name, path, known) for name, path in known.items()}
    edges[""] = set()
    lines = [
        f"{name}: not in the table of layers (tests/test_layers.py); place it there"
        for name in known
        if name and rank(name) is None
    ]
    for name, targets in edges.items():
        for target in sorted(targets):
            lines += _judge(name, target)
    lines += [f"import cycle: {' -> '.join(cycle)}" for cycle in cycles(edges)]
    return lines


def _judge(name: str, target: str) -> Iterator[str]:
    if target.startswith("!"):
        home = HOSTS.get(target[1:])
        if home is not None and not name.startswith(f"registry.{home}."):
            yield f"{name}: imports {target[1:]}, which only registry/{home}/ may"
        return
    mine, theirs = rank(name), rank(target)
    if mine is not None and theirs is not None and theirs > mine:
        yield f"{name}: imports {target}, which stands to its right"
    if name.startswith("registry") and binding(target) not in (None, binding(name)):
        yield f"{name}: imports {target}; bindings never import each other"


def cycles(edges: Mapping[str, set[str]]) -> list[list[str]]:
    """The import cycles that a depth-first walk meets."""
    found: list[list[str]] = []
    done: set[str] = set()

    def walk(name: str, trail: list[str]) -> None:
        if name in trail:
            found.append([*trail[trail.index(name) :], name])
            return
        if name in done:
            return
        for target in sorted(edges.get(name, ())):
            walk(target, [*trail, name])
        done.add(name)

    for name in sorted(edges):
        walk(name, [])
    return found


def test_no_import_crosses_the_layers() -> None:
    assert breaches(ROOT) == []


def test_every_place_in_the_table_is_unique() -> None:
    assert len(LAYERS) == len(set(LAYERS))


GOOD = {
    "fedclip_plugin/__init__.py": "def f():\n    from . import cli\n",
    "fedclip_plugin/errors.py": "import os\n",
    "fedclip_plugin/ops.py": "from .errors import E\nfrom . import errors\n",
    "fedclip_plugin/algorithms/__init__.py": "from . import fedclip\n",
    "fedclip_plugin/algorithms/base.py": "from ..ops import adapter\n",
    "fedclip_plugin/algorithms/fedclip.py": "from .base import x\n",
    "fedclip_plugin/cli.py": "from .registry import hosts\nfrom . import __version__\n",
    "registry/__init__.py": "from ..algorithms import base\n",
    "registry/fedml/server.py": "import fedml.core\nfrom ..hosts import x\n",
    "registry/fedml_host.py": "from .fedml.server import run\n",
    "registry/hosts.py": "from fedclip_plugin.ops import adapter\n",
}


def _tree(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    return root


def test_a_tree_in_order_passes(tmp_path: Path) -> None:
    assert breaches(_tree(tmp_path, GOOD)) == []


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("fedclip_plugin/errors.py", "from .cli import main\n", "imports cli"),
        ("fedclip_plugin/ops.py", "from fedclip_plugin import cli\n", "imports cli"),
        ("fedclip_plugin/ops.py", "def f():\n    from . import cli\n", "imports cli"),
        ("fedclip_plugin/ops.py", "import fedclip_plugin.registry.hosts\n", "registry"),
        ("fedclip_plugin/errors.py", "from .ops import a\n", "import cycle: "),
        ("fedclip_plugin/helpers.py", "", "helpers: not in the table"),
        ("registry/fedml_host.py", "import fedml\n", "only registry/fedml/ may"),
        ("registry/hosts.py", "import fedml\n", "only registry/fedml/ may"),
        ("fedclip_plugin/ops.py", "from flwr.client import x\n", "imports flwr"),
        ("registry/flower_host.py", "from . import fedml_host\n", "each other"),
    ],
)
def test_a_breach_is_caught(
    tmp_path: Path, file: str, text: str, expected: str
) -> None:
    lines = breaches(_tree(tmp_path, {**GOOD, file: text}))
    assert any(expected in line for line in lines), lines
