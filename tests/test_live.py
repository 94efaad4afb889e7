"""What is seen while a run goes on, on a terminal and without one."""

import io

import pytest
from rich.console import Console

from fmray.live import LiveRun

ROWS = [[f"{number:03d}", "runs" if number < 2 else "ended", f"lr={number / 1000:.3g}"] for number in range(20)]


def shown(*, terminal: bool, height: int = 12) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=80, height=height, color_system=None)
    with LiveRun(console) as live:
        live.on_step("tuned", 1)
        live.table("tuned", ("trial", "", "hyperparameters"), ROWS)
        live.progress("tuned", "trials", 18, 20, {"best_validation_f1": 0.9})
    return stream.getvalue()


def test_a_table_stands_below_the_live_line_as_far_as_there_is_room() -> None:
    text = shown(terminal=True)
    last = text[text.rindex("trials · 18/20") :]
    assert "hyperparameters" in last
    assert "000    runs   lr=0" in last
    assert "005    ended  lr=0.005" in last
    assert "006 " not in text, "twelve lines have room for six rows beside what stands around them"
    assert "and 14 more" in last
    assert "and 14 more" not in shown(terminal=True, height=40)
    assert "019    ended  lr=0.019" in shown(terminal=True, height=40)


def test_a_table_goes_with_its_step() -> None:
    stream = io.StringIO()
    with LiveRun(Console(file=stream, force_terminal=True, width=80, height=12, color_system=None)) as live:
        live.on_step("tuned", 1)
        live.table("tuned", ("trial", "", "hyperparameters"), ROWS)
        live.on_step("tuned_eval", 1)
    text = stream.getvalue()
    assert "hyperparameters" not in text[text.rindex("tuned_eval") :]


def test_without_a_terminal_there_is_no_table() -> None:
    assert "hyperparameters" not in shown(terminal=False)


def etas(monkeypatch: pytest.MonkeyPatch, *told: tuple[float, float, float]) -> list[str]:
    """What is said of the time left, for each (second, done, total)."""
    clock = [0.0]
    monkeypatch.setattr("fmray.live.time.monotonic", lambda: clock[0])
    said = []
    live = LiveRun(Console(file=io.StringIO(), width=200))
    live.on_step("tuned", 1)
    for second, done, total in told:
        stream = io.StringIO()
        live.console = Console(file=stream, width=200)
        clock[0] = second
        live.progress("tuned", "", done, total, {})
        said.append(stream.getvalue().partition("ETA ")[2].strip())
    return said


def test_the_time_left_follows_the_pace_of_the_count_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    # Half a minute of start-up does not count, and a second fold begins its own count.
    assert etas(monkeypatch, (30, 1, 11), (50, 2, 11), (210, 10, 11), (230, 11, 11), (290, 1, 11), (300, 2, 11)) == ["", "3 min 00 s", "20 s", "", "", "1 min 30 s"]
    # A run that goes on behind step 500 has taken none of them in this run.
    assert etas(monkeypatch, (30, 500, 600), (40, 510, 600)) == ["", "1 min 30 s"]
