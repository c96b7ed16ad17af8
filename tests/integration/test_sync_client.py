"""The blocking client, against an orchestrator and a worker in another process."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import onexflow
import onexflow.sync
from onexflow.core.errors import DeadlineExceeded, InvalidTransition, RunFailed, Unavailable, UnknownRun
from onexflow.spi import WorkTask

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """An orchestrator with a worker, in a process of its own."""
    command = [sys.executable, "-m", "support.serve_cluster"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=TESTS) as program:
        assert program.stdout is not None
        yield next(line.split()[1] for line in program.stdout if line.startswith("address "))
        program.communicate(timeout=20)


@pytest.fixture
def client(address: str) -> Iterator[onexflow.sync.Client]:
    with onexflow.sync.connect(address) as client:
        yield client


def test_the_life_of_runs(client: onexflow.sync.Client) -> None:
    assert client.run("greet", {"name": "Ada"}) == "hello Ada"
    run = client.start("greet", {"name": "Bo"}, request_id="r1")
    assert run.result(10) == "hello Bo"
    assert client.start("greet", {"name": "Bo"}, request_id="r1").key == run.key
    assert run.state().state == run.outcome().state == "completed"
    events = run.history()
    assert [event.type for event in events][-1] == "workflow.completed"
    assert list(run.follow()) == events
    assert run.key in {found.key for found in client.list("greet")}
    assert len(list(client.list(limit=1))) == 1
    assert client.metrics("greet").by_state["completed"] >= 2
    assert repr(run) == repr(client.get("greet", run.instance_id))


def test_steering(client: onexflow.sync.Client) -> None:
    run = client.start("hang")
    with pytest.raises(DeadlineExceeded):
        run.result(0.05)
    assert run.pause("lunch").changed
    assert client.get("hang", run.instance_id).state().state == "paused"
    assert run.resume().changed
    assert run.cancel("enough").changed
    with pytest.raises(RunFailed):
        run.result()
    with pytest.raises(RunFailed, match="no"):
        client.run("fail")
    with pytest.raises(UnknownRun):
        client.get("greet", "nobody").state()


def test_the_cluster_and_what_has_no_blocking_form(client: onexflow.sync.Client) -> None:
    assert {node.node_id for node in client.nodes()} >= {"o1", "w0"}
    assert client.health().serving
    assert client.health().can_append
    assert all(run.blocked.is_valid for run in client.blocked())
    assert "greet" in {info.workflow_type for info in client.definitions()}
    assert client.definition("greet").tasks[0].handler == "greet"
    client.call(lambda c: c.work_queue("sync").enqueue_task(WorkTask(task_id="t")))
    [got] = client.call(lambda c: c.work_queue("sync").dequeue_task("me"))
    assert got.task_id == "t"


def test_many_threads(client: onexflow.sync.Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        results = list(pool.map(lambda n: client.run("greet", {"name": n}), range(200)))
    assert results == [f"hello {n}" for n in range(200)]


def test_a_follower_may_stop_in_the_middle(client: onexflow.sync.Client) -> None:
    run = client.start("hang")
    seen = []
    for event in run.follow():
        seen.append(event.type)
        if event.type == "task.started":
            break
    assert seen[0] == "workflow.created"
    run.cancel()


def test_inside_a_loop_it_is_refused(client: onexflow.sync.Client) -> None:
    async def wrong(call: Callable[[], Any]) -> None:
        with pytest.raises(InvalidTransition, match=r"await onexflow.connect\(\)"):
            call()

    for call in (client.health, onexflow.sync.connect, client.close, lambda: client.start("greet")):
        asyncio.run(wrong(call))

    async def right() -> Any:
        return await asyncio.to_thread(client.run, "greet", {"name": "Cy"})

    assert asyncio.run(right()) == "hello Cy"


def test_close_ends_what_waits_and_its_thread(address: str) -> None:
    client = onexflow.sync.connect(address)
    names = {thread.name for thread in threading.enumerate()}
    assert "onexflow-sync" in names
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            client.run("hang")
        except Unavailable as error:
            caught.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not list(client.list("hang", ["running"])):
        pass
    client.close()
    client.close()
    thread.join(10)
    assert len(caught) == 1
    with pytest.raises(InvalidTransition, match="closed"):
        client.health()
    assert not client._loop._thread.is_alive()


def test_it_is_found_without_an_import_of_its_own() -> None:
    program = "import onexflow; onexflow.sync.connect"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_nobody_there() -> None:
    before = threading.active_count()
    with pytest.raises(Unavailable):
        onexflow.sync.connect("127.0.0.1:9", timeout=0.2)
    assert threading.active_count() == before


@pytest.mark.parametrize("method", ["start", "run", "get", "list", "metrics", "register", "definition", "drain"])
def test_the_parameters_are_those_of_the_asynchronous_client(method: str) -> None:
    ours = inspect.signature(getattr(onexflow.sync.Client, method)).parameters
    assert ours == inspect.signature(getattr(onexflow.Client, method)).parameters


def test_every_method_of_a_handle_is_there() -> None:
    for name, method in inspect.getmembers(onexflow.RunHandle, inspect.isfunction):
        if not name.startswith("_"):
            ours = inspect.signature(getattr(onexflow.sync.RunHandle, name)).parameters
            assert ours == inspect.signature(method).parameters, name


PROGRAM = """
import signal, sys, onexflow.sync
signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts in the background ignores it
client = onexflow.sync.connect(sys.argv[1])
run = client.start("hang")
try:
    print(run.instance_id, flush=True)
    run.result()
except KeyboardInterrupt:
    print("interrupted", client.health().serving, run.state().state, flush=True)
    run.cancel()
"""


def test_ctrl_c(address: str) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM, address], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        try:
            assert program.stdout.readline()
            os.kill(program.pid, signal.SIGINT)
            assert program.stdout.readline() == "interrupted True running\n"
            assert program.wait(20) == 0  # and it ends, though nobody closed the client
        finally:
            program.kill()
