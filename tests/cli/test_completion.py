"""What is completed, and what is said to those who say nothing."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from fedclip_plugin.algorithms import ALGORITHMS
from fedclip_plugin.cli import main
from fedclip_plugin.cli.parser import build_parser
from fedclip_plugin.cli.welcome import after_run

COMPLETE = """
source "$1"; shift
COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))
_shtab_fedclip fedclip "${@: -1}" "${@: -2:1}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    """The script for bash, in a file."""
    from fedclip_plugin.cli.completion import completion

    path = tmp_path_factory.mktemp("completion") / "fedclip.bash"
    path.write_text(completion(build_parser(), "bash"))
    return path


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["r"], ["run", "report", "register"]),
        (["run", "--gda-shr"], ["--gda-shrinkage"]),
        (["run", "--compress", "i"], ["int8", "int4"]),
        (["run", "--alg", ""], sorted(ALGORITHMS.names())),
        (["report", "--format", "l"], ["latex"]),
    ],
)
def test_bash_completes(script, words, expected):
    command = ["bash", "-c", COMPLETE, "bash", str(script), "fedclip", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.split() == expected


def test_the_script_starts_no_python(script):
    code = re.sub(r"^\s*#.*$", "", script.read_text(), flags=re.M)
    assert not re.search(r"\bpython|\bfedclip (run|algorithms)\b", code)
    assert "$(fedclip" not in code


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_command_prints_a_script(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "fedtpg-length" in capsys.readouterr().out


def test_fedclip_alone_tells_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 2
    told = capsys.readouterr().err
    assert "fedclip run " in told
    assert "newest run" not in told
    (tmp_path / "runs" / "first one").mkdir(parents=True)
    (tmp_path / "runs" / "first one" / "summary.json").write_text("{}")
    assert main([]) == 2
    assert "fedclip predict 'runs/first one' IMAGE" in capsys.readouterr().err


def test_what_is_offered_after_a_run_exists():
    offered = [line.split() for line in after_run(Path("r"), "gda", True).splitlines()]
    commands = [words[1] for words in offered if words[0] == "fedclip"]
    assert commands == ["run", "report", "predict", "export"]
    text = build_parser().format_help()
    assert all(f"    {command} " in text for command in commands)


def test_no_image_is_offered_to_a_run_without_its_clip():
    assert "predict" not in after_run(Path("r"), "fedavg", False)
