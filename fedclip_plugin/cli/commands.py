"""What the commands do; heavy imports wait until a command runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from ..settings.sources import read_config, read_run
from .console import Display
from .welcome import after_run

if TYPE_CHECKING:
    from ..config.schema import RunConfig
    from ..features.encode import EncodeStats
    from ..features.feature_set import FeatureSet
    from ..registry import Host
    from .doctor import Check


def run(args: argparse.Namespace, display: Display) -> int:
    """``fedclip run``."""
    from ..algorithms import get_algorithm
    from ..features.obtain import open_data
    from ..ops.kernels import resolve_device
    from ..report.trackers import find_trackers
    from ..runs.directory import prepare_out
    from ..runs.experiment import run_in
    from ..server.privacy import accountant

    config, (args.out, args.resume, log) = read_run(args)
    log = (*log, *(["tensorboard"] if args.tensorboard else []))
    get_algorithm(config.algorithm)  # what is unknown fails before any work
    resolve_device(config.model.device)
    if config.private:
        accountant()
    find_trackers(log)
    if args.dry_run:
        return _dry_run(config, display)
    name = f"{config.algorithm}-{config.data.dataset}"
    data = open_data(config)
    args.out = prepare_out(args.out, name, args.resume)
    summary = run_in(
        args.out,
        config,
        args.resume,
        data=data,
        on_features=lambda found, stats: _say_features(display, config, found, stats),
        on_round=display.round,
        progress=display.images,
        log=log,
    )
    _print_results(display, config, summary, args.out)
    return 0


def _dry_run(config: RunConfig, display: Display) -> int:
    from ..storage.shapes import cleaned
    from .doctor import diagnose
    from .dry_run import estimate

    code = _print_checks([c for c in diagnose(config) if c.status != "ok"], display)
    if code == 0:
        for cost in estimate(config):
            indented = (f"{'':11}{line}" for line in cost.lines)
            for line in cleaned([f"{cost.name:>9}: {cost.detail}", *indented]):
                display.out.print(line, markup=False, highlight=False, soft_wrap=True)
        display.say("nothing was run; leave --dry-run out to start")
    return code


def _say_features(
    display: Display, config: RunConfig, found: FeatureSet, stats: EncodeStats
) -> None:
    from ..runs.setup import all_notes

    display.say(_features_line(config, stats))
    display.notes(all_notes(found, config), kept=True)


def _features_line(config: RunConfig, stats: EncodeStats) -> str:
    if config.data.features is not None:
        return f"features: {stats.images} images from {config.data.features}"
    rate = f" ({stats.encoded / stats.seconds:.0f} images/s)" if stats.encoded else ""
    cached = stats.images - stats.encoded
    return (
        f"features: {stats.images} images, {stats.encoded} encoded now in "
        f"{stats.precision}, {cached} from the cache; {stats.seconds:.1f} s{rate}"
    )


def _print_results(
    display: Display, config: RunConfig, summary: dict[str, Any], out: Path
) -> None:
    from ..algorithms import get_algorithm
    from ..report.console import print_table

    print_table(display.finish(), summary.get("runs", [summary]), display.told)
    display.say(f"results: {out}  (report: {out / 'report.html'})")
    trains_clip = get_algorithm(config.algorithm).needs_clip
    classifies = not trains_clip and config.data.features is None
    display.say(after_run(out, config.algorithm, classifies))


def features(args: argparse.Namespace, display: Display) -> int:
    """``fedclip features``."""
    from ..features.feature_set import refuse_images, save_features
    from ..features.obtain import obtain_features, obtain_merged
    from ..features.shards import MOST

    config = read_config(args)
    display.notes(config.notes)  # the directory keeps those of the data alone
    if args.shard is not None:
        return _encode_shard(config, args, display)
    if args.to is None:
        raise ConfigError("--to DIR is missing: where the features go")
    refuse_images(args.to)
    if args.merge is None:
        feature_set, stats = obtain_features(config, display.images)
    elif 1 <= args.merge <= MOST:
        feature_set, stats = obtain_merged(config, args.merge, display.images)
    else:
        raise ConfigError(f"--merge {args.merge}: expected 1 to {MOST} shards")
    save_features(feature_set, args.to)
    _say_features(display, config, feature_set, stats)
    display.say(f"written: {args.to}")
    return 0


def _encode_shard(config: RunConfig, args: argparse.Namespace, display: Display) -> int:
    from ..features.obtain import obtain_shard
    from ..features.shards import Shard

    shard = Shard.parse(args.shard)
    if args.to is not None:
        raise ConfigError(
            f"--shard {shard} goes into the cache: leave out --to, and give it to "
            f"`fedclip features --merge {shard.count}`"
        )
    stats = obtain_shard(config, shard, display.images)
    display.say(f"shard {shard}: {_features_line(config, stats)[len('features: ') :]}")
    return 0


def data(args: argparse.Namespace, display: Display) -> int:
    """``fedclip data``."""
    from ..data.hub import materialise

    done = materialise(args.name, args.to, args.source, display.images)
    display.notes(done.notes)
    display.say(f"written: {args.to}")
    return 0


def report(args: argparse.Namespace, display: Display) -> int:
    """``fedclip report``."""
    from ..report.console import print_table
    from ..report.records import load_runs
    from ..report.text import merge
    from ..report.write import write_html
    from ..storage.files import write_bytes

    if args.to is not None and args.format == "table":
        raise ConfigError("--to FILE needs --format markdown, latex, csv or html")
    if args.format == "html":
        pages = [args.runs] if args.to else [[run] for run in args.runs]
        for runs in pages:
            display.say(f"written: {write_html(*runs, to=args.to)}")
        return 0
    records = load_runs(*args.runs)
    if args.format == "table":
        print_table(display.out, [r.summary for r in records])
    elif args.to is None:
        print(merge(records, args.format), end="")
    else:
        write_bytes(args.to, merge(records, args.format).encode(), durable=False)
        display.say(f"written: {args.to}")
    return 0


def export(args: argparse.Namespace, display: Display) -> int:
    """``fedclip export``."""
    config = read_config(args, args.run_directory / "config.toml")
    formats = tuple(args.format or ("torch", "onnx"))
    written: list[Path] = []
    if "hub" in formats:
        from ..export.hub import export_hub
        from ..report.records import load_run

        record = load_run(args.run_directory)
        run, to = args.run_directory, args.to
        written, notes = export_hub(run, record, config, to, args.license, args.state)
        display.notes(notes)
    elif args.license != "unknown":
        raise ConfigError("--license is for the model card of --format hub")
    if modules := tuple(name for name in formats if name != "hub"):
        from ..export.run import export_run

        written += export_run(args.run_directory, config, args.to, modules, args.state)
    for path in written:
        display.say(f"written: {path}")
    return 0


def bench(args: argparse.Namespace, display: Display) -> int:
    """``fedclip bench``."""
    import torch

    from ..bench import suite, tables
    from ..storage.files import write_json

    threads = torch.get_num_threads() if args.threads is None else args.threads
    for flag, value in (("--threads", threads), ("--rounds", args.rounds)):
        if value < 1:
            raise ConfigError(f"{flag} {value}: expected at least 1")
    if args.json and not args.json.parent.is_dir():  # not after minutes of work
        raise ConfigError(f"--json {args.json}: its folder does not exist; make it")
    report = suite.run(args.quick, args.compile, args.rounds, threads, display.step)
    tables.print_report(display.finish(), report)
    if args.json:
        write_json(args.json, report)
        display.say(f"written: {args.json}")
    return 0


def doctor(args: argparse.Namespace, display: Display) -> int:
    """``fedclip doctor``; exit code 2 when a check fails."""
    from .doctor import diagnose
    from .doctor.run_directory import check_run

    run: Path | None = args.run_directory
    checks = check_run(run) if run else []
    if any(check.name in ("run", "run config") for check in checks if check.failed):
        return _print_checks(checks, display)  # what it needs cannot be known
    config = read_config(args, run and run / "config.toml")
    return _print_checks([*checks, *diagnose(config)], display)


def _print_checks(checks: Sequence[Check], display: Display) -> int:
    colour = {"ok": "green", "warn": "yellow", "fail": "red"}
    for check in checks:
        display.out.print(
            f"[{colour[check.status]}]{check.status:>4}[/] [bold]{check.name}[/]: ",
            end="",
        )
        display.out.print(check.detail, markup=False, highlight=False, soft_wrap=True)
        if check.remedy and check.status != "ok":
            display.out.print(f"     -> {check.remedy}", markup=False, soft_wrap=True)
    return 2 if any(check.failed for check in checks) else 0


def algorithms(args: argparse.Namespace, display: Display) -> int:
    """``fedclip algorithms``."""
    from ..algorithms import ELSEWHERE
    from .algorithms import list_algorithms, task_of

    task = task_of(args.classes, args.dim, args.model, args.model_config)
    for name, facts in list_algorithms(task):
        display.out.print(f"[bold]{name}[/]", highlight=False)
        for label, text in facts.items():
            line = f"  {label:<12} {text}"
            display.out.print(line, markup=False, highlight=False, soft_wrap=True)
    display.out.print("[bold]options, not --alg of their own[/]", highlight=False)
    for name, use in ELSEWHERE.items():
        line = f"  {name:<12} {use}"
        display.out.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def hosts(args: argparse.Namespace, display: Display) -> int:
    """``fedclip hosts``."""
    from ..registry import HOSTS

    for host in HOSTS.values():
        display.out.print(f"[bold]{host.title}[/] {_installed(host)}", highlight=False)
        for label, text in (
            ("supported", host.supported),
            ("install", host.install),
            ("select", host.select),
        ):
            line = f"  {label:<10} {text}"
            display.out.print(line, markup=False, highlight=False, soft_wrap=True)
    return 0


def _installed(host: Host) -> str:
    if host.package is None:
        return "(a repository of yours)"
    version = host.version()
    return f"{version} is installed" if version else "is not installed here"


def register(args: argparse.Namespace, display: Display) -> int:
    """``fedclip register``."""
    from ..registry import get_host, register

    if get_host(args.host).name == "fedml" and args.path is None:
        raise ConfigError(
            "FedML is registered for one process: use `fedclip fedml --cf FILE`, or "
            'call fedclip_plugin.registry.register("fedml") in your script'
        )
    display.say(register(args.host, args.path, undo=args.undo))
    return 0


def fedml(args: argparse.Namespace, display: Display) -> int:
    """``fedclip fedml``."""
    from ..registry import fedml_host

    fedml_host.run(
        args.cf, args.rank, args.role, args.offline, args.algorithm, args.run_id,
        resume=args.resume,
    )  # fmt: skip
    return 0
