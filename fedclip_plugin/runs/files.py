"""The one writer of a run directory; the layout is told in docs/report.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

from ..config.toml import to_dict, to_toml
from ..data.partition import NO_TARGET
from ..federation.build import identity
from ..federation.checkpoint import Checkpoint
from ..federation.engine import RunState, final
from ..report.records import PICTURES, ROUND
from ..report.trackers import Trackers, find_trackers
from ..report.write import write_html
from ..storage.files import (
    cannot_write,
    write_bytes,
    write_json,
    write_parts,
)
from ..storage.shapes import cleaned
from ..storage.tensors import write_tensors
from ..wire.update import Kept, State, flatten
from .results import Results
from .setup import Setup


@dataclass(frozen=True)
class RunPlan:
    """One target and one seed, and the directory of its files."""

    directory: Path
    target: str | None
    seed: int
    rounds: int

    @property
    def label(self) -> str:
        """Short name for progress lines."""
        held_out = f"{self.target} held out" if self.target else "no held-out domain"
        return f"{held_out}, seed {self.seed}"


class RunFiles:
    """The files of one run, for the embedded loop and for every host.

    :meth:`start` gives what to go on from, :meth:`add` writes a round down, and
    :meth:`finish` the results.  A context manager: leaving it closes the files.

    ``log`` names the trackers that follow it; without ``page`` there is no report.html.
    Raises what :func:`find_trackers` does.
    """

    def __init__(
        self,
        directory: Path,
        setup: Setup,
        members: tuple[str, ...] = (),
        *,
        log: Sequence[str] = (),
        page: bool = True,
    ) -> None:
        self.directory = directory
        self.setup = setup
        self.members = members  # where clients joined or left after the rounds
        self.checkpoint = Checkpoint(directory, _identity(setup))
        self.metrics = MetricsFile(directory / "metrics.jsonl")
        self._trackers = Trackers(find_trackers(log))
        self._page = page

    def __enter__(self) -> RunFiles:
        self.metrics.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._trackers.close()
        self.metrics.__exit__(kind, *rest)

    def start(self, resume: bool) -> RunState | None:
        """The run that is broken off here, if it is to go on; the files of its rounds.

        Raises RunError for a checkpoint that cannot be used; then nothing was written.
        """
        if not resume:
            self.checkpoint.path.unlink(missing_ok=True)
        now = self.checkpoint.load(self.setup.fed)
        config = to_toml(self.setup.config)
        write_bytes(self.directory / "config.toml", config.encode())
        self._trackers.start(self.directory, self._label, _flat(self.setup))
        if now is None:
            self.metrics.cut(0)
            return None
        line = self.metrics.cut(now.progress.round, now.progress.best_round) or {}
        return replace(now, best_scores=line.get("clients") or {})

    def add(self, now: RunState) -> None:
        """Write down the round that ends in ``now``; killed here, it is run again."""
        if now.result is not None:
            line = now.result.as_dict()
            self.metrics.add(line)
            self.checkpoint.save(now, self.setup.fed.task.text.device)
            self._trackers.log(cleaned(line))

    def finish(
        self,
        now: RunState,
        results: Results,
        pictures: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Write adapter, evaluation, summary and report; returns the summary."""
        progress = now.progress
        self._write_state("adapter", now.best, now.best_kept, progress.best_round)
        self._write_state("final", *final(self.setup.fed, now), progress.round)
        if results.evaluation:
            write_json(self.directory / "evaluation.json", cleaned(results.evaluation))
        if pictures:
            write_json(self.directory / PICTURES, pictures)
        summary: dict[str, Any] = cleaned(results.summary)
        write_json(self.directory / "summary.json", summary)
        if self._page:
            write_html(self.directory)
        self._trackers.finish(summary)
        return summary

    def _write_state(self, name: str, state: State, kept: Kept, number: int) -> None:
        metadata = {**self._metadata(), "round": str(number)}
        path = self.directory / f"{name}.safetensors"
        write_tensors(path, {**state, **flatten(kept)}, metadata)

    @property
    def _label(self) -> str:
        setup = self.setup
        target = setup.target or NO_TARGET
        return f"{setup.config.algorithm}-{target}-seed-{setup.seed}"

    def keep_personal(self, name: str, state: State) -> None:
        """``personal/<name>.safetensors``: the adapter that a client made its own."""
        path = self.directory / "personal" / f"{name}.safetensors"
        write_tensors(path, state, self._metadata())

    def _metadata(self) -> dict[str, str]:
        """What an adapter file says of the CLIP, the classes and the run."""
        features, prompt = self.setup.features, self.setup.features.prompt
        return {
            "format": "fedclip-adapter 1",
            "model": features.model,
            "pretrained": features.pretrained,
            "encoder": json.dumps(dict(features.encoder)),
            "prompts": json.dumps([prompt] if isinstance(prompt, str) else prompt),
            "classes": json.dumps(features.classes),
            "logit_scale": repr(features.logit_scale),
            "features": features.key,
            "target": self.setup.target or "",
            "seed": str(self.setup.seed),
            **({"members": json.dumps(self.members)} if self.members else {}),
        }


def _flat(setup: Setup) -> dict[str, Any]:
    """The run's options by dotted name."""
    values = to_dict(setup.config)
    inner = {k: v for k, v in values.items() if isinstance(v, Mapping)}
    flat = {k: v for k, v in values.items() if k not in inner}
    return flat | {f"{s}.{k}": v for s, part in inner.items() for k, v in part.items()}


def _identity(setup: Setup) -> str:
    """Without data here, features are known by who is there: not for a checkpoint.

    A server that was started again may see other clients first.
    """
    features, config = setup.features, setup.config
    if not setup.fed.clients:
        model = [config.model_name, Path(config.pretrained).name, config.data.prompts]
        features = replace(features, key=repr([config.data.dataset, *model]))
    return identity(features, config, setup.target)


class MetricsFile:
    """``metrics.jsonl``: a line a round, appended; cut back to a checkpoint's round.

    What was left out of a round also goes to ``quarantined.jsonl`` beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.quarantined = path.with_name("quarantined.jsonl")

    def __enter__(self) -> MetricsFile:
        self._file: TextIO | None = None  # until what is there is cut
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:  # the line that did not fit is tried once more
            if kind is None:
                raise cannot_write(self.path, error) from error

    def cut(self, rounds: int, wanted: int = 0) -> dict[str, Any] | None:
        """Keep the lines of rounds 1 to ``rounds``; returns that of round ``wanted``.

        A line holds every client's accuracies: one at a time is in memory.
        """
        if self._file is not None:
            self._file.close()
        line = _cut(self.path, rounds, wanted) if self.path.is_file() else None
        self._file = _append_to(self.path)
        if self.quarantined.is_file():
            _cut(self.quarantined, rounds)
        return line

    def add(self, line: Mapping[str, Any]) -> None:
        """Append one round; in the file before its checkpoint is written."""
        line = cleaned(line)
        try:
            assert self._file is not None
            self._file.write(json.dumps(line, allow_nan=False) + "\n")
            self._file.flush()
            if line.get("left_out"):
                with self.quarantined.open("a", encoding="utf-8") as file:
                    for update in line["left_out"]:
                        file.write(json.dumps({"round": line["round"], **update}))
                        file.write("\n")
        except OSError as error:
            raise cannot_write(self.path, error) from error


def _append_to(path: Path) -> TextIO:
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error


def _cut(path: Path, rounds: int, wanted: int = 0) -> dict[str, Any] | None:
    chosen: list[dict[str, Any]] = []

    def kept(lines: Iterable[bytes]) -> Iterator[bytes]:
        for line in lines:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue  # torn by a kill or a full disk: its round is run again
            if ROUND(entry) is None and entry["round"] <= rounds:
                chosen[:] = [entry] if entry["round"] == wanted else chosen
                yield line

    with path.open("rb") as lines:
        write_parts(path, kept(lines), durable=False)
    return chosen[0] if chosen else None
