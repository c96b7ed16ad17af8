"""Where handlers run: threads for sync effects and reducers, child processes for sync computes. Real ones."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from onexflow.core.errors import InvalidConfiguration
from onexflow.ports.worker_link import Cancel, Progress
from onexflow.worker import Context, Fatal, Worker
from onexflow.worker.runtime import WorkerRuntime
from support import worker_handlers_module as handlers
from support.worker_kit import Assigner, FakeLink, ManualClock, connect, runtime, serving, settle


def value(payload: Any) -> Any:
    return msgspec.json.decode(payload.data)


# ---- threads


async def test_sync_effects_run_on_threads_side_by_side() -> None:
    worker, assign, barrier = Worker("w"), Assigner(), threading.Barrier(3, timeout=5)

    @worker.effect("meet")
    def meet(contract: Any) -> str:
        barrier.wait()
        return threading.current_thread().name

    async with serving(worker) as running:
        link = connect(running)
        batch = [assign("effect", "meet") for _ in range(3)]
        link.assign(*batch)
        names = {value((await link.result(attempt)).result) for attempt in batch}
        assert len(names) == 3
        assert all(name.startswith("onexflow-effect-") for name in names)


async def test_a_thread_sees_its_cancel_and_reports_progress() -> None:
    worker, assign, seen = Worker("w"), Assigner(), threading.Event()

    @worker.effect("obey")
    def obey(contract: Any, ctx: Context) -> None:
        ctx.progress({"step": 1})
        seen.set()
        assert ctx.cancelled.wait(5)
        ctx.raise_if_cancelled()

    async with serving(worker) as running:
        link = connect(running)
        attempt = assign("effect", "obey")
        link.assign(attempt)
        await link.until(lambda: bool(link.of(Progress)))
        assert value(link.of(Progress)[0].details) == {"step": 1}
        link.say(Cancel([attempt.token], "enough"))
        assert (await link.result(attempt)).status == "stopped"


async def test_a_thread_that_does_not_obey_keeps_its_slot_and_is_counted() -> None:
    worker, assign, gate = Worker("w"), Assigner(), threading.Event()

    @worker.effect("deaf")
    def deaf(contract: Any) -> str:
        assert gate.wait(5)
        return "too late"

    async with serving(worker, effect=1) as running:
        link = connect(running)
        first = assign("effect", "deaf")
        link.assign(first)
        await settle()
        link.say(Cancel([first.token]))
        await settle()
        assert running.statistics().stopping == 1
        assert running.statistics().running == {"effect": 1}
        assert link.credits == {"effect": 1}  # the slot is not given out again
        gate.set()
        assert value((await link.result(first)).result) == "too late"


async def test_closing_does_not_wait_for_a_deaf_thread_nor_say_goodbye() -> None:
    from onexflow.ports.worker_link import Goodbye

    worker, assign, gate, clock = Worker("w"), Assigner(), threading.Event(), ManualClock()

    @worker.effect("deaf")
    def deaf(contract: Any) -> None:
        gate.wait(5)

    running = runtime(worker, clock=clock, effect=1)
    await running.start()
    link = connect(running)
    link.assign(assign("effect", "deaf"))
    await settle()
    closing = asyncio.ensure_future(running.close())
    await settle()
    await clock.advance(3)
    async with asyncio.timeout(5):
        await closing
    gate.set()
    assert not link.of(Goodbye)
    assert not link.results
    assert link.closed


async def test_what_a_sync_handler_raises_carries_over() -> None:
    worker, assign = Worker("w"), Assigner()

    @worker.effect("stop")
    def stop(contract: Any) -> None:
        raise StopIteration("odd")

    @worker.effect("leave")
    def leave(contract: Any) -> None:
        raise SystemExit(3)

    @worker.reducer("fatal")
    def fatal(contract: Any) -> None:
        raise Fatal("never")

    async with serving(worker) as running:
        link = connect(running)
        batch = [assign("effect", "stop"), assign("effect", "leave"), assign("reducer", "fatal")]
        link.assign(*batch)
        errors = [(await link.result(attempt)).error for attempt in batch]
        assert [(error.type, error.retryable) for error in errors if error] == [
            ("RuntimeError", True), ("SystemExit", True), ("Fatal", False),
        ]  # fmt: skip


async def test_what_a_child_cannot_import_runs_in_a_thread_with_a_warning() -> None:
    worker, assign = Worker("w"), Assigner()

    @worker.compute("local")
    def local(contract: Any) -> int:
        return os.getpid()

    with capture_logs() as logs:
        async with serving(worker) as running:
            link = connect(running)
            attempt = assign("compute", "local")
            link.assign(attempt)
            assert value((await link.result(attempt)).result) == os.getpid()
    (warning,) = [line for line in logs if line["event"] == "compute.threaded"]
    assert warning["handler"] == "local"
    assert "inside a function" in warning["reason"]


async def test_an_annotation_that_means_nothing_is_refused_at_the_start() -> None:
    worker = Worker("w")

    @worker.effect("typed")
    async def typed(order: NoSuchType) -> None: ...  # type: ignore[name-defined]  # noqa: F821 - that is the test

    with pytest.raises(InvalidConfiguration, match=r"'NoSuchType'.*define the type at module level"):
        await runtime(worker).start()


# ---- child processes


@asynccontextmanager
async def children(*functions: Any, slots: int = 2) -> AsyncIterator[tuple[WorkerRuntime, FakeLink, Assigner]]:
    worker = Worker("w")
    for function in functions:
        worker.compute(function)
    async with serving(worker, compute=slots) as running:
        yield running, connect(running), Assigner()


async def busy_pid(link: FakeLink, token: Any) -> int:
    """The process id that `busy` tells in its progress."""
    await link.until(lambda: any(report.token == token for report in link.of(Progress)))
    return int(value(next(report for report in link.of(Progress) if report.token == token).details)["pid"])


@pytest.mark.slow
async def test_sync_computes_run_in_children_that_are_kept() -> None:
    async with children(handlers.double, handlers.pid, handlers.typed, slots=1) as (_, link, assign):
        first, again = assign("compute", "pid"), assign("compute", "pid")
        link.assign(first)
        child = value((await link.result(first)).result)
        assert child != os.getpid()
        link.assign(again)
        assert value((await link.result(again)).result) == child
        double = assign("compute", "double", {"n": 21})
        link.assign(double)
        assert value((await link.result(double)).result) == 42
        typed = assign("compute", "typed", {"sku": "tea", "count": 2})
        link.assign(typed)
        assert value((await link.result(typed)).result) == {"label": "2 x tea"}
        wrong = assign("compute", "typed", {"sku": "tea", "count": "two"})
        link.assign(wrong)
        error = (await link.result(wrong)).error
        assert error is not None
        assert "$.count: expected `int`" in error.message
        assert not error.retryable


@pytest.mark.slow
@pytest.mark.parametrize(
    ("handler", "given", "exitcode", "words"),
    [("segfault", None, -signal.SIGSEGV, "SIGSEGV"), ("leave", {"code": 3}, 3, "exited with code 3")],
)
async def test_a_child_that_ends_is_a_lost_worker_and_is_replaced(
    handler: str, given: Any, exitcode: int, words: str
) -> None:
    async with children(getattr(handlers, handler), handlers.double, slots=1) as (_, link, assign):
        attempt, after = assign("compute", handler, given), assign("compute", "double", {"n": 1})
        link.assign(attempt)
        result = await link.result(attempt)
        assert result.status == "failed"
        assert result.error is not None
        assert (result.error.type, result.error.code, result.error.retryable) == ("WorkerLost", "OXF-4003", True)
        assert result.error.context is not None
        assert result.error.context["exitcode"] == exitcode
        assert words in result.error.message
        link.assign(after)
        assert value((await link.result(after)).result) == 2


@pytest.mark.slow
async def test_killing_one_child_leaves_the_others_alone() -> None:
    async with children(handlers.busy, slots=2) as (running, link, assign):
        one, other = assign("compute", "busy"), assign("compute", "busy")
        link.assign(one, other)
        os.kill(await busy_pid(link, one.token), signal.SIGKILL)
        error = (await link.result(one)).error
        assert error is not None
        assert error.type == "WorkerLost"
        survivor = await busy_pid(link, other.token)
        os.kill(survivor, 0)
        assert running.statistics().running == {"compute": 1}
        assert other.token not in link.results


@pytest.mark.slow
async def test_cancel_kills_a_busy_child() -> None:
    async with children(handlers.busy, handlers.double, slots=1) as (_, link, assign):
        attempt, after = assign("compute", "busy"), assign("compute", "double", {"n": 1})
        link.assign(attempt)
        pid = await busy_pid(link, attempt.token)
        link.say(Cancel([attempt.token]))
        assert (await link.result(attempt)).status == "stopped"
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        link.assign(after)
        assert value((await link.result(after)).result) == 2


@pytest.mark.slow
async def test_a_child_that_ignores_sigterm_is_killed_after_the_grace() -> None:
    worker, assign, clock = Worker("w"), Assigner(), ManualClock()
    worker.compute(handlers.deaf)
    async with serving(worker, clock=clock, compute=1) as running:
        link = connect(running)
        attempt = assign("compute", "deaf")
        link.assign(attempt)
        pid = await busy_pid(link, attempt.token)
        link.say(Cancel([attempt.token]))
        await settle()
        os.kill(pid, 0)
        await clock.advance(1.5)
        assert (await link.result(attempt)).status == "stopped"


@pytest.mark.slow
async def test_children_end_with_the_runtime() -> None:
    async with children(handlers.busy, slots=2) as (_, link, assign):
        one, other = assign("compute", "busy"), assign("compute", "busy")
        link.assign(one, other)
        pids = [await busy_pid(link, attempt.token) for attempt in (one, other)]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
async def test_a_result_over_the_limit_names_both_sizes() -> None:
    async with children(handlers.large, slots=1) as (_, link, assign):
        attempt = assign("compute", "large")
        link.assign(attempt)
        error = (await link.result(attempt)).error
        assert error is not None
        assert "3,145,730 bytes" in error.message
        assert "2,097,152" in error.message
        assert not error.retryable


@pytest.mark.slow
async def test_a_busy_child_ends_with_a_worker_that_is_killed() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", BUSY_WORKER, env=ENVIRONMENT, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        child = os.pidfd_open(int(await process.stdout.readline()))
        process.kill()
        await process.wait()
    try:
        ended, _, _ = await asyncio.to_thread(select.select, [child], [], [], 10)
        assert ended
    finally:
        os.close(child)


@pytest.mark.slow
async def test_handlers_of_a_main_script_are_found(tmp_path: Any) -> None:
    script = tmp_path / "main_script.py"
    script.write_text(MAIN_SCRIPT)
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), env=ENVIRONMENT, stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(20):
        output, _ = await process.communicate()
    assert process.returncode == 0
    assert output.decode().split() == ["True", "14"]


ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}

BUSY_WORKER = """
import asyncio, msgspec
from onexflow.ports.worker_link import Progress
from onexflow.worker import Worker
from support import worker_handlers_module
from support.worker_kit import Assigner, connect, serving

worker = Worker("w")
worker.compute(worker_handlers_module.busy)

async def main():
    async with serving(worker) as running:
        link = connect(running)
        link.assign(Assigner()("compute", "busy"))
        await link.until(lambda: bool(link.of(Progress)))
        print(msgspec.json.decode(link.of(Progress)[0].details.data)["pid"], flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""

MAIN_SCRIPT = """
from __future__ import annotations
import asyncio, os
from dataclasses import dataclass
from onexflow.worker import Worker
from support.worker_kit import Assigner, connect, serving

worker = Worker("main")

@dataclass
class Number:
    n: int

@worker.compute
def double(number: Number) -> list[int]:
    return [os.getpid(), number.n * 2]

async def main():
    assign = Assigner()
    async with serving(worker) as running:
        link = connect(running)
        attempt = assign("compute", "double", {"n": 7})
        link.assign(attempt)
        pid, result = __import__("msgspec").json.decode((await link.result(attempt)).result.data)
        print(pid != os.getpid(), result)

if __name__ == "__main__":
    asyncio.run(main())
"""
