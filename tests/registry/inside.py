"""``python -m tests.registry.inside NAMESPACE MODULE WORDS``: ``main`` there."""

from __future__ import annotations

import importlib
import sys

from tests.registry.machines import enter


def main() -> object:
    _, namespace, module, *words = sys.argv
    enter(namespace)  # before anything has started a thread
    sys.argv = [module, *words]
    return importlib.import_module(module).main()


if __name__ == "__main__":
    sys.exit(main())  # type: ignore[arg-type]
