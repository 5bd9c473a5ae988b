"""``fedclip``: federate CLIP from the command line.

Exit codes: 0 done, 2 usage or bad input (one line that names it and the remedy),
1 a fault of ours, 130 or 143 ended by Ctrl-C or SIGTERM (with the command that goes
on).
"""

from __future__ import annotations

import argparse
import errno
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..config.paths import as_file, as_path
from ..errors import ConfigError, FedClipError, translate
from ..settings import options
from .console import Display, Stream, open_closed_streams, print_error
from .interrupts import Stops
from .welcome import welcome

EPILOG = """examples:
  fedclip run                                   the embedded data, under a minute
  fedclip run --dataset pacs --root DATA        the paper's table (OpenAI's ViT-B/32)
  fedclip run --features DIR --target sketch --seed 0 1 2
  fedclip run --resume --out runs/pacs          resume after a crash
"""


def _argument(read: Callable[[str], Path]) -> Callable[[str], Path]:
    """``read`` as argparse wants it: its error is shown with the flag."""

    def convert(text: str) -> Path:
        try:
            return read(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


_PATH, _FILE = _argument(as_path), _argument(as_file)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; ``--help`` of each teaches its use."""
    parser = argparse.ArgumentParser(
        prog="fedclip",
        description="Federated CLIP: frozen backbone, a 2 MB attention adapter, every "
        "image encoded once.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fedclip {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=_Parser
    )
    _add_run(commands)
    _add_features(commands)
    _add_data(commands)
    _add_report(commands)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_export(commands)
    _add_members(commands)
    _add_algorithms(commands)
    _add_hosts(commands)
    _add_register(commands)
    _add_fedml(commands)
    _add_bench(commands)
    _add_doctor(commands)
    _add_completion(commands)
    return parser


class _Parser(argparse.ArgumentParser):
    """A parser that may get its options when it is used: they can need torch."""

    fill: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, with all options there."""
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        return super().parse_known_args(args, namespace)


_Commands = argparse._SubParsersAction  # argparse names the type only privately
_Run = Callable[[argparse.Namespace, Display], int]


def _command(
    commands: _Commands[_Parser],
    name: str,
    run: _Run,
    text: str,
    epilog: str = "",
) -> _Parser:
    parser = commands.add_parser(
        name,
        help=text,
        description=text,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)
    return parser


def _add_run(commands: _Commands[_Parser]) -> None:
    from .commands import run

    parser = _command(commands, "run", run, "Run a federation and report it.", EPILOG)
    add = parser.add_argument
    add("--config", metavar="FILE.toml", type=_PATH, help="options from a file")
    add("--dry-run", action="store_true",
        help="check data and weights, tell what the run would cost, and stop",
        )  # fmt: skip
    add("--tensorboard", action="store_true", help="also write TensorBoard events")
    parser.fill = options.add_run_options


def _add_features(commands: _Commands[_Parser]) -> None:
    from .commands import features

    parser = _command(
        commands, "features", features, "Encode a data set to a feature directory."
    )
    parser.add_argument("--to", metavar="DIR", type=_PATH, required=True)
    options.add_model_options(parser)
    options.add_data_options(parser)


def _add_data(commands: _Commands[_Parser]) -> None:
    from .commands import data

    parser = _command(
        commands, "data", data, "Write a data set as <domain>/<class>/<image> folders."
    )
    parser.add_argument("name", help="pacs, officehome, digits, ... (from the hub)")
    parser.add_argument("--to", metavar="DIR", type=_PATH, required=True)
    parser.add_argument(
        "--from", dest="source", metavar="PATH", type=_PATH,
        help="a local parquet file or folder",
    )  # fmt: skip


def _add_report(commands: _Commands[_Parser]) -> None:
    from .commands import report

    parser = _command(
        commands, "report", report, "Show finished runs; several merge into one table."
    )
    parser.add_argument("runs", metavar="RUN", nargs="+", type=_PATH)
    parser.add_argument(
        "--format", choices=("table", "markdown", "latex", "csv", "html"),
        default="table",
        help="html writes report.html anew in every RUN, or with --to one page of all",
    )  # fmt: skip
    parser.add_argument(
        "--to", metavar="FILE", type=_FILE, help="write there what --format says"
    )


PREDICT_EPILOG = """examples:
  fedclip predict runs/pacs dog.jpg cat.jpg
  fedclip predict runs/pacs photos/ --format csv > labels.csv
  find photos -name '*.jpg' | fedclip predict runs/pacs - --classes dog cat "a red car"
"""


def _add_predict(commands: _Commands[_Parser]) -> None:
    from .apply import predict

    parser = _command(
        commands,
        "predict",
        predict,
        "Classify images with what a run has learned, zero-shot CLIP beside it.",
        PREDICT_EPILOG,
    )
    add = parser.add_argument
    add("run_directory", metavar="RUN", type=_PATH)
    add("images", metavar="IMAGE|DIR|-", nargs="+",
        help="files, folders of them, or - for paths from the standard input, a line "
        "each")  # fmt: skip
    add("--format", choices=("table", "json", "csv"), default="table")
    add("--classes", metavar="NAME|FILE", nargs="+",
        help="other classes than the run's, in words of yours, where the method goes "
        "by captions")  # fmt: skip
    add("--client", metavar="NAME", help="what this client personalized or keeps")
    options.add_model_options(parser)


def _add_evaluate(commands: _Commands[_Parser]) -> None:
    from .apply import evaluate

    parser = _command(
        commands,
        "evaluate",
        evaluate,
        "Score what a run has learned on other data or classes, zero-shot beside it.",
        "examples:\n"
        "  fedclip evaluate runs/pacs --dataset vlcs --root DATA\n"
        "  fedclip evaluate runs/pacs --features DIR --format json",
    )
    add = parser.add_argument
    add("run_directory", metavar="RUN", type=_PATH)
    add("--state", metavar="FILE", type=_PATH,
        help="a state in the place of the run's adapter.safetensors")  # fmt: skip
    add("--client", metavar="NAME", help="what this client personalized or keeps")
    add("--format", choices=("table", "json"), default="table")
    options.add_model_options(parser)
    options.add_data_options(parser, "features", "classes")


def _add_export(commands: _Commands[_Parser]) -> None:
    from .commands import export

    parser = _command(
        commands,
        "export",
        export,
        "Fold backbone and adapter of a run into one module that needs no fedclip.",
    )
    parser.add_argument("run_directory", metavar="RUN", type=_PATH)
    parser.add_argument("--to", metavar="DIR", type=_PATH, required=True)
    parser.add_argument(
        "--format", action="append", choices=("torch", "onnx"),
        help="default: both",
    )  # fmt: skip
    options.add_model_options(parser)


def _add_members(commands: _Commands[_Parser]) -> None:
    from .members import join, leave

    joining = _command(
        commands, "join", join,
        "Add clients to a finished run of gda; no round is run again.",
        "example:\n  fedclip join runs/gda --features NEW --out runs/gda-joined",
    )  # fmt: skip
    leaving = _command(
        commands, "leave", leave,
        "Take a client out of a finished run of gda: as if it had never been there.",
        "example:\n  fedclip leave runs/gda --client art --out runs/gda-without-art",
    )  # fmt: skip
    for parser in (joining, leaving):
        parser.add_argument("run_directory", metavar="RUN", type=_PATH)
        parser.add_argument(
            "--out", metavar="DIR", type=_PATH, required=True,
            help="where the changed run is written; RUN stays as it is",
        )  # fmt: skip
        options.add_model_options(parser)
        options.add_data_options(parser, "features", "partition", "clients", "alpha")
    joining.add_argument(
        "--client", metavar="NAME", help="of its clients this one alone (default: all)"
    )
    leaving.add_argument("--client", metavar="NAME", required=True)


def _add_algorithms(commands: _Commands[_Parser]) -> None:
    from .commands import algorithms

    parser = _command(
        commands,
        "algorithms",
        algorithms,
        "List the algorithms: what each trains, sends and needs.",
    )
    for flag, default, text in (
        ("--classes", 7, "classes of the data set"),
        ("--dim", 512, "width of the features"),
    ):
        parser.add_argument(
            flag, metavar="N", type=int, default=default,
            help=f"{text} (default: {default})",
        )  # fmt: skip


def _add_hosts(commands: _Commands[_Parser]) -> None:
    from .commands import hosts

    _command(
        commands, "hosts", hosts, "List the host frameworks, and how to select fedclip."
    )


def _add_register(commands: _Commands[_Parser]) -> None:
    from .commands import register

    parser = _command(
        commands,
        "register",
        register,
        "Make --alg fedclip known to a PersonalizedFL checkout; --undo takes it back.",
        "example:\n  fedclip register personalizedfl ~/PersonalizedFL",
    )
    parser.add_argument("host", metavar="HOST", help="personalizedfl")
    parser.add_argument("path", metavar="PATH", type=_PATH, nargs="?")
    parser.add_argument("--undo", action="store_true", help="restore every byte")


FEDML_EPILOG = """examples:
  fedclip fedml --cf fedml_config.yaml --offline                        simulation
  fedclip fedml --cf fedml_config.yaml --rank 0 --role server           cross-silo
  fedclip fedml --cf fedml_config.yaml --rank 1 --role client
"""


def _add_fedml(commands: _Commands[_Parser]) -> None:
    from .commands import fedml

    parser = _command(
        commands,
        "fedml",
        fedml,
        "Run FedML from its own fedml_config.yaml, with FedCLIP as the algorithm.",
        FEDML_EPILOG,
    )
    parser.add_argument(
        "--cf", metavar="FILE", type=_PATH, required=True, help="fedml_config.yaml"
    )
    parser.add_argument("--rank", type=int, metavar="N", help="cross-silo: 0 = server")
    parser.add_argument("--role", choices=("server", "client"), help="cross-silo")
    parser.add_argument("--run-id", metavar="ID", help="cross-silo: the same for all")
    parser.add_argument(
        "--alg", dest="algorithm", default="fedclip", metavar="NAME",
        help="algorithm (default: fedclip)",
    )  # fmt: skip
    parser.add_argument(
        "--offline", action="store_true", help="ask no server for configuration"
    )
    parser.add_argument(
        "--resume", action="store_true",
        help="go on with the run in fedclip_out; it begins where there is none",
    )  # fmt: skip


def _add_bench(commands: _Commands[_Parser]) -> None:
    from .commands import bench

    parser = _command(
        commands, "bench", bench, "Time the operators on the CPU against other ways."
    )
    add = parser.add_argument
    add("--quick", action="store_true", help="a few sizes")
    add("--compile", action="store_true", help="torch.compile as well")
    add("--threads", metavar="N", type=int,
        help="as many threads, and one (default: torch's)")  # fmt: skip
    add("--rounds", metavar="N", type=int, default=60,
        help="timings of each (default: 60)")  # fmt: skip
    add("--json", metavar="FILE", type=_FILE, help="write the figures to a file")


DOCTOR_EPILOG = """examples:
  fedclip doctor --dataset pacs --root DATA
  fedclip doctor --features DIR
  fedclip doctor runs/pacs                      can it be resumed?
"""


def _add_doctor(commands: _Commands[_Parser]) -> None:
    from .commands import doctor

    parser = _command(
        commands,
        "doctor",
        doctor,
        "Check the machine, libraries, model, weights and data, or all that a RUN "
        "needs.",
        DOCTOR_EPILOG,
    )
    parser.add_argument(
        "run_directory", metavar="RUN", nargs="?", type=as_path,
        help="also check the files of a run, and how far it is; its options are the "
        "defaults",
    )  # fmt: skip
    options.add_model_options(parser)
    options.add_data_options(parser, "features")


def _add_completion(commands: _Commands[_Parser]) -> None:
    from .completion import EPILOG as INSTALL
    from .completion import SHELLS, completion

    def show(args: argparse.Namespace, display: Display) -> int:
        print(completion(build_parser(), args.shell))
        return 0

    text = "Print a script by which the shell completes commands and options."
    parser = _command(commands, "completion", show, text, INSTALL)
    parser.add_argument("shell", metavar="SHELL", choices=SHELLS, help=" ".join(SHELLS))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    # Before torch is loaded: threads that spin while they wait make a run ten times
    # slower as soon as another process uses one of the cores.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    open_closed_streams()
    with Stream("stderr"), Stream("stdout") as out:
        code = _command_line(words)
    if out.error is None or out.error.errno == errno.EPIPE:
        return code  # `fedclip report ... | head`
    print_error(f"cannot write the output: {out.error.strerror}; free some space")
    return code or 2


def _command_line(words: Sequence[str]) -> int:
    if not words:
        print(welcome(Path("runs")), file=sys.stderr)
        return 2
    args = build_parser().parse_args(words)
    with Stops(args, words) as stops:
        try:
            return _run(args)
        except KeyboardInterrupt:
            stops.report()
            return stops.code


def _run(args: argparse.Namespace) -> int:
    try:
        with Display(args.quiet) as display:
            code: int = args.run(args, display)
            return code
    except FedClipError as error:
        print_error(str(error))
        return 2
    except OSError as error:
        if error.filename is None:
            return _fault(error)
        print_error(f"{error.filename}: {error.strerror}; check the path and its disk")
        return 2
    except Exception as error:
        return _fault(error)


def _fault(error: Exception) -> int:
    if os.environ.get("FEDCLIP_DEBUG"):
        raise error
    if translated := translate(error):
        print_error(str(translated))
        return 2
    print_error(
        f"internal fault, {type(error).__name__}: {error}; please report it "
        "(FEDCLIP_DEBUG=1 shows where)"
    )
    return 1
