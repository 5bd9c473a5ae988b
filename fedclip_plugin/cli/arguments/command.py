"""A command of ``fedclip``: its parser, and the types of its arguments."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from ...config.paths import as_file, as_path
from ...errors import ConfigError, did_you_mean
from ..console import Display, print_error


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
    """A parser that may get its options when it is used: they can need torch.

    Its errors are one line: argparse's usage of all options would fill the screen.
    """

    fill: Callable[[argparse.ArgumentParser], None] | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, with all options there; what is unknown is an error."""
        if self.fill is not None:
            fill, self.fill = self.fill, None
            fill(self)
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            name, what = unknown[0].partition("=")[0], "argument"
            if name.startswith("-"):
                what = "option"
                options = [o for action in self._actions for o in action.option_strings]
                name += did_you_mean(name, options)
            self.error(f"unknown {what} {name}")
        return parsed, unknown

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        try:
            super()._check_value(action, value)
        except argparse.ArgumentError as error:
            near = did_you_mean(str(value), map(str, action.choices or ()))
            raise argparse.ArgumentError(action, error.message + near) from None

    def error(self, message: str) -> NoReturn:
        """Tell it, and where the options are described; exit code 2."""
        print_error(f"{message} (see {self.prog} --help)")
        self.exit(2)


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
    quiet = "no progress: results, their notes and errors alone"
    parser.add_argument("--quiet", action="store_true", help=quiet)
    parser.set_defaults(run=run)
    return parser
