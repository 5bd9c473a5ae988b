"""`fedclip bench`, with its results written to benchmarks/results/.

Run as `python -m benchmarks.bench_ops [--quick] [--compile] [--out DIR]`, or through
`main(argv)`.  DIR/ops-<isa>.json, .md and .svg hold minimum and median of every
candidate, see fedclip_plugin/bench.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch

from fedclip_plugin.bench import figure, suite, tables
from fedclip_plugin.cli.console import Display

RESULTS = Path(__file__).parent / "results"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench_ops", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer sizes")
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--rounds", type=int, default=60, help="timings of each")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    arguments = parser.parse_args(argv)
    with Display() as display:
        report = suite.run(
            arguments.quick,
            arguments.compile,
            arguments.rounds,
            torch.get_num_threads(),
            display.step,
        )
    arguments.out.mkdir(parents=True, exist_ok=True)
    stem = arguments.out / f"ops-{report['machine']['isa']}"
    stem.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    stem.with_suffix(".md").write_text(tables.markdown(report))
    stem.with_suffix(".svg").write_text(figure.svg(report["rows"]))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
