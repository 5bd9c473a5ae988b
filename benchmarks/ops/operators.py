"""How fast are the operators, beside PyTorch's and the hosts' averages?

    python -m benchmarks ops [--compile] [--rounds N]

`fedclip bench` prints the same.  The files are named ops-<isa> and hold minimum and
median of every candidate, see fedclip_plugin/bench.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from benchmarks.command import as_json, build_parser, parse, save
from fedclip_plugin.bench import figure, suite, tables
from fedclip_plugin.cli.console import Display


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser("ops", __doc__)
    parser.add_argument("--compile", action="store_true", help="torch.compile as well")
    parser.add_argument("--rounds", type=int, default=60, help="timings of each")
    args = parse(parser, argv, rounds=2)
    threads = torch.get_num_threads()
    with Display() as display:
        report = suite.run(args.quick, args.compile, args.rounds, threads, display.step)
    page, picture = tables.markdown(report), figure.svg(report["rows"])
    name = f"ops-{report['machine']['isa']}"
    save(args.out, name, json=as_json(report), md=page, svg=picture)
    print(page)
