"""`register personalizedfl`: whole lines added, every byte restored."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from fedclip_plugin import registry
from fedclip_plugin.errors import ConfigError
from fedclip_plugin.registry.personalizedfl import (
    repository as personalizedfl_repository,
)
from fedclip_plugin.storage.files import write_bytes
from tests.registry.personalizedfl.world import (
    HOME,
    REPOSITORIES,
    contents,
    copy_repository,
    needs_real,
)


@pytest.fixture(params=REPOSITORIES)
def repository(request, tmp_path) -> Path:
    return copy_repository(request.param, tmp_path)


def lf(text: bytes) -> bytes:
    return text


def crlf(text: bytes) -> bytes:
    return text.replace(b"\n", b"\r\n")


def no_final_newline(text: bytes) -> bytes:
    return text.rstrip()


@pytest.mark.parametrize("spelling", [lf, crlf, no_final_newline])
def test_undo_restores_every_byte(repository, spelling):
    algs = repository / "alg" / "algs.py"
    algs.write_bytes(spelling(algs.read_bytes()))
    algs.chmod(0o755)
    before = contents(repository)
    assert "added" in registry.register("personalizedfl", repository)
    registered = contents(repository)
    assert set(registered) - set(before) == {"alg/fedclip.py"}
    assert (b"\r\n" in registered["alg/algs.py"]) == (spelling is crlf)
    assert "already" in registry.register("personalizedfl", repository)
    assert contents(repository) == registered
    assert "removed" in registry.register("personalizedfl", repository, undo=True)
    assert contents(repository) == before
    assert algs.stat().st_mode & 0o777 == 0o755
    assert "nothing to do" in registry.register("personalizedfl", repository, undo=True)


@needs_real
def test_git_sees_nothing_after_undo(tmp_path):
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", HOME, clone], check=True)
    status = ["git", "-C", str(clone), "status", "--porcelain"]
    registry.register("personalizedfl", clone)
    changed = subprocess.run(status, check=True, capture_output=True).stdout
    assert changed.decode().split() == ["M", "alg/algs.py", "??", "alg/fedclip.py"]
    registry.register("personalizedfl", clone, undo=True)
    assert subprocess.run(status, check=True, capture_output=True).stdout == b""


def test_undo_keeps_what_others_added_since(repository):
    algs = repository / "alg" / "algs.py"
    before = algs.read_bytes()
    registry.register("personalizedfl", repository)
    algs.write_bytes(algs.read_bytes() + b"# mine\n")
    registry.register("personalizedfl", repository, undo=True)
    assert algs.read_bytes() == before + b"# mine\n"


def test_half_a_registration_is_made_whole_or_taken_back(repository):
    before = contents(repository)
    registry.register("personalizedfl", repository)
    whole = contents(repository)
    algs, added = repository / "alg" / "algs.py", repository / "alg" / "fedclip.py"
    added.unlink()
    registry.register("personalizedfl", repository)
    assert contents(repository) == whole
    algs.write_bytes(before["alg/algs.py"])  # as `git checkout alg/algs.py` does
    registry.register("personalizedfl", repository, undo=True)
    assert contents(repository) == before


def edit_our_line(repository: Path) -> None:
    algs = repository / "alg" / "algs.py"
    algs.write_text(algs.read_text().replace("import fedclip ", "import fedclip as f "))


def drop_our_entry(repository: Path) -> None:
    algs = repository / "alg" / "algs.py"
    algs.write_text(algs.read_text().replace("    'fedclip',", "    # 'x',"))


def edit_our_file(repository: Path) -> None:
    added = repository / "alg" / "fedclip.py"
    added.write_text(added.read_text() + "print('mine')\n")


@pytest.mark.parametrize("undo", [False, True])
@pytest.mark.parametrize("edit", [edit_our_line, drop_our_entry, edit_our_file])
def test_what_others_edited_is_not_touched(repository, edit, undo):
    registry.register("personalizedfl", repository)
    edit(repository)
    before = contents(repository)
    with pytest.raises(ConfigError, match="edited") as error:
        registry.register("personalizedfl", repository, undo=undo)
    assert "\n" not in str(error.value)
    assert contents(repository) == before


def test_another_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"no main\.py"):
        registry.register("personalizedfl", tmp_path)
    with pytest.raises(ConfigError, match="not a PersonalizedFL"):
        registry.register("personalizedfl", tmp_path / "absent")


@pytest.mark.parametrize("text", ["x = 1\n", "from alg.a import a\nALGORITHMS = []\n"])
def test_another_layout_is_refused_untouched(tmp_path, text):
    (tmp_path / "alg").mkdir()
    (tmp_path / "main.py").touch()
    (tmp_path / "alg" / "algs.py").write_text(text)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="has no line"):
        registry.register("personalizedfl", tmp_path)
    assert contents(tmp_path) == before


def test_a_disk_that_refuses_leaves_no_half(repository, monkeypatch):
    """Root may write everywhere, so that only a mock can refuse the second file."""
    write, before = write_bytes, contents(repository)

    def refuse(path: Path, data: bytes) -> None:
        if path.name == "algs.py":
            raise PermissionError(13, "Permission denied")
        write(path, data)

    monkeypatch.setattr(personalizedfl_repository, "write_bytes", refuse)
    with pytest.raises(
        ConfigError, match=r"algs\.py: Permission denied; .*changes noth"
    ):
        registry.register("personalizedfl", repository)
    assert contents(repository) == before
