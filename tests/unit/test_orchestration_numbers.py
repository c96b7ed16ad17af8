"""How the calls of an orchestration are numbered: by the order of the code, not by who is faster."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from onexflow.core.ids import RunKey
from onexflow.ports import orchestration

RUN = RunKey("default", "flow", UUID(int=1))


@pytest.fixture(autouse=True)
async def begun() -> AsyncIterator[None]:
    """Everything here runs in tasks begun by an execution."""
    orchestration.watch_tasks()
    orchestration.watch_tasks()  # once is enough
    yield
    asyncio.get_running_loop().set_task_factory(None)


def number() -> str:
    with orchestration.calling() as caller:
        return "" if caller is None else caller.number


async def call(delay: float = 0.0) -> str:
    await asyncio.sleep(delay)  # one task is slower than another
    return number()


async def test_outside_of_orchestrations_there_are_no_numbers() -> None:
    assert number() == ""
    assert list(await asyncio.gather(call(), call())) == ["", ""]


async def test_calls_in_a_row_and_side_by_side() -> None:
    orchestration.begin(RUN, "lead", 3)
    with orchestration.calling() as caller:
        assert caller is not None
        assert (caller.run, caller.task, caller.item, caller.number) == (RUN, "lead", 3, "1")
    assert number() == "2"
    # The slower one comes first in the code, and so in the numbers.
    assert list(await asyncio.gather(call(0.02), call(0.0))) == ["3.1", "4.1"]
    assert await call() == "5"


async def test_tasks_within_tasks_are_numbered_when_they_are_begun() -> None:
    async def pair(delay: float) -> list[str]:
        first = await asyncio.gather(call(delay), call(delay))
        return [*first, *await asyncio.gather(call(), call()), number()]

    orchestration.begin(RUN, "lead", 0)
    expected = [[f"{task}.{n}.1" for n in (1, 2, 3, 4)] + [f"{task}.5"] for task in (1, 2)]
    assert list(await asyncio.gather(pair(0.02), pair(0.0))) == expected
    orchestration.begin(RUN, "lead", 0)
    assert list(await asyncio.gather(pair(0.0), pair(0.02))) == expected
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(call()) for _ in range(2)]
    assert [task.result() for task in tasks] == ["3.1", "4.1"]


async def test_what_a_call_itself_begins_takes_no_number() -> None:
    orchestration.begin(RUN, "lead", 0)
    with orchestration.calling() as caller:
        assert caller is not None
        assert list(await asyncio.gather(call(), call())) == ["", ""]
    with orchestration.outside():
        assert number() == ""
        await asyncio.create_task(call())
    assert number() == "2"


async def test_a_task_in_a_context_of_its_maker_s_has_a_branch_from_its_first_call() -> None:
    orchestration.begin(RUN, "lead", 0)
    assert number() == "1"
    context = contextvars.copy_context()
    task = asyncio.get_running_loop().create_task(call(), context=context)
    assert number() == "2"
    assert await task == "3.1"


async def test_a_factory_that_is_there_makes_the_tasks() -> None:
    made: list[str] = []

    def factory(loop: asyncio.AbstractEventLoop, coroutine: object, **options: object) -> asyncio.Task[object]:
        made.append("one")
        return asyncio.Task(coroutine, loop=loop, **options)

    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    orchestration.watch_tasks()
    orchestration.begin(RUN, "lead", 0)
    assert await asyncio.create_task(call()) == "1.1"
    assert made
