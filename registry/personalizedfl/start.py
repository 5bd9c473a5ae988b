"""Before ``main.py`` runs: what it cannot hand over, and what time broke in it."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...algorithms import ALGORITHMS, get_algorithm
from ...config.paths import as_path
from ...config.schema import RunConfig
from ...data.partition import NO_TARGET
from ...errors import ConfigError, DataError, FedClipError
from ...runs.host_run import one_run
from ...settings.sources import Given, load_settings
from .repository import MODULE, find_repository

OF_MAIN = {  # what main.py decides -> the value that leaves it alone
    "data.targets": (),
    "data.classes": (),
    "data.partition": "domain",
    "data.split": None,
    "data.shots": None,
    "server.participation": 1.0,
    "train.patience": None,
}


def settings_of(
    args: argparse.Namespace,
) -> tuple[RunConfig, Path | None, tuple[str, ...]]:
    """The configuration, where ``FEDCLIP_OUT`` wants the results (None: nowhere), and
    the trackers of ``FEDCLIP_LOG``.

    Raises ConfigError for what does not go together with ``main.py``.
    """
    given = any(word.partition("=")[0] == "--lr" for word in sys.argv)
    folder = data_folder(args)
    host = {
        "seed": [args.seed],
        "device": args.device,
        "alg": getattr(args, "alg", None),
        "dataset": args.dataset,
        "root": folder if Path(folder).is_dir() else None,
        "rounds": args.iters,
        "local-epochs": args.wk_iters,
        "batch-size": args.batch,
        # the default of main.py is for SGD, and looks like one that was given
        "lr": args.lr if given else None,
    }
    config, (out, resume, log) = load_settings(
        {
            name: Given(value, f"main.py: {name} = {value}")
            for name, value in host.items()
            if value is not None
        }
    )
    algorithm = get_algorithm(config.algorithm)
    if config.train.evaluate is not None:
        raise ConfigError(
            "--evaluate: main.py always trains; `fedclip run`, FedML and Flower score "
            "a given state"
        )
    if algorithm.needs_clip or not algorithm.communicates:
        why = algorithm.why_clip if algorithm.needs_clip else "sends nothing"
        raise ConfigError(f"--alg {algorithm.name} {why}: `fedclip run` has it")
    if algorithm.transductive:
        raise ConfigError(
            f"--alg {algorithm.name} aligns clients to each other's features, and "
            "main.py leaves each client's data to itself: `fedclip run` has it"
        )
    if resume:
        raise ConfigError(
            "FEDCLIP_RESUME: main.py begins with its first round; run it again without"
        )
    for key, value in OF_MAIN.items():
        section, name = key.split(".")
        found = getattr(getattr(config, section), name)
        if found not in (value, (NO_TARGET,)):
            raise ConfigError(
                f"{key} = {found!r}: who trains, and on which images, is main.py's "
                "business; take it out of fedclip.toml and of the FEDCLIP_* variables "
                "(`fedclip run` has it)"
            )
    notes = tuple(n for n in config.notes if not n.startswith("main.py: "))
    for note in notes:  # what main.py always says need not be told
        say(f"note: {note}")
    return one_run(replace(config, notes=notes)), out, log


def data_folder(args: argparse.Namespace) -> str:
    """Where the host looks for a data set; it joins the strings as they are."""
    return str(args.root_dir) + ("covid19" if args.dataset == "covid" else args.dataset)


def refuse_time_series(dataset: str) -> None:
    """DataError for ``pamap``."""
    if dataset == "pamap":
        raise DataError(
            "--dataset pamap is a time series of body sensors, and CLIP takes images: "
            "with --alg fedclip use pacs, vlcs, off_home, medmnist or covid"
        )


SECONDS = 5.0  # between two lines of progress


def say(text: str) -> None:
    """A line of news."""
    print(f"fedclip: {' '.join(text.split())}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def clear_errors() -> Iterator[None]:
    """A FedClipError ends ``main.py`` in one line and exit code 2; also a decorator."""
    try:
        yield
    except FedClipError as error:
        say(f"error: {error}")
        raise SystemExit(2) from error


class Progress:
    """Images hashed and encoded, a line every few seconds."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        """``data.progress.Progress``: one more step of ``what`` is done."""
        if time.monotonic() - self._said > SECONDS:
            self._said = time.monotonic()
            say(f"{what}: {done}/{total}")


@clear_errors()
def fit(plays: type) -> None:
    """Make the host's modules fit for ``--alg fedclip``, or another method of ours.

    ``plays`` is what main.py will call by that name.  The host's own algorithms find it
    as it is, also where ours have the same name.  Exits with a line and code 2 for a
    data set that ``main.py`` cannot hand over.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--alg")
    parser.add_argument("--dataset", default="pacs")
    parser.add_argument("--root_dir", default="./data/")
    args, _ = parser.parse_known_args()
    algs, name = _module("alg.algs"), str(args.alg)
    own = getattr(algs, name, plays) not in (plays, None)
    if own or name not in ALGORITHMS.names():
        return
    setattr(algs, name, plays)
    for stream in (sys.stdout, sys.stderr):  # names may have signs that they lack
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    _check_dataset(args.dataset)
    _settle_root(args)
    _check_files(args)
    if not hasattr(np, "int"):
        _module("datautil.datasplit").np = FormerNumpy()


def _settle_root(args: argparse.Namespace) -> None:
    """``--root_dir`` as main.py will find it; ConfigError where nothing is there."""
    root = f"{as_path(args.root_dir)}{'/' * args.root_dir.endswith('/')}"
    if Path(given := data_folder(args)).is_dir():
        return
    args.root_dir, name = root, given.removeprefix(args.root_dir)
    if Path(data_folder(args)).is_dir():  # main.py reads these words next
        sys.argv += ["--root_dir", root]
    elif Path(root, name).is_dir():
        raise ConfigError(
            f"--root_dir {root}: main.py joins it to {name} as it is: write "
            f"--root_dir {root}/"
        )
    else:
        raise ConfigError(
            f"--root_dir {root}: {data_folder(args)} is not a folder; expected the "
            f"images of --dataset {args.dataset} in ROOT_DIR/{name}/"
        )


_DOMAINS = {  # util/config.py: main.py opens each, and fails with a traceback
    "pacs": ("art_painting", "cartoon", "photo", "sketch"),
    "vlcs": ("Caltech101", "LabelMe", "SUN09", "VOC2007"),
    "off_home": ("Art", "Clipart", "Product", "Real_World"),
}
_IMAGES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
ARRAYS = ("xdata.npy", "ydata.npy")  # of medmnist and covid


def _check_files(args: argparse.Namespace) -> None:
    """Refuse a data set that lies there in part; raises ConfigError."""
    folder = Path(data_folder(args))
    for domain in _DOMAINS.get(args.dataset, ()):
        place = folder / domain
        classes = sorted(p for p in place.glob("*") if p.is_dir())
        empty = [c for c in classes if not any(map(_is_image, c.rglob("*")))]
        if not classes:
            what = f"{place} has no folders of images"
        elif empty:
            what = f"{empty[0]} has no image"
        else:
            continue
        raise ConfigError(
            f"--root_dir {args.root_dir}: {what}; expected {folder}/DOMAIN/CLASS/ with "
            f"the domains {', '.join(_DOMAINS[args.dataset])}: is the copy whole?"
        )
    if args.dataset.startswith("medmnist") or args.dataset == "covid":
        for name in ARRAYS:
            if not (folder / name).is_file():
                raise ConfigError(
                    f"--root_dir {args.root_dir}: {folder / name} is missing; expected "
                    f"{' and '.join(ARRAYS)} of --dataset {args.dataset}"
                )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _IMAGES  # torchvision's endings


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
    """Run a ``main.py`` whose ``--alg fedclip`` is ``algorithm``; returns its globals.

    ``argv`` is the path of ``main.py`` and its options; its folder comes first in the
    import path, as with ``python main.py``.  Raises ConfigError for another file.
    """
    if not argv:
        raise ConfigError(
            f"which main.py? python -m {MODULE} DIR/main.py --alg fedclip"
        )
    script = as_path(argv[0])
    if script.name != "main.py" or not script.is_file():
        raise ConfigError(f"{argv[0]}: expected the path of PersonalizedFL's main.py")
    sys.path[0] = str(find_repository(script.parent))
    sys.argv = [str(script), *argv[1:]]
    _know_office_home()
    fit(algorithm)
    return runpy.run_path(str(script), run_name="__main__")


def _know_office_home() -> None:
    prepare_data = _module("datautil.prepare_data")
    original: Callable[[str], Any] = prepare_data.get_data

    def get_data(name: str) -> Any:  # main.py has no other name for it than off_home
        return original("officehome" if name == "off_home" else name)

    prepare_data.get_data = get_data
