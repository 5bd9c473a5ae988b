"""Before ``main.py`` runs: what it cannot hand over, and what time broke in it."""

from __future__ import annotations

import argparse
import importlib
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from .personalizedfl_log import clear_errors
from .personalizedfl_repository import MODULE, find_repository
from .personalizedfl_settings import refuse_time_series


@clear_errors()
def prepare() -> None:
    """Make the host's modules fit for ``--alg fedclip``; alg/fedclip.py calls it.

    Other algorithms find the host as it is.  Exits with a line and code 2 for a data
    set that ``main.py`` cannot hand over.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--alg")
    parser.add_argument("--dataset", default="pacs")
    args, _ = parser.parse_known_args()
    if args.alg != "fedclip":
        return
    _check_dataset(args.dataset)
    if not hasattr(np, "int"):
        _module("datautil.datasplit").np = FormerNumpy()


def _module(name: str) -> Any:
    """A module of the host's, which lies in no package."""
    return importlib.import_module(name)


def _check_dataset(name: str) -> None:
    refuse_time_series(name)
    if name == "officehome":
        raise ConfigError(
            "--dataset officehome: main.py sets it up only as off_home; use --dataset "
            "off_home, with the images in ROOT_DIR/off_home/"
        )
    try:
        _module("datautil.prepare_data").get_data(name)
    except KeyError as error:
        remedy = f"; start it by python -m {MODULE} MAIN.PY, which does"
        raise ConfigError(
            f"--dataset {name}: datautil/prepare_data.py does not know it"
            + (remedy if name == "off_home" else "")
        ) from error


class FormerNumpy:
    """NumPy as ``datautil/datasplit.py`` was written for it, before 1.24."""

    int = int

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def array(self, values: Any, *args: Any, **kwargs: Any) -> Any:
        """``np.array``, which took lists of different lengths for objects."""
        try:
            return np.array(values, *args, **kwargs)
        except ValueError:
            return np.array(values, dtype=object)


def run_main(argv: Sequence[str], algorithm: type) -> dict[str, Any]:
    """Run a ``main.py`` with ``algorithm`` as its ``fedclip``; returns its globals.

    ``argv`` is the path of ``main.py`` and its options; its folder comes first in the
    import path, as with ``python main.py``.  Raises ConfigError for another file.
    """
    if not argv:
        raise ConfigError(
            f"which main.py? python -m {MODULE} DIR/main.py --alg fedclip"
        )
    script = Path(argv[0]).expanduser()
    if script.name != "main.py" or not script.is_file():
        raise ConfigError(f"{argv[0]}: expected the path of PersonalizedFL's main.py")
    sys.path[0] = str(find_repository(script.parent))
    sys.argv = [str(script), *argv[1:]]
    _know_office_home()
    _module("alg.algs").fedclip = algorithm
    prepare()
    return runpy.run_path(str(script), run_name="__main__")


def _know_office_home() -> None:
    prepare_data = _module("datautil.prepare_data")
    known: Callable[[str], Any] = prepare_data.get_data

    def get_data(name: str) -> Any:  # main.py has no other name for it than off_home
        return known("officehome" if name == "off_home" else name)

    prepare_data.get_data = get_data
