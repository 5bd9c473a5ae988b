"""Suggestions for names, and other libraries' errors in one line."""

from __future__ import annotations

import pytest

from fedclip_plugin.errors import MachineError, did_you_mean, one_line, translate


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("skech", "; did you mean sketch?"),
        ("Art Painting", "; did you mean art_painting?"),
        ("qqq", ""),
    ],
)
def test_a_close_name_is_suggested(name: str, hint: str) -> None:
    assert did_you_mean(name, ("art_painting", "photo", "sketch")) == hint


def test_several_names_are_suggested_where_asked_for() -> None:
    hint = did_you_mean("ViT-B/30", ("ViT-B-32", "ViT-B-16", "RN50"), most=2)
    assert hint == "; did you mean ViT-B-32 or ViT-B-16?"


def test_an_error_is_one_line() -> None:
    assert one_line(ValueError("two\n  lines")) == "two lines"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert len(one_line(ValueError("x " * 500))) <= 200


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("CUDA out of memory. Tried to allocate 20 MiB"), "--device cpu"),
        (MemoryError(), "main memory is full"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "main memory is full",
        ),
        (
            RuntimeError("operator torchvision::nms does not exist"),
            "install both together",
        ),
        (ImportError("cannot import x from module 'torchvision'"), "both together"),
        (RuntimeError("CUDA error: no kernel image is available"), "--device cpu"),
        (OSError("401 Client Error: Unauthorized for url"), "HF_TOKEN"),
        (OSError("429 Client Error: Too Many Requests"), "wait"),
        (ModuleNotFoundError("No module named 'transformers'"), "install it"),
    ],
)
def test_errors_of_the_machine_have_a_remedy(error, words):
    known = translate(error)
    assert isinstance(known, MachineError)
    assert words in str(known)
    assert "download it again" not in str(known)


@pytest.mark.parametrize("error", [ValueError("x"), RuntimeError("size [404, 512]")])
def test_other_errors_are_not_the_machines(error):
    assert translate(error) is None
