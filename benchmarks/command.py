"""What all benchmarks have in common: options, data to try them on, pages, files."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedclip_plugin.features.feature_set import FeatureSet

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
SCRATCH = Path("runs") / "benchmarks"
PACS = ("art_painting", "cartoon", "photo", "sketch")


def build_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="everything once, on the least of data")
    add("--out", type=Path, metavar="DIR", help=f"of the results (default: {SCRATCH})")
    add("--write", action="store_true", help=f"to {RESULTS.relative_to(ROOT)}")
    return parser


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, **quick: Any
) -> argparse.Namespace:
    """The options; ``quick`` are the defaults of ``--quick``.

    ``out`` is the folder of the results, made before hours of work, not after; None
    where nothing is written.
    """
    words = sys.argv[1:] if argv is None else argv
    if "--quick" in words:
        parser.set_defaults(**quick)
    args = parser.parse_args(words)
    if args.out is None and not args.quick:
        args.out = RESULTS if args.write else SCRATCH
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
    return args


def save(folder: Path | None, name: str, **texts: str) -> None:
    """The files of a benchmark by their ending: ``md``, ``json``, ``svg``."""
    from fedclip_plugin.storage.files import write_bytes

    for ending, text in texts.items():
        if folder is not None:
            write_bytes(folder / f"{name}.{ending}", text.encode())


def as_json(results: Mapping[str, Any]) -> str:
    """The text of a file of results."""
    return json.dumps(results, indent=1) + "\n"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table; all columns but the first are set to the right."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *rows)]


def measured_on(machine: Mapping[str, Any]) -> str:
    """Processor, torch and day."""
    return f"{machine['cpu']}, torch {machine['torch']}, {machine['date']}"


def random_features(
    rows: int, domains: Sequence[str] = ("a",), dim: int = 512, classes: int = 7
) -> FeatureSet:
    """So many rows a domain, each around the text of its class."""
    import torch
    from torch.nn.functional import normalize

    from fedclip_plugin.features.feature_set import FeatureSet

    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(classes, dim, generator=generator))
    label = {
        name: torch.randint(0, classes, (rows,), generator=generator)
        for name in domains
    }
    image = {
        name: normalize(text[y] + 0.3 * torch.randn(rows, dim, generator=generator))
        for name, y in label.items()
    }
    return FeatureSet(
        model="random", pretrained="none", prompt="a {}", key="random",
        classes=tuple(f"class{i}" for i in range(classes)), domains=tuple(domains),
        logit_scale=100.0, embed_dim=dim, image=image, label=label, text=text,
    )  # fmt: skip
