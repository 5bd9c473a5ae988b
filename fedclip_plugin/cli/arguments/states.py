"""What uses a finished run: predict, evaluate, export, join, leave."""

from __future__ import annotations

from pathlib import Path

from ...settings import options
from .. import apply, commands, members
from .command import PATH, Commands, Parser, command

PREDICT_EPILOG = """examples:
  fedclip predict runs/pacs dog.jpg cat.jpg
  fedclip predict runs/pacs photos/ --format csv > labels.csv
  find photos -name '*.jpg' | fedclip predict runs/pacs - --classes dog cat "a red car"
"""


def _add_state(parser: Parser) -> None:
    parser.add_argument(
        "--state", metavar="best|final|FILE", type=_state, default="best",
        help="of the best round by validation, of the last one, or a state's "
        "file or folder "
        "(default: best)",
    )  # fmt: skip


def _state(word: str) -> str | Path:
    return word if word in ("best", "final") else PATH(word)


def add_predict(group: Commands) -> None:
    """``fedclip predict``."""
    parser = command(
        group,
        "predict",
        apply.predict,
        "Classify images with what a run has learned, zero-shot CLIP beside it.",
        PREDICT_EPILOG,
    )
    add = parser.add_argument
    add("run_directory", metavar="RUN", type=PATH)
    add("images", metavar="IMAGE|DIR|-", nargs="+",
        help="files, folders of them, or - for paths from the standard input, a line "
        "each")  # fmt: skip
    add("--format", choices=("table", "json", "csv"), default="table")
    add("--classes", metavar="NAME|FILE", nargs="+",
        help="other classes than the run's, in words of yours, where the method goes "
        "by captions")  # fmt: skip
    _add_state(parser)
    add("--scores", choices=("softmax", "sigmoid"), default="softmax",
        help="sigmoid: each class by itself, as SigLIP was trained; several may fit, "
        "or none")  # fmt: skip
    add("--client", metavar="NAME", help="what this client personalized or keeps")
    options.add_model_options(parser)


def add_evaluate(group: Commands) -> None:
    """``fedclip evaluate``."""
    parser = command(
        group,
        "evaluate",
        apply.evaluate,
        "Score what a run has learned on other data or classes, zero-shot beside it.",
        "examples:\n"
        "  fedclip evaluate runs/pacs --dataset vlcs --root DATA\n"
        "  fedclip evaluate runs/pacs --features DIR --format json",
    )
    add = parser.add_argument
    add("run_directory", metavar="RUN", type=PATH)
    _add_state(parser)
    add("--client", metavar="NAME", help="what this client personalized or keeps")
    add("--format", choices=("table", "json", "csv"), default="table")
    options.add_model_options(parser)
    options.add_data_options(parser, "features", "classes")


def add_export(group: Commands) -> None:
    """``fedclip export``."""
    parser = command(
        group,
        "export",
        commands.export,
        "Fold backbone and adapter of a run into one module that needs no fedclip.",
    )
    parser.add_argument("run_directory", metavar="RUN", type=PATH)
    parser.add_argument("--to", metavar="DIR", type=PATH, required=True)
    parser.add_argument(
        "--format", action="append", choices=("torch", "onnx", "hub"),
        help="default: torch and onnx; hub is a folder for a model hub: state, model "
        "card and config, without the CLIP",
    )  # fmt: skip
    parser.add_argument(
        "--license", metavar="NAME", default="unknown",
        help="of the state, for the model card of --format hub",
    )  # fmt: skip
    _add_state(parser)
    options.add_model_options(parser)


def add_members(group: Commands) -> None:
    """``fedclip join`` and ``fedclip leave``."""
    joining = command(
        group, "join", members.join,
        "Add clients to a finished run of gda; no round is run again.",
        "example:\n  fedclip join runs/gda --features NEW --out runs/gda-joined",
    )  # fmt: skip
    leaving = command(
        group, "leave", members.leave,
        "Take a client out of a finished run of gda: as if it had never been there.",
        "example:\n  fedclip leave runs/gda --client art --out runs/gda-without-art",
    )  # fmt: skip
    for parser in (joining, leaving):
        parser.add_argument("run_directory", metavar="RUN", type=PATH)
        parser.add_argument(
            "--out", metavar="DIR", type=PATH, required=True,
            help="where the changed run is written; RUN stays as it is",
        )  # fmt: skip
        options.add_model_options(parser)
        options.add_data_options(parser, "features", "partition", "clients", "alpha")
    joining.add_argument(
        "--client", metavar="NAME", help="of its clients this one alone (default: all)"
    )
    leaving.add_argument("--client", metavar="NAME", required=True)
