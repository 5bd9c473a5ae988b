"""A command of ``fedclip``: its parser, and the types of its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from ...config.paths import as_file, as_path
from ...errors import ConfigError
from ..console import Display


def _argument(read: Callable[[str], Path]) -> Callable[[str], Path]:
    """``read`` as argparse wants it: its error is shown with the flag."""

    def convert(text: str) -> Path:
        try:
            return read(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


PATH, FILE = _argument(as_path), _argument(as_file)


class Parser(argparse.ArgumentParser):
    """A parser that may get its options when it is used: they can need torch."""

    fill: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, with all options there."""
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        return super().parse_known_args(args, namespace)


# argparse names the type only privately
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


def command(
    group: Commands,
    name: str,
    run: Callable[[argparse.Namespace, Display], int],
    text: str,
    epilog: str = "",
) -> Parser:
    """The parser of a new command ``name`` of the ``group``, which ``run`` serves."""
    parser = group.add_parser(
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
