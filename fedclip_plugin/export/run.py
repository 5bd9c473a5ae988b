"""``fedclip export``: the backbone and the adapter of a finished run as one module."""

from __future__ import annotations

from pathlib import Path

from ..config.schema import RunConfig
from .classifier import export_classifier
from .trained import class_texts, load_backbone, read_trained


def export_run(
    directory: Path,
    config: RunConfig,
    to: Path,
    formats: tuple[str, ...],
    state: str | Path = "best",
) -> tuple[Path, ...]:
    """Export the adapter of the run in ``directory`` to ``to``; returns the files.

    ``config`` is the run's, with ``--model`` and its kin over it: a run from a feature
    directory does not know where its backbone's weights are.  ``state`` is which one,
    as in :func:`read_trained`.  Raises RunError where there is none, WeightsError for a
    backbone of another width.
    """
    trained = read_trained(directory, state=state)
    shared = trained.shared
    encoder = load_backbone(trained, config)
    texts = class_texts(encoder, trained.classes, trained.prompts)
    return export_classifier(encoder, shared, texts, trained.classes, to, formats)
