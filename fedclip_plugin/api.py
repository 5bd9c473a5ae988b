"""The functions of ``import fedclip_plugin as fc``: run, encode, and what they leave.

Options are those of ``fedclip run`` (docs/options.md), with ``_`` for ``-``:
``fc.run(target="sketch", local_epochs=2)``.  A misspelt one is a ConfigError.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .config.paths import as_path
from .config.schema import RunConfig
from .errors import ConfigError
from .export.predict import Classifier
from .export.trained import read_trained
from .features.feature_set import FeatureSet
from .features.obtain import obtain_features, open_data
from .report.records import load_run as load_record
from .report.trackers import find_trackers
from .runs import members
from .runs.directory import SWEEP, prepare_out
from .runs.experiment import OnRound, run_in
from .runs.sweep import run_sweep
from .settings.sources import configure
from .settings.sweep import read_sweep
from .wire.update import State


def run(
    *,
    out: str | Path | None = None,
    resume: bool = False,
    log: Sequence[str] | str = (),
    on_round: OnRound | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Run a federation, as ``fedclip run`` does; returns what summary.json holds.

    ``out`` is the directory of the results, which a former run there makes way for;
    without it nothing is kept.  ``resume`` goes on with a broken run in ``out``.
    ``log`` names trackers that follow the run.
    ``on_round`` is called after every round.  Raises FedClipError, as the command line
    exits with code 2.
    """
    if resume and out is None:
        raise ConfigError("resume=True needs out=DIR, the directory of the broken run")
    log = [log] if isinstance(log, str) else log
    if find_trackers(log) and out is None:
        raise ConfigError("log needs out=DIR: trackers write beside the run's files")
    base = as_path(out) / "config.toml" if resume and out is not None else None
    config = configure(options, base)
    if out is not None:
        data = open_data(config)
        directory = prepare_out(as_path(out), "", resume)
        return run_in(directory, config, resume, data=data, on_round=on_round, log=log)
    with tempfile.TemporaryDirectory(prefix="fedclip-") as folder:
        return run_in(Path(folder) / "run", config, on_round=on_round)


def sweep(
    file: str | Path | Mapping[str, Any],
    *,
    out: str | Path,
    jobs: int = 1,
    resume: bool = False,
    log: Sequence[str] | str = (),
) -> dict[str, Any]:
    """Search over options, as ``fedclip sweep`` does; returns what sweep.json holds.

    ``file`` is a TOML file or what it would hold (docs/sweep.md); ``jobs`` processes
    share the runs.  Raises FedClipError; a single run that fails is among the result's
    ``failed``.
    """
    path = file if isinstance(file, Mapping) else as_path(file)
    found, _, _ = read_sweep(path)
    log = [log] if isinstance(log, str) else log
    find_trackers(log)
    if jobs < 1:
        raise ConfigError(f"jobs={jobs}: expected at least 1")
    directory = prepare_out(as_path(out), "", resume, SWEEP)
    return run_sweep(directory, found, processes=jobs, log=log)


def encode(**options: Any) -> FeatureSet:
    """The features of a data set; every image is encoded once, and cached.

    Options are those of ``fedclip features``: ``dataset``, ``root``, ``model``,
    ``pretrained``, ``prompt``, ...  Raises FedClipError.
    """
    features, _ = obtain_features(configure(options))
    return features


def join(
    directory: str | Path,
    *,
    out: str | Path,
    client: str | None = None,
    **newcomers: Any,
) -> dict[str, Any]:
    """Add clients to a finished run of gda, as ``fedclip join`` does.

    ``newcomers`` name their data (``features=DIR``, or ``dataset=`` and ``root=``);
    ``client`` takes one of its clients alone.  The changed run is written to ``out``;
    returns its summary.  Raises FedClipError.
    """
    return members.join(_former(directory), configure(newcomers), as_path(out), client)


def leave(
    directory: str | Path, client: str, *, out: str | Path, **data: Any
) -> dict[str, Any]:
    """Take a client out of a finished run of gda: as if it had never been there.

    Its rows are read from the run's own data; ``data`` name them where it joined
    later.  As :func:`join` otherwise.
    """
    own = configure(data) if data else None
    return members.leave(_former(directory), client, as_path(out), own)


def _former(directory: str | Path) -> members.Former:
    path = as_path(directory)
    load_record(path)  # a run, and a finished one
    return members.Former.read(path, configure({}, path / "config.toml"))


@dataclass(frozen=True)
class Run:
    """A finished run: ``summary`` is summary.json, ``metrics`` holds a dict a round."""

    path: Path
    summary: dict[str, Any]
    metrics: tuple[dict[str, Any], ...]

    @cached_property
    def config(self) -> RunConfig:
        """The configuration that it ran with."""
        return configure({}, self.path / "config.toml")

    @cached_property
    def state(self) -> State:
        """The shared state of the best round: name -> tensor, on the CPU."""
        return read_trained(self.path).state


def load_run(directory: str | Path) -> Run:
    """Read a finished run; RunError where it is missing, unfinished or damaged."""
    record = load_record(as_path(directory))
    return Run(record.path, record.summary, record.metrics)


def load_classifier(
    directory: str | Path,
    client: str | None = None,
    state: str | Path = "best",
    *,
    scores: str = "softmax",
    **options: Any,
) -> Classifier:
    """The classifier that a run has trained: ``load_classifier(RUN).predict([...])``.

    ``client`` takes what that client personalized; ``state`` is that of the best round,
    ``"final"`` or a file of one; ``scores`` "sigmoid" is for SigLIP, whose classes are
    judged each by itself.  ``options`` go over the run's own:
    a run from a feature directory does not know its backbone, so name ``model`` and
    ``pretrained``.  Raises FedClipError.
    """
    path = as_path(directory)
    load_record(path)  # a run, and a finished one
    config = configure(options, path / "config.toml")
    return Classifier.load(path, config, client, state=state, scores=scores)
