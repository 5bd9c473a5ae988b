"""What makes runs and their data: run, features, data, report."""

from __future__ import annotations

from ...settings import options
from .. import commands, sweep
from .command import FILE, PATH, Commands, command

EPILOG = """examples:
  fedclip run                                   the embedded data, under a minute
  fedclip run --dataset pacs --root DATA        the paper's table (OpenAI's ViT-B/32)
  fedclip run --features DIR --target sketch --seed 0 1 2
  fedclip run --resume --out runs/pacs          resume after a crash
"""


def add_run(group: Commands) -> None:
    """``fedclip run``."""
    parser = command(
        group, "run", commands.run, "Run a federation and report it.", EPILOG
    )
    add = parser.add_argument
    add("--config", metavar="FILE.toml", type=PATH, help="options from a file")
    add("--dry-run", action="store_true",
        help="check data and weights, tell what the run would cost, and stop",
        )  # fmt: skip
    add("--tensorboard", action="store_true", help="also write TensorBoard events")
    parser.fill = options.add_run_options


SWEEP_EPILOG = """A file:
  [options]
  features = "DIR"
  seed = [0, 1]
  [grid]
  alg = ["fedclip", "fedavg"]
  lr = [1e-4, 1e-3]

examples:
  fedclip sweep lr.toml --dry-run
  fedclip sweep lr.toml --features OTHER --jobs 4 --out runs/lr
  fedclip sweep lr.toml --resume --out runs/lr
"""


def add_sweep(group: Commands) -> None:
    """``fedclip sweep``."""
    parser = command(
        group,
        "sweep",
        sweep.sweep,
        "Run a grid or a random search over any option on one cache, and choose by the "
        "source clients' validation alone (docs/sweep.md).",
        SWEEP_EPILOG,
    )
    add = parser.add_argument
    add("file", metavar="FILE.toml", type=PATH)
    add("--jobs", metavar="N", type=int,
        help="processes at once (default: one a processor)")  # fmt: skip
    add("--dry-run", action="store_true", help="show the runs and about how long")
    parser.fill = options.add_run_options


def add_features(group: Commands) -> None:
    """``fedclip features``."""
    parser = command(
        group,
        "features",
        commands.features,
        "Encode a data set to a feature directory.",
        "on several machines over one cache (FEDCLIP_CACHE on a shared disk):\n"
        "  fedclip features --root DIR --shard 1/8      # on each, to 8/8\n"
        "  fedclip features --root DIR --merge 8 --to FEATURES",
    )
    parser.add_argument("--to", metavar="DIR", type=PATH)
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--shard", metavar="K/N",
        help="encode this part alone, into the cache")  # fmt: skip
    part.add_argument("--merge", metavar="N", type=int,
        help="write what N shards have encoded; encode nothing")  # fmt: skip
    options.add_model_options(parser)
    options.add_data_options(parser)


def add_data(group: Commands) -> None:
    """``fedclip data``."""
    parser = command(
        group,
        "data",
        commands.data,
        "Write a data set as <domain>/<class>/<image> folders.",
    )
    parser.add_argument("name", help="pacs, officehome, digits, ... (from the hub)")
    parser.add_argument("--to", metavar="DIR", type=PATH, required=True)
    parser.add_argument(
        "--from", dest="source", metavar="PATH", type=PATH,
        help="a local parquet file or folder",
    )  # fmt: skip


def add_report(group: Commands) -> None:
    """``fedclip report``."""
    parser = command(
        group,
        "report",
        commands.report,
        "Show finished runs; several merge into one table.",
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=PATH)
    parser.add_argument(
        "--format", choices=("table", "markdown", "latex", "csv", "html"),
        default="table",
        help="html writes report.html anew in every RUN, or with --to one page of all",
    )  # fmt: skip
    parser.add_argument(
        "--to", metavar="FILE", type=FILE, help="write there what --format says"
    )
