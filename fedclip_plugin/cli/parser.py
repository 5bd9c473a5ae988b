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
from collections.abc import Sequence
from pathlib import Path

from .. import __version__
from ..errors import FedClipError, translate
from .arguments import ADD_COMMANDS
from .arguments.command import Commands, Parser, command
from .arguments.runs import EPILOG
from .completion import EPILOG as INSTALL
from .completion import SHELLS, completion
from .console import Display, Stream, open_closed_streams, print_error
from .interrupts import Stops
from .welcome import welcome


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command; ``--help`` of each teaches its use."""
    parser = Parser(
        prog="fedclip",
        description="Federated CLIP: frozen backbone, a 2 MB attention adapter, every "
        "image encoded once.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"fedclip {__version__}")
    commands = parser.add_subparsers(
        dest="command", metavar="COMMAND", required=True, parser_class=Parser
    )
    for add in ADD_COMMANDS:
        add(commands)
    _add_completion(commands)
    return parser


def _add_completion(group: Commands) -> None:
    def show(args: argparse.Namespace, display: Display) -> int:
        print(completion(build_parser(), args.shell))
        return 0

    text = "Print a script by which the shell completes commands and options."
    parser = command(group, "completion", show, text, INSTALL)
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
