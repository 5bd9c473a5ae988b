"""``fedclip sweep``: many runs over one cache, and the choice among them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .console import Display, print_error

if TYPE_CHECKING:
    from ..runs.pool import Outcome
    from ..runs.sweep import Job, Sweep
    from ..settings.sources import Output

TIMED = 24  # trials of which --dry-run times a round


def sweep(args: argparse.Namespace, display: Display) -> int:
    """``fedclip sweep``; 2 where a run was refused, 1 where one failed by our fault."""
    from ..report.console import print_plain
    from ..report.sweep import all_tables
    from ..report.trackers import find_trackers
    from ..runs.directory import SWEEP, prepare_out
    from ..runs.pool import cores
    from ..runs.sweep import Hooks, run_sweep
    from ..settings.sweep import read_sweep

    found, output, jobs = read_sweep(args.file, args)
    if args.jobs is not None and args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: expected at least 1")
    processes = args.jobs or jobs or cores()
    find_trackers(output.log)
    display.notes(found.notes, kept=not args.dry_run)
    if args.dry_run:
        return _dry_run(found, output, processes, display)
    name = f"sweep-{args.file.stem}"
    args.out = out = prepare_out(output.directory, name, output.resume, SWEEP)

    def done(job: Job, outcome: Outcome, ended: int, total: int) -> None:
        if outcome.error:
            print_error(f"{_named(job, found)}: {outcome.error}")
        display.step("sweep", ended, total, "")

    hooks = Hooks(
        images=display.images,
        round=lambda job, note: _show_round(job, note, found, display),
        done=done,
    )
    result = run_sweep(out, found, processes=processes, log=output.log, hooks=hooks)
    console = display.finish()
    for table in all_tables(result):
        print_plain(console, table)
    display.notes(result["notes"], kept=True)
    display.say(f"results: {out}  (report: {out / 'report.html'})")
    return _code(result, display)


def _named(job: Job, found: Sweep) -> str:
    return f"{found.trials[job.trial].label}, {job.plan.label}"


def _show_round(job: Job, note: Any, found: Sweep, display: Display) -> None:
    done, rounds, score = note
    told = "" if score is None else f"val {100 * score:.1f}"
    display.step(_named(job, found), done, rounds, told)


def _code(result: dict[str, Any], display: Display) -> int:
    failed = result["failed"]
    if not failed:
        return 0
    display.say(f"{len(failed)} failed: see sweep.json; --resume tries them again")
    return 1 if any(each["fault"] for each in failed) else 2


def _dry_run(found: Sweep, output: Output, processes: int, display: Display) -> int:
    """The runs, a line each, and about how long they take; nothing is written."""
    from ..report.wording import human_seconds
    from ..runs.sweep import plan_jobs
    from .dry_run import run_seconds, trainable

    out = output.directory or Path("sweep")
    jobs, bad = plan_jobs(found, out, features=trainable)
    for job in jobs:
        _print(display, _named(job, found))
    for i, outcome in bad.items():
        print_error(f"{found.trials[i].label}: {outcome.error}")
    firsts = list({job.trial: job for job in reversed(jobs)}.values())
    step = max(1, len(firsts) // TIMED)
    seconds = [run_seconds(job.config, job.plan.target) for job in firsts[::step]]
    known = [s for s in seconds if s is not None]
    processes = min(processes, len(jobs))
    about = "unknown: --alg needs CLIP itself"
    if known:
        total = sum(known) / len(known) * len(jobs)
        wall = human_seconds(total / processes)
        about = f"about {human_seconds(total)}, {wall} in {processes} processes"
    _print(display, f"{len(jobs)} runs of {len(found.trials)} trials; {about}")
    display.say("nothing was run; leave --dry-run out to start")
    return 2 if bad else 0


def _print(display: Display, line: str) -> None:
    display.out.print(line, markup=False, highlight=False, soft_wrap=True)
