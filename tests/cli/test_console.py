"""Progress as it is shown: lines where there is no terminal, bars where there is."""

from __future__ import annotations

import io
import itertools

from rich.console import Console

from fedclip_plugin.cli.console import Display


def terminal() -> tuple[Display, io.StringIO]:
    display, screen = Display(), io.StringIO()
    display.err = Console(file=screen, force_terminal=True, width=100)
    return display, screen


def test_lines_are_thinned_out_but_the_last_is_always_said(capsys):
    with Display() as display:
        for done in range(1, 101):
            display.images("encode", done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # the first at once, the last because it is the last
    assert lines[-1].startswith("encode: 100/100")


def test_rate_does_not_count_what_came_before_the_clock(capsys, monkeypatch):
    clock = itertools.chain([10.0, 10.0], itertools.repeat(12.0))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    with Display() as display:
        display.images("encode", 64, 164)
        display.images("encode", 164, 164)
    assert "50 images/s" in capsys.readouterr().err


def test_finished_bars_become_lines_and_results_come_after_them():
    display, screen = terminal()
    with display:
        display.images("encode", 5, 10)
        display.images("encode", 10, 10)
        assert display.finish() is display.out
        before = screen.getvalue()
        display.images("encode", 10, 10)
    assert "encode: 10/10" in before
    assert screen.getvalue().rstrip().endswith("encode: 10/10")


def test_quiet_shows_nothing(capsys):
    with Display(quiet=True) as display:
        display.images("encode", 10, 10)
        display.say("news")
    assert capsys.readouterr().err == ""
