"""What this installation has and does: algorithms, bench, doctor."""

from __future__ import annotations

from ...settings import options
from .. import commands
from .command import FILE, PATH, Commands, command

DOCTOR_EPILOG = """examples:
  fedclip doctor --dataset pacs --root DATA
  fedclip doctor --features DIR
  fedclip doctor runs/pacs                      can it be resumed?
"""


def add_algorithms(group: Commands) -> None:
    """``fedclip algorithms``."""
    parser = command(
        group,
        "algorithms",
        commands.algorithms,
        "List the algorithms: what each trains, sends and needs.",
    )
    add = parser.add_argument
    add("--classes", metavar="N", type=int, default=7,
        help="classes of the data set (default: 7)")  # fmt: skip
    add("--dim", metavar="N", type=int,
        help="width of the features (default: that of --model, else 512)")  # fmt: skip
    add("--model", metavar="NAME",
        help="a CLIP, for what those send that need one; no weights are read",
    )  # fmt: skip
    add("--model-config", metavar="DIR", type=PATH,
        help="open_clip's config of a --model of your own")  # fmt: skip


def add_bench(group: Commands) -> None:
    """``fedclip bench``."""
    parser = command(
        group,
        "bench",
        commands.bench,
        "Time the operators on the CPU against other ways.",
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a few sizes")
    add("--compile", action="store_true", help="torch.compile as well")
    add("--threads", metavar="N", type=int,
        help="as many threads, and one (default: torch's)")  # fmt: skip
    add("--rounds", metavar="N", type=int, default=60,
        help="timings of each (default: 60)")  # fmt: skip
    add("--json", metavar="FILE", type=FILE, help="write the figures to a file")


def add_doctor(group: Commands) -> None:
    """``fedclip doctor``."""
    parser = command(
        group,
        "doctor",
        commands.doctor,
        "Check the machine, libraries, model, weights and data, or all that a RUN "
        "needs.",
        DOCTOR_EPILOG,
    )
    parser.add_argument(
        "run_directory", metavar="RUN", nargs="?", type=PATH,
        help="also check the files of a run, and how far it is; its options are the "
        "defaults",
    )  # fmt: skip
    options.add_model_options(parser)
    options.add_data_options(parser, "features")
