"""Many runs over one cache, and the choice among them that sees no held-out image.

For every held-out domain the trial with the highest validation accuracy of the source
clients, mean over seeds, is chosen: training-domain validation (Gulrajani and Lopez-Paz
2021, arXiv 2007.01434, section 3).  The held-out accuracy of the chosen is reported.

A sweep's directory holds ``sweep.toml``, a folder a trial with its runs as ``fedclip
run`` leaves them (without a page each), ``sweep.json``, ``sweep.md``, ``sweep.csv`` and
``report.html``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..algorithms import get_algorithm
from ..config.fields import options_of
from ..config.inputs import DataConfig
from ..config.schema import RunConfig
from ..config.toml import to_toml
from ..data.progress import Progress as OnImages
from ..data.progress import silent
from ..errors import ConfigError
from ..features.feature_set import FeatureSet
from ..features.obtain import obtain_features
from ..federation.alignment import check_alignment
from ..federation.build import identity
from ..federation.checkpoint import Checkpoint
from ..report.averages import aggregate
from ..report.records import target_name
from ..report.sweep import page, to_csv, to_markdown
from ..stats import ci95, mean
from ..storage.files import file_names, write_bytes, write_json
from .directory import SWEEP, hold
from .experiment import config_of, former_summary, plan, run_one, whole_clip
from .files import RunPlan
from .pool import Outcome, attempt, run_tasks

_OURS = (SWEEP, "sweep.json", "sweep.md", "sweep.csv", "report.html")
_PATIENCE = 10.0  # seconds until a worker of a killed sweep has noticed


@dataclass(frozen=True)
class Trial:
    """One choice of options; ``config`` has them, or ``refused`` tells why it cannot.

    ``label`` names it, ``options`` are those that differ between trials.
    """

    label: str
    options: Mapping[str, Any]
    config: RunConfig | None
    refused: str = ""


@dataclass(frozen=True)
class Sweep:
    """The trials of a sweep and how they were found; ``text`` is its TOML."""

    trials: tuple[Trial, ...]
    search: str
    text: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """A run of a sweep: one trial, held-out domain and seed."""

    trial: int
    config: RunConfig
    plan: RunPlan
    log: tuple[str, ...] = ()


@dataclass
class Hooks:
    """What is called as a sweep goes on: of features, of rounds, and of ended runs."""

    images: OnImages = silent
    round: Callable[[Job, tuple[int, int, float | None]], None] = lambda job, note: None
    done: Callable[[Job, Outcome, int, int], None] = lambda *ended: None


def plan_jobs(
    sweep: Sweep,
    out: Path,
    log: Sequence[str] = (),
    progress: OnImages = silent,
    features: Callable[[RunConfig], FeatureSet] | None = None,
) -> tuple[list[Job], dict[int, Outcome]]:
    """The runs of all trials, those on the same data one after the other.

    And what is wrong with trials that cannot run.  Images are encoded on the way: all
    trials on them share the cache; unless ``features`` gives what stands for them.
    Raises ConfigError where no trial can run.
    """
    folders = file_names([trial.label for trial in sweep.trials], _OURS)
    bad: dict[int, Outcome] = {}
    jobs: list[Job] = []
    for i, trial in enumerate(sweep.trials):
        if trial.config is None:
            bad[i] = Outcome(error=trial.refused)
            continue
        directory = out / folders[trial.label]
        find = functools.partial(_plans, progress=progress, features=features)
        found = attempt(find, (trial.config, directory), _mute)
        if found.error:
            bad[i] = found
        else:
            jobs += [Job(i, trial.config, one, tuple(log)) for one in found.value]
    if not jobs:
        worst = next(iter(bad.values()))
        raise ConfigError(f"none of the sweep's runs can run: {worst.error}")
    order = list(dict.fromkeys(_data_key(job.config) for job in jobs))
    jobs.sort(key=lambda job: order.index(_data_key(job.config)))
    return jobs, bad


def _mute(note: Any) -> None:
    """Nobody waits for it."""


def _plans(
    task: tuple[RunConfig, Path],
    tell: Any,
    *,
    progress: OnImages,
    features: Callable[[RunConfig], FeatureSet] | None,
) -> list[RunPlan]:
    config, directory = task
    if features is None:
        found = _features(*_data_key(config), progress=progress)
    else:
        found = features(config)
    plans = plan(config, found, directory)
    for one in plans:
        check_alignment(config, get_algorithm(config.algorithm), one.target)
    return plans


def _data_key(config: RunConfig) -> tuple[Any, Any]:
    return config.model, config.data


_held: dict[tuple[Any, Any], FeatureSet] = {}


def _features(model: Any, data: Any, progress: OnImages = silent) -> FeatureSet:
    """The features of a trial; the last ones stay in memory."""
    key = (model, data)
    if key not in _held:
        features, _ = obtain_features(RunConfig(model=model, data=data), progress)
        _held.clear()
        _held[key] = features
    return _held[key]


def run_job(job: Job, tell: Callable[[tuple[int, int, float | None]], None]) -> Any:
    """One run, from where it stopped; its summary.  What a worker does."""
    config, one = job.config, job.plan
    features = _features(*_data_key(config))
    with hold(one.directory, _PATIENCE):
        same = identity(features, config_of(one, config), one.target)
        Checkpoint(one.directory, same).accept()
        if (summary := former_summary(one, config.train)) is not None:
            return summary
        return run_one(
            config,
            features,
            one,
            0.0,
            resume=True,
            on_round=lambda _, now: tell(
                (
                    now.progress.round,
                    one.rounds,
                    None if now.result is None else now.result.score,
                )
            ),
            clip=whole_clip(config, features),
            log=job.log,
            page=False,
        )


def run_sweep(
    out: Path,
    sweep: Sweep,
    *,
    processes: int = 1,
    log: Sequence[str] = (),
    hooks: Hooks | None = None,
) -> dict[str, Any]:
    """Run what is not finished yet in ``out``, and choose; what sweep.json holds.

    A run that fails is named in it, and the others go on.
    """
    hooks = hooks or Hooks()
    with hold(out):
        write_bytes(out / SWEEP, sweep.text.encode())
        jobs, bad = plan_jobs(sweep, out, log, hooks.images)
        outcomes: dict[int, Outcome] = {}

        def done(i: int, outcome: Outcome) -> None:
            outcomes[i] = outcome
            hooks.done(jobs[i], outcome, len(outcomes), len(jobs))

        def told(i: int, note: Any) -> None:
            hooks.round(jobs[i], note)

        run_tasks(run_job, jobs, processes, told, done)
        runs: list[list[tuple[Job, Outcome]]] = [[] for _ in sweep.trials]
        for i, job in enumerate(jobs):
            runs[job.trial].append((job, outcomes[i]))
        _write_trees(sweep, out, runs)
        result = outcome_of(sweep, out, runs, bad)
        write_json(out / "sweep.json", result)
        write_bytes(out / "sweep.md", to_markdown(result).encode(), durable=False)
        write_bytes(out / "sweep.csv", to_csv(result).encode(), durable=False)
        write_bytes(out / "report.html", page(result, out.name).encode(), durable=False)
        return result


def _write_trees(
    sweep: Sweep, out: Path, runs: Sequence[Sequence[tuple[Job, Outcome]]]
) -> None:
    """Above the runs of a trial what ``fedclip run`` leaves above several."""
    for trial, ended in zip(sweep.trials, runs):
        if len(ended) > 1 and not any(outcome.error for _, outcome in ended):
            assert trial.config is not None
            top = ended[0][0].plan.directory.parents[1]
            write_bytes(top / "config.toml", to_toml(trial.config).encode())
            write_json(top / "summary.json", aggregate([o.value for _, o in ended]))


def outcome_of(
    sweep: Sweep,
    out: Path,
    runs: Sequence[Sequence[tuple[Job, Outcome]]],
    bad: Mapping[int, Outcome],
) -> dict[str, Any]:
    """Every trial, what failed, and for each held-out domain what was chosen."""
    trials: list[dict[str, Any]] = []
    failed: list[dict[str, Any]] = []
    for i, trial in enumerate(sweep.trials):
        listed = [_row(job, out, end) for job, end in runs[i] if not end.error]
        trials.append(
            {"trial": trial.label, "options": dict(trial.options), "runs": listed}
        )
        if i in bad:
            failed.append(_failure(trial, "", bad[i]))
        failed += [_failure(trial, j.plan.label, o) for j, o in runs[i] if o.error]
    targets = list(dict.fromkeys(row["target"] for t in trials for row in t["runs"]))
    chosen = {target: choose(trials, target) for target in targets}
    found = [one for one in chosen.values() if one is not None]
    return {
        "search": sweep.search,
        "select_by": _only(t.config.train.select_by for t in sweep.trials if t.config),
        "trials": trials,
        "failed": failed,
        "selected": chosen,
        "mean": {
            key: mean(one[key] for one in found)
            for key in ("validation", "zero_shot", "result")
        },
        "notes": [*sweep.notes, *_notes(trials, chosen)],
    }


def _only(values: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(values))


def _row(job: Job, out: Path, outcome: Outcome) -> dict[str, Any]:
    summary = outcome.value
    kind = "clients" if summary.get("target") is None else "target"
    scores = {which: summary[which] for which in ("zero_shot", "result")}
    return {
        "target": target_name(summary),
        "seed": summary["seed"],
        "validation": summary.get("validation"),
        **{
            which: mean(each["clients"].values()) if kind == "clients" else each[kind]
            for which, each in scores.items()
        },
        "best_round": summary["best_round"],
        "rounds": summary["rounds"],
        "directory": str(job.plan.directory.relative_to(out)),
    }


def _failure(trial: Trial, run: str, outcome: Outcome) -> dict[str, Any]:
    line = {"trial": trial.label, "run": run, "error": outcome.error}
    return {**line, "fault": outcome.fault}


def choose(trials: Sequence[Mapping[str, Any]], target: str) -> dict[str, Any] | None:
    """The trial whose source clients' validation is the highest; of equal ones the
    first.

    None where no trial has a validation score, or all have lost a seed that another
    one has.
    """
    best: dict[str, Any] | None = None
    rows = [[r for r in t["runs"] if r["target"] == target] for t in trials]
    seeds = max((len(own) for own in rows), default=0)
    for trial, own in zip(trials, rows):
        score = mean(row["validation"] for row in own)
        if len(own) < seeds or score is None:
            continue
        if best is None or score > best["validation"]:
            results = [row["result"] for row in own if row["result"] is not None]
            best = {
                "trial": trial["trial"],
                "options": trial["options"],
                "validation": score,
                "zero_shot": mean(row["zero_shot"] for row in own),
                "result": mean(results),
                "ci95": ci95(results),
                "seeds": [row["seed"] for row in own],
            }
    return best


_SAME_ROWS = {"target", "prompt", "transductive", "class-names", "pictures"}
_ROWS = {option.name for option in options_of(DataConfig)} - _SAME_ROWS


def _notes(
    trials: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]
) -> Iterator[str]:
    varied = dict.fromkeys(name for trial in trials for name in trial["options"])
    rows = [f"--{name}" for name in varied if name in _ROWS]
    if rows:
        yield (
            f"{', '.join(rows)} changes the validation rows themselves: scores of "
            "different ones do not compare, and nor does a choice among them"
        )
    lost = [name for name, one in chosen.items() if one is None]
    if lost:
        yield (
            f"{', '.join(lost)}: no client has a validation image, so nothing can be "
            "chosen"
        )
