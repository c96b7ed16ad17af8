"""`onex-worker --processes N` as a user starts it: N nodes, whichever dies is started again, and all end with their parent."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import textwrap
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

import onexflow
from onexflow.client import Client
from support.programs import finished, serving

pytestmark = pytest.mark.slow

HANDLERS = """
    import os
    import pathlib
    import time

    import onexflow

    worker = onexflow.Worker("mine")


    @worker.effect("who", idempotent=True)
    async def who(contract):
        return os.getpid()


    @worker.effect("slow", idempotent=True)
    def slow(contract):
        pathlib.Path("begun").touch()
        time.sleep(contract["seconds"])  # the handler's work
        return "done"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(textwrap.dedent(HANDLERS))
    return tmp_path


@asynccontextmanager
async def client_of(address: str) -> AsyncIterator[Client]:
    async with await onexflow.connect(address, timeout=20.0) as client:
        for handler in ("who", "slow"):
            flow = onexflow.workflow(handler)
            flow.effect(handler, input="input")
            await client.register(flow.build())
        yield client


@contextmanager
def orchestrator(folder: Path) -> Iterator[str]:
    with serving("onex-orchestrator", "--listen=127.0.0.1:0", cwd=folder) as (_, line):
        yield line.rpartition(" on ")[2]


def children_of(process: subprocess.Popen[str]) -> dict[str, int]:
    """The pid of each of its worker processes, by name."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(stat.read_text().rpartition(")")[2].split()[1])
            words = (stat.parent / "cmdline").read_text().split("\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == process.pid:
            name = next((word for word in words if word.startswith("--worker-id=w-")), "")
            found[name.removeprefix("--worker-id=")] = int(stat.parent.name)
    return found


async def gone(pids: list[int], within: float = 15.0) -> None:
    async with asyncio.timeout(within):
        while any(Path(f"/proc/{pid}").exists() for pid in pids):
            await asyncio.sleep(0.02)


async def connected(client: Client, *names: str) -> None:
    """Return when exactly these nodes are connected."""
    async with asyncio.timeout(20.0):
        while {node.node_id for node in await client.nodes() if node.kind != "orchestrator" and node.connected} != {
            *names
        }:
            await asyncio.sleep(0.05)


async def test_a_process_that_dies_is_started_again_and_all_end_together(folder: Path) -> None:
    with orchestrator(folder) as address:
        flags = ("mine", "--processes=2", "--worker-id=w", f"--orchestrators={address}")
        with serving("onex-worker", *flags, cwd=folder) as (worker, line):
            assert line == "onex-worker w serves effect in 2 processes"
            before = children_of(worker)
            assert sorted(before) == ["w-1", "w-2"]
            async with client_of(address) as client:
                await connected(client, "w-1", "w-2")
                pids = await asyncio.gather(*(client.run("who", {"n": n}) for n in range(40)))
                assert set(pids) == set(before.values()), "both have worked"
                os.kill(before["w-2"], signal.SIGKILL)
                await gone([before["w-2"]])
                async with asyncio.timeout(20.0):
                    while len(children_of(worker)) < 2:
                        await asyncio.sleep(0.05)
                after = children_of(worker)
                assert after["w-1"] == before["w-1"]
                assert after["w-2"] != before["w-2"]
                await connected(client, "w-1", "w-2")
                assert set(await asyncio.gather(*(client.run("who", {"n": n}) for n in range(10)))) <= {*after.values()}
            worker.send_signal(signal.SIGTERM)
            assert worker.wait(15) == 0
            await gone([*after.values()], 1.0)
    told = (folder / "onex-worker.err").read_text()
    assert f"w-2 (pid {before['w-2']}) ended: killed by SIGKILL" in told
    assert f"w-2 runs again (pid {after['w-2']})" in told


async def test_a_stop_waits_for_what_runs(folder: Path) -> None:
    with orchestrator(folder) as address:
        flags = ("mine", "--processes=2", "--worker-id=w", f"--orchestrators={address}")
        with serving("onex-worker", *flags, cwd=folder) as (worker, _):
            async with client_of(address) as client:
                running = asyncio.create_task(client.run("slow", {"seconds": 1.0}))
                await begun(folder)
                worker.send_signal(signal.SIGTERM)
                assert await running == "done"
            assert worker.wait(15) == 0


async def begun(folder: Path) -> None:
    async with asyncio.timeout(20.0):
        while not (folder / "begun").exists():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("way", ["second signal", "kill"])
async def test_without_their_parent_none_stays(folder: Path, way: str) -> None:
    """A second signal means now, for all of them; and a parent that is killed takes them along, those with work after the
    time that a stop has."""
    with orchestrator(folder) as address:
        drain = 60 if way == "second signal" else 1
        flags = ("mine", "--processes=2", "--worker-id=w", f"--orchestrators={address}", f"--drain-timeout={drain}")
        with serving("onex-worker", *flags, cwd=folder) as (worker, _):
            pids = [*children_of(worker).values()]
            async with client_of(address) as client:
                handle = await client.start("slow", {"seconds": 30.0})
                await begun(folder)
                if way == "kill":
                    worker.kill()
                    worker.wait(5)
                else:
                    worker.send_signal(signal.SIGTERM)
                    await asyncio.sleep(0.5)  # a process that stops too early does so at once
                    assert worker.poll() is None, "it waits for what runs"
                    worker.send_signal(signal.SIGINT)
                    assert worker.wait(5) == 128 + signal.SIGINT
                await gone(pids)
                await handle.cancel()


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["mine", "--processes=-1"], 2, "processes (flag --processes): -1 is not within 0 and 256"),
        (["mine", "--processes=some"], 2, "processes (flag --processes): Expected int"),
        (["mine", "--processes=9", "--liveness=127.0.0.1:65530"], 2, "there are no 9 ports from 65530 on"),
        (["no_such_module", "--processes=2", "--worker-id=w"], 14, "there is no module 'no_such_module'"),
    ],
)
def test_what_cannot_start_says_why(folder: Path, flags: list[str], code: int, words: str) -> None:
    done = finished("onex-worker", *flags, cwd=folder)
    assert done.returncode == code
    assert done.stderr.count(words) == 1
    assert "Traceback" not in done.stderr
