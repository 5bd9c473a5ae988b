"""Add FedCLIP to a PersonalizedFL repository, and take it away again.

The repository's README says how: a file in ``alg/`` and a reference in ``alg/algs.py``.
Only whole lines are added, so that taking them away restores every byte.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...config.paths import as_path
from ...errors import ConfigError, RunError
from ...storage.files import write_bytes

MODULE = "fedclip_plugin.registry.personalizedfl_host"
FILE = f"""\
# Added by `fedclip register personalizedfl`; `--undo` takes it away again.
from {MODULE} import PersonalizedFedClip as fedclip
from {MODULE} import prepare

prepare()
""".encode()
IMPORT = b"from alg.fedclip import fedclip  # added by fedclip-plugin"
ENTRY = b"    'fedclip',  # added by fedclip-plugin"
_IMPORTS = re.compile(rb"^from alg\.\w+ import [^\r\n]*(\r?\n)", re.MULTILINE)
_LIST = re.compile(rb"^ALGORITHMS\s*=\s*\[[ \t]*(\r?\n)", re.MULTILINE)


def register(path: Path, undo: bool = False) -> str:
    """Make ``main.py --alg fedclip`` work in the repository at ``path``; idempotent.

    Returns a line that tells what was done.  Raises ConfigError, and touches nothing,
    for a folder that is not PersonalizedFL, lines or a file that others changed, and
    where the right to write is missing.
    """
    algs = find_repository(path) / "alg" / "algs.py"
    added = algs.with_name("fedclip.py")
    before = _read(algs)
    if added.exists() and _read(added) != FILE:
        raise ConfigError(
            f"{added} is not the file that fedclip adds, or was edited: move it away "
            "first"
        )
    after = _without(before, algs) if undo else _with(before, algs)
    if (after == before) and added.exists() != undo:
        state = "is not" if undo else "is already"
        return f"fedclip {state} registered in {path}: nothing to do"
    if undo:
        _write(algs, before, after)
        _remove(added)
        return f"fedclip removed from {path}: alg/algs.py is as it was"
    _add(added, algs, before, after)
    return (
        f"fedclip added to {path} (alg/fedclip.py, two lines in alg/algs.py): run "
        f"python main.py --alg fedclip; fedclip register personalizedfl {path} --undo "
        "takes it away"
    )


def find_repository(path: Path) -> Path:
    """The folder with ``main.py`` and ``alg/algs.py``; raises ConfigError."""
    folder = as_path(path)
    for name in ("main.py", "alg/algs.py"):
        if not (folder / name).is_file():
            raise ConfigError(
                f"{path} is not a PersonalizedFL repository, it has no {name}: clone "
                "https://github.com/microsoft/PersonalizedFL and name its folder"
            )
    return folder.resolve()


def _with(text: bytes, path: Path) -> bytes:
    """``text`` with our two lines, in the newlines that it has."""
    if _count(text, path):
        return text
    for pattern, line in ((_IMPORTS, IMPORT), (_LIST, ENTRY)):
        matches = list(pattern.finditer(text))
        if not matches:
            wanted = "from alg.X import X" if line is IMPORT else "ALGORITHMS = ["
            raise ConfigError(
                f"{path} has no line `{wanted}`: not the PersonalizedFL that fedclip "
                f"knows; python -m {MODULE} MAIN.PY runs it without a change"
            )
        place = matches[-1]
        text = text[: place.end()] + line + place[1] + text[place.end() :]
    return text


def _without(text: bytes, path: Path) -> bytes:
    """``text`` without our two lines."""
    if not _count(text, path):
        return text
    lines = text.splitlines(keepends=True)
    ours = (IMPORT, ENTRY)
    return b"".join(line for line in lines if line.rstrip(b"\r\n") not in ours)


def _count(text: bytes, path: Path) -> bool:
    """Whether both lines are there; ConfigError for only one, or an edited one."""
    lines = [line.rstrip(b"\r") for line in text.split(b"\n")]
    counts = [lines.count(line) for line in (IMPORT, ENTRY)]
    mentions = sum(re.search(rb"\bfedclip\b", line) is not None for line in lines)
    if counts == [0, 0] and not mentions:
        return False
    if counts == [1, 1] and mentions == 2:
        return True
    raise ConfigError(
        f"{path}: the lines of fedclip were edited; remove every line that mentions "
        "fedclip by hand, then register again"
    )


def _add(added: Path, algs: Path, before: bytes, after: bytes) -> None:
    existed = added.exists()
    if not existed:
        _write(added, None, FILE)
    try:
        _write(algs, before, after)
    except ConfigError:
        if not existed:
            added.unlink()
        raise


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def _write(path: Path, before: bytes | None, after: bytes) -> None:
    """Replace ``path`` in one step; its permissions stay, which git knows too."""
    if before == after:
        return
    try:
        mode = path.stat().st_mode if before is not None else None
        write_bytes(path, after)
        if mode is not None:
            os.chmod(path, mode)
    except (OSError, RunError) as error:
        cause = error.__cause__ if isinstance(error, RunError) else error
        raise _refused(path, cause) from error


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise _refused(path, error) from error


def _refused(path: Path, error: BaseException | None) -> ConfigError:
    return ConfigError(
        f"cannot write {path}: {getattr(error, 'strerror', error)}; get the right to "
        f"write there, or use python -m {MODULE} MAIN.PY, which changes nothing"
    )
