"""The table of hosts and duties: whole, of tests that exist, and as the page has it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from fedclip_plugin.registry.hosts import HOSTS
from tests.registry.duties import DUTIES, TABLE, No, table

TESTS = Path(__file__).resolve().parents[1]


def test_every_host_answers_to_every_duty() -> None:
    assert {name.lower() for name in TABLE} == set(HOSTS)
    for rows in TABLE.values():
        assert list(rows) == list(DUTIES)


@pytest.mark.parametrize("host", TABLE)
def test_what_a_host_does_is_tested(host: str) -> None:
    for duty, found in TABLE[host].items():
        assert found if not isinstance(found, No) else found.reason, duty
        for name in () if isinstance(found, No) else found:
            file, _, function = name.partition("::")
            tree = ast.walk(ast.parse((TESTS / file).read_text("utf-8")))
            names = {n.name for n in tree if isinstance(n, ast.FunctionDef)}
            assert function in names, name


def test_the_page_has_the_table() -> None:
    page = TESTS.parent / "docs" / "hosts.md"
    assert table() in page.read_text("utf-8")
