"""The parent of several worker processes: with what it starts them, and what becomes of it when one of them does not."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from onexflow.app import worker_processes
from onexflow.app.processes import ChildProcess, StartFailed
from onexflow.config import SlotSettings, WorkerSettings
from onexflow.testing import virtual_time


class FakeChild:
    """Serves after a while, or fails; stops with a code."""

    def __init__(self, name: str = "w-1", *, after: float = 0.1, fails: int = 0, code: int = 0) -> None:
        self.said = ""
        self.pid: int | None = None
        self.exit_code: int | None = None
        self.stopped_within = 0.0
        self.began_at = -1.0
        self._name, self._after, self._fails, self._code = name, after, fails, code

    async def start(self) -> None:
        self.began_at = asyncio.get_running_loop().time()
        self.pid = 7
        await asyncio.sleep(self._after)  # virtual time
        if self._fails:
            self.pid = None
            raise StartFailed(self._name, self._fails, "")
        self.said = f"onex-worker {self._name} serves effect,compute"

    async def stop(self, within: float) -> None:
        if self.pid is not None:
            self.exit_code = self._code
        self.pid = None
        self.stopped_within = within


async def keep(*children: FakeChild, stop_after: float = 60.0) -> tuple[int, list[str]]:
    """(exit code, what was said when all served)."""
    stop, said = asyncio.Event(), list[str]()
    asyncio.get_running_loop().call_later(stop_after, stop.set)
    return await worker_processes.keep(children, stop, 35.0, said.append), said


@virtual_time
async def test_all_serve_and_stop_in_good_order() -> None:
    children = [FakeChild(), FakeChild(), FakeChild()]
    assert await keep(*children) == (0, ["effect,compute"])
    assert {child.stopped_within for child in children} == {35.0}
    assert [child.began_at for child in children] == pytest.approx([0.0, 0.1, 0.1]), (
        "the first alone, then the others together"
    )


@virtual_time
async def test_a_module_that_cannot_be_imported_is_said_by_one_process_with_its_code() -> None:
    first, second = FakeChild(fails=14), FakeChild()
    with pytest.raises(StartFailed) as failed:
        await keep(first, second)
    assert failed.value.exit_code == 14
    assert second.began_at == -1.0


@virtual_time
async def test_when_a_later_one_cannot_start_the_others_are_stopped() -> None:
    children = [FakeChild(), FakeChild(fails=3, after=0.5), FakeChild(after=60.0)]
    with pytest.raises(StartFailed):
        await keep(*children)
    assert [child.pid for child in children] == [None, None, None]
    assert children[0].exit_code == 0


@virtual_time
async def test_told_to_stop_before_all_serve_it_stops_what_there_is() -> None:
    """A child that has not set itself up is ended by the signal: that is no failure."""
    children = [FakeChild(), FakeChild(after=60.0, code=-15)]
    assert await keep(*children, stop_after=1.0) == (0, [])
    assert children[1].pid is None


@virtual_time
async def test_one_that_had_to_be_killed_makes_the_exit_code() -> None:
    assert await keep(FakeChild(), FakeChild(code=-9)) == (1, ["effect,compute"])


@virtual_time
async def test_one_that_is_between_two_lives_is_no_failure_of_the_stop() -> None:
    dead = FakeChild()

    def die() -> None:
        dead.pid, dead.exit_code = None, -9

    asyncio.get_running_loop().call_later(30.0, die)
    assert await keep(FakeChild(), dead) == (0, ["effect,compute"])


def test_each_process_has_a_name_and_ports_of_its_own() -> None:
    settings = WorkerSettings(
        modules=("mine",), processes=3, liveness="[::1]:7412", slots=SlotSettings(compute=2), worker_id="w"
    )
    given = ["mine", "--processes=3", "--liveness", "[::1]:7412"]
    assert worker_processes.arguments_of(settings, given, "w", 2) == [
        *given,
        "--processes=1",
        "--worker-id=w-3",
        "--liveness=[::1]:7414",
    ]


def test_where_any_port_is_free_to_take_it_is_for_each_and_cpus_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    settings = WorkerSettings(modules=("mine",), processes=3)
    assert worker_processes.arguments_of(settings, ["--log-level=debug", "--", "mine"], "w", 0) == [
        "--log-level=debug",
        "--processes=1",
        "--worker-id=w-1",
        "--slots-compute=3",
        "--",
        "mine",
    ]
    assert worker_processes.number(WorkerSettings(processes=0)) == 8


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        (WorkerSettings(modules=("m",), processes=-1), "processes"),
        (WorkerSettings(modules=("m",), processes=257), "processes"),
        (WorkerSettings(modules=("m",), processes=3, liveness="127.0.0.1:65534"), "processes"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(settings: WorkerSettings, setting: str) -> None:
    assert [name for name, _ in settings.problems()] == [setting]


def test_as_many_ports_as_there_are_will_do() -> None:
    assert not WorkerSettings(modules=("m",), processes=2, liveness="127.0.0.1:65534").problems()


CHATTY = """
import sys, time
print("chatty serves on 127.0.0.1:1", flush=True)
for number in range(4000):
    print("x" * 100)
print("said it all", flush=True)
print("done", file=sys.stderr, flush=True)
time.sleep(60)  # until it is stopped
"""


async def test_a_child_that_prints_much_does_not_stand_still(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it printed after its first line was read by nobody: with the pipe full, it waited for ever."""
    (tmp_path / "chatty.py").write_text(CHATTY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    log = tmp_path / "chatty.log"
    child = ChildProcess("chatty", ["chatty"], log=log, restart=False, report=print, on_change=lambda: None)
    await child.start()

    def printed() -> str:
        """On stdout. The child writes its stderr into the log by itself, so in the middle of a line if it so happens."""
        return log.read_text().replace("done\n", "", 1)

    async with asyncio.timeout(20):
        while "done" not in log.read_text() or "said it all" not in printed():
            await asyncio.sleep(0.02)
    await child.stop(5.0)
    assert child.served_at == "127.0.0.1:1"
    assert printed().count("x" * 100) == 4000
