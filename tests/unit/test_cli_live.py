"""What moves while a command waits."""

from __future__ import annotations

import io
import sys
from typing import Any, cast

import msgspec
import pytest
from rich.console import Console

from onexflow.cli.live import progress, summary, watch_tasks
from onexflow.core.ids import RunKey
from support import fake_client


def handle(instance: Any) -> Any:
    return fake_client.FakeHandle(RunKey("default", "order-processing", instance))


async def test_watching_draws_the_tasks_until_the_end() -> None:
    text = io.StringIO()
    await watch_tasks(handle(fake_client.DONE), Console(file=text, force_terminal=True, width=100))
    last = text.getvalue().rsplit("order-processing/", 1)[1]
    assert "completed" in last
    assert "validate" in last
    assert "40/40" in last


def test_a_summary_says_how_far_and_what_for() -> None:
    done, stuck = fake_client.RUNS[fake_client.DONE], fake_client.RUNS[fake_client.STUCK]
    assert summary(done) == "completed: 42 of 42 done"
    assert summary(stuck).startswith("running: 1 of 3 done – charge: worker w1 was lost")
    tasks = (*stuck.tasks[:1], msgspec.structs.replace(stuck.tasks[1], state="running", blocked_because=""))
    assert summary(msgspec.structs.replace(stuck, tasks=tasks)) == "running: 1 of 2 done, now charge"


async def test_progress_is_silent_where_nobody_looks(capsys: pytest.CaptureFixture[str]) -> None:
    async with progress(handle(fake_client.DONE)):
        pass
    assert capsys.readouterr() == ("", "")


async def test_progress_is_on_stderr_and_goes_away(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", cast("Any", terminal))
    monkeypatch.setenv("TERM", "xterm")
    with pytest.raises(ZeroDivisionError):
        async with progress(handle(fake_client.STUCK)):
            raise ZeroDivisionError
    assert "waiting" in terminal.getvalue()
