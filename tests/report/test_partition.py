"""A partition on a terminal: every image counts, and the lines stay within it."""

from __future__ import annotations

import numpy as np

from fedclip_plugin.report.partition import draw_partition


def test_few_classes_are_numbers_under_their_names() -> None:
    counts = np.array([[1200, 0], [3, 40]])
    head, first, second = draw_partition(
        ["a", "client-b"], ["dog", "armadillos"], counts
    )
    assert head.split() == ["dog", "armadill…"]
    assert first.split() == ["a", "1,200", "."]
    assert second.split() == ["client-b", "3", "40"]
    assert len({len(line) for line in (head, first, second)}) == 1


def test_more_classes_are_marks_and_one_image_is_seen() -> None:
    counts = np.zeros((2, 24), dtype=np.int64)
    counts[0, 0], counts[0, 23], counts[1, 5] = 80, 1, 40
    names = [f"c{i}" for i in range(24)]
    first, second, about = draw_partition(["a", "b"], names, counts)
    assert first == f"a  █{' ' * 22}▁  81"
    assert second == f"b  {' ' * 5}▄{' ' * 18}  40"
    assert about == "a class a mark, c0 to c23; the highest: 80"


def test_many_classes_and_clients_fit_a_screen() -> None:
    counts = np.ones((50, 345), dtype=np.int64)
    lines = draw_partition([f"client-{i:03d}" for i in range(50)], ["c"] * 345, counts)
    assert len(lines) == 22
    assert max(map(len, lines)) <= 79
    assert lines[-2].startswith("6 classes a mark")
    assert lines[-1] == "and 30 more clients"
