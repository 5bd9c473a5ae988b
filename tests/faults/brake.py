"""Runs that go no further than a round, so that none is over before it is killed.

    python -m tests.faults.brake FILE MODULE WORDS

is ``python -m MODULE WORDS``; FILE holds the round after which it waits.
"""

from __future__ import annotations

import importlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fedclip_plugin.runs.files import MetricsFile

RELEASED = 1 << 40


class Brake:
    """The file that says how far runs may go; ``let`` moves it."""

    def __init__(self, file: Path, rounds: int = 0) -> None:
        self.file = file
        self.let(rounds)

    def let(self, rounds: int = RELEASED) -> None:
        """Allow so many rounds in all."""
        aside = self.file.with_name(f"{self.file.name}.new")
        aside.write_text(str(rounds))
        os.replace(aside, self.file)

    def command(self, words: list[str]) -> list[str]:
        """``python -m MODULE WORDS`` with the brake on."""
        python, dash_m, *rest = words
        return [python, dash_m, __name__, str(self.file), *rest]


def brake(file: Path) -> None:
    """Have this process wait when it has written down the rounds that it may."""
    add = MetricsFile.add

    def add_and_wait(self: MetricsFile, line: Mapping[str, Any]) -> None:
        add(self, line)
        while line["round"] >= int(file.read_text()):
            time.sleep(0.01)

    MetricsFile.add = add_and_wait  # type: ignore[method-assign]


def braked(file: Path, target: Callable[..., None], *args: object) -> None:
    """``target`` in a process of its own, with the brake on."""
    brake(file)
    target(*args)


def main() -> object:
    _, file, module, *words = sys.argv
    brake(Path(file))
    sys.argv = [module, *words]
    return importlib.import_module(module).main()


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[arg-type]
