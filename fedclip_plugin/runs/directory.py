"""Output directories: a new one a run, none written by two, no earlier run touched."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ..errors import RunError
from ..storage.files import cannot_write, file_names, write_bytes
from ..storage.locks import BaseFileLock, Timeout, take

_LOCK = ".lock"
RUN, SWEEP = "config.toml", "sweep.toml"  # what tells one from other folders


def hold(out: Path, seconds: float = 0.0) -> BaseFileLock:
    """The lock of the run that writes to ``out``, taken; freed if its process dies.

    Waits for at most ``seconds``.  Raises RunError where another run has it.
    """
    try:
        return take(out / _LOCK, seconds)
    except Timeout as error:
        raise RunError(
            f"another run is writing to {out}: wait until it ends, or choose another "
            "directory (--out)"
        ) from error
    except OSError as error:
        raise cannot_write(out, error) from error


def prepare_out(out: Path | None, name: str, resume: bool, mark: str = RUN) -> Path:
    """The output directory, made and proved writable; to be held (:func:`hold`) next.

    Without ``out``: ``runs/<name>``, numbered so that no earlier run is touched; with
    ``resume`` the newest of them.  An explicit ``out`` that holds a run is moved aside
    to ``<out>.previous-<n>``: nothing is lost.  ``mark`` is the file by which what is
    there is known, of a run or of a sweep.  Raises RunError for a directory that
    holds something else, that another run would lose, or where nothing can be written.
    """
    if out is None:
        out = _default_out(Path("runs") / file_names([name])[name], resume, mark)
    elif not resume:
        _move_aside(out)
    if resume and not (out / mark).is_file():
        kind = "run" if mark == RUN else "sweep"
        raise RunError(f"--resume: {out} holds no {kind}; start one without --resume")
    probe = out / ".writable"
    write_bytes(probe, b"", durable=False)
    probe.unlink()
    return out


def check_layout(out: Path, several: bool) -> None:
    """Refuse to resume one run where several are, or several where one is.

    Their files would be mixed.  Raises RunError.
    """
    one = (out / "metrics.jsonl").is_file()
    if one == several and (one or any(out.glob("*/seed-*"))):
        has, wanted = ("one run", "several") if one else ("several runs", "one")
        raise RunError(
            f"--resume: {out} holds {has} (of target and seed), and {wanted} would go "
            "on: leave --target and --seed as they were, or choose another --out"
        )


def drop_if_empty(out: Path) -> None:
    """Remove a directory where nothing was written; for the one who holds it."""
    with contextlib.suppress(OSError):  # it is not empty: a run is in it
        if _is_bare(out):
            for path in out.iterdir():
                path.unlink()
        out.rmdir()


def _default_out(base: Path, resume: bool, mark: str) -> Path:
    """The next number, or with ``resume`` the last: clocks go back, numbers do not."""
    taken = {1: base} if base.exists() else {}
    for path in base.parent.glob(f"{base.name}-*"):
        word = path.name.removeprefix(f"{base.name}-")
        if word.isdecimal():
            taken[int(word)] = path
    if resume:
        runs = {n: p for n, p in taken.items() if (p / mark).is_file()}
        return runs[max(runs)] if runs else base
    number = max(taken, default=0) + 1
    while not _claim(path := _numbered(base, number)):
        number += 1
    return path


def _numbered(base: Path, number: int) -> Path:
    return base if number == 1 else base.with_name(f"{base.name}-{number}")


def _claim(path: Path) -> bool:
    """Make a directory that nobody else has: two runs at once get one each."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise cannot_write(path, error) from error
    return True


def _is_bare(out: Path) -> bool:
    """Whether nothing but a lock lies there."""
    return {path.name for path in out.iterdir()} <= {_LOCK, f"{_LOCK}.owner"}


def _move_aside(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise RunError(f"--out {out} is a file; choose a directory")
    if _is_bare(out):
        return
    if not any((out / mark).is_file() for mark in (RUN, SWEEP)):
        raise RunError(
            f"--out {out} holds files but no fedclip run; choose another directory"
        )
    hold(out).release()
    number = 1
    while (aside := out.with_name(f"{out.name}.previous-{number}")).exists():
        number += 1
    try:
        if not Path.cwd().is_relative_to(out):
            out.rename(aside)
            return
        aside.mkdir()  # of the working directory only what is in it moves
        for path in out.iterdir():
            path.rename(aside / path.name)
    except OSError as error:
        raise RunError(
            f"--out {out}: the run there cannot be moved aside ({error.strerror}); "
            "choose another directory, or go on with --resume"
        ) from error
