"""The scenarios: each runs once, checks what was promised, and returns its figures."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import onexflow
from onexflow.client import Client, RunHandle
from onexflow.core.definition import WorkflowDefinition
from onexflow.core.errors import StoreFull
from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.testing.faults.relay import Relay

from . import traces
from .events import kill_orchestrator_under_events
from .plain import Answer, check_codes, plain_start
from .processes import Processes, until

Figures = dict[str, float]


def chain(handler: str, role: str, length: int = 10) -> WorkflowDefinition:
    """Ten tasks of one handler, one after the other."""
    flow = onexflow.workflow(f"chaos-{handler}")
    task: Any = None
    for number in range(length):
        task = getattr(flow, role)(f"step{number}", handler=handler, depends_on=[task] if task else [])
    return flow.build()


def mixed(length: int = 10) -> WorkflowDefinition:
    """Effects and computes in turn."""
    flow = onexflow.workflow("chaos-mixed")
    task: Any = None
    for number in range(length):
        role, handler = ("effect", "charge") if number % 2 else ("compute", "calculate")
        task = getattr(flow, role)(f"step{number}", handler=handler, depends_on=[task] if task else [])
    return flow.build()


async def _start(client: Client, definition: WorkflowDefinition, count: int) -> list[RunHandle]:
    await client.register(definition)
    starts = (client.start(definition.workflow_type, {"number": number}) for number in range(count))
    return list(await asyncio.gather(*starts))


async def _finish(handles: list[RunHandle], seconds: float = 120.0) -> None:
    async with asyncio.timeout(seconds):
        await asyncio.gather(*(handle.result() for handle in handles))


async def _checked(client: Client, workflow_type: str, runs: int) -> Figures:
    counts = await traces.audit(client, workflow_type)
    assert counts["runs"] == runs, f"{runs - counts['runs']} runs are lost"
    assert counts["violations"] == 0, counts
    return {"runs": runs, "events": counts["events"]}


async def kill_worker(chains: int = 200) -> Figures:
    """kill -9 of one of two workers under idempotent effects: all finish, each key applied once, re-dispatch at once."""
    async with Processes() as cluster:
        await cluster.start_worker("w1")
        await cluster.start_worker("w2")
        async with await cluster.client() as client:
            await cluster.wait_for_workers(client, 2)
            handles = await _start(client, chain("charge", "effect"), chains)
            victim = cluster.workers["w1"]
            await until(lambda: sum(e.pid == victim.pid for e in traces.executions(cluster.folder)) > 20, "w1 at work")
            killed_at = cluster.kill(victim)
            await _finish(handles)
            figures = await _checked(client, "chaos-charge", chains)
        found = traces.executions(cluster.folder)
        grouped = traces.by_key(found)
        assert len(grouped) == chains * 10
        assert traces.ledger_keys(cluster.folder) == set(grouped)
        interrupted = {e.key for e in found if e.pid == victim.pid and not e.end_ns}
        again = [e.start_ns for key in interrupted for e in grouped[key][1:]]
        assert not traces.overlapping(found, killed_at)
        repeated = sum(len(runs) - 1 for runs in grouped.values())
        first = (min(again) - killed_at) / 1e6 if again else 0.0
        return {**figures, "interrupted": len(interrupted), "run again": repeated, "re-dispatch ms": first}


async def kill_worker_once_only(chains: int = 200) -> Figures:
    """The same with effects that may not run again: each interrupted one waits, none ran twice, resolving finishes all."""
    async with Processes() as cluster:
        await cluster.start_worker("w1")
        await cluster.start_worker("w2")
        async with await cluster.client() as client:
            await cluster.wait_for_workers(client, 2)
            handles = await _start(client, chain("charge_once", "effect"), chains)
            victim = cluster.workers["w1"]
            await until(lambda: sum(e.pid == victim.pid for e in traces.executions(cluster.folder)) > 20, "w1 at work")
            cluster.kill(victim)
            waiting = await _all_settled(handles)
            found = traces.executions(cluster.folder)
            assert max(len(runs) for runs in traces.by_key(found).values()) == 1, "an effect ran twice"
            for handle, task in waiting:
                await handle.resolve(task, result={"ok": "looked up by hand"})
            await _finish(handles)
            figures = await _checked(client, "chaos-charge_once", chains)
        found = traces.executions(cluster.folder)
        assert max(len(runs) for runs in traces.by_key(found).values()) == 1, "an effect ran twice"
        interrupted = {e.key for e in found if e.pid == victim.pid and not e.end_ns}
        assert waiting, "nothing was interrupted: the round proves nothing"
        return {**figures, "interrupted": len(interrupted), "resolved": len(waiting), "run again": 0}


async def _all_settled(handles: list[RunHandle]) -> list[tuple[RunHandle, str]]:
    """Wait until every run is over or waits for input; returns those that wait, with their task."""
    waiting: list[tuple[RunHandle, str]] = []
    async with asyncio.timeout(120.0):
        for handle in handles:
            while True:
                view = await handle.state()
                stuck = [task.name for task in view.tasks if task.state == "waiting_for_input"]
                if stuck:
                    waiting.append((handle, stuck[0]))
                if stuck or view.completed_at:
                    break
                await asyncio.sleep(0.05)
    return waiting


async def kill_orchestrations(runs: int = 50, steps: int = 8) -> Figures:
    """kill -9 of workers that run orchestrations, twice, and of the orchestrator: each call of theirs is made once."""
    async with Processes() as cluster:
        await cluster.start_worker("hands", 64, "--roles=effect,compute")
        for name in ("lead-1", "lead-2"):
            await cluster.start_worker(name, 16, "--roles=orchestrator")
        flow = onexflow.workflow("chaos-lead")
        flow.orchestrator("lead")
        async with await cluster.client() as client:
            await cluster.wait_for_workers(client, 3)
            await client.register(flow.build())
            starts = (client.start("chaos-lead", {"steps": steps}) for _ in range(runs))
            handles = list(await asyncio.gather(*starts))
            done = runs * steps

            async def wait_for_calls(number: int) -> None:
                await until(lambda: len(traces.ledger_keys(cluster.folder)) > number, "calls made")

            for part in (1, 2):
                await wait_for_calls(part * done // 5)
                victim = cluster.workers[f"lead-{part}"]
                cluster.kill(victim)
                await victim.wait()
                await cluster.start_worker(f"lead-{part}", 16, "--roles=orchestrator")
            await wait_for_calls(3 * done // 5)
            assert cluster.orchestrator is not None
            cluster.kill(cluster.orchestrator)
            await cluster.orchestrator.wait()
            await cluster.start_orchestrator()
            await _finish(handles)
            figures = await _checked(client, "chaos-lead", runs)
        grouped = traces.by_key(traces.executions(cluster.folder))
        leads = [executions for key, executions in grouped.items() if key.endswith(":lead")]
        again = sum(len(executions) > 1 for executions in leads)
        assert len(leads) == runs
        assert again, "no orchestration was run again: the round proves nothing"
        charged = traces.ledger_keys(cluster.folder)
        assert len(charged) == done, f"{done} calls of effects were made as {len(charged)}"
        assert max(len(grouped[key]) for key in charged) == 1, "an effect ran twice"
        computed = [key for key in grouped if key.endswith(":execute")]
        assert len(computed) == 2 * done, f"{2 * done} calls of computes were made as {len(computed)}"
        return {**figures, "run again": again, "calls": 3 * done}


async def kill_orchestrator(chains: int = 200) -> Figures:
    """kill -9 and restart of the orchestrator: all finish, what ran on is adopted and not run twice."""
    async with Processes() as cluster:
        await cluster.start_worker("w1")
        await cluster.start_worker("w2")
        async with await cluster.client() as client:
            await cluster.wait_for_workers(client, 2)
            handles = await _start(client, mixed(), chains)
            await until(lambda: len(traces.executions(cluster.folder)) > chains, "work under way")
            assert cluster.orchestrator is not None
            killed_at = cluster.kill(cluster.orchestrator)
            await cluster.orchestrator.wait()
            await cluster.start_orchestrator()
            await _finish(handles)
            figures = await _checked(client, "chaos-mixed", chains)
        found = traces.executions(cluster.folder)
        grouped = traces.by_key(found)
        assert len(grouped) == chains * 10
        effects = {key for key in grouped if key in traces.ledger_keys(cluster.folder)}
        assert len(effects) == chains * 5
        again = {key: runs for key, runs in grouped.items() if len(runs) > 1}
        ran_on = {e.key for e in found if e.start_ns < killed_at and (e.end_ns or killed_at) >= killed_at}
        twice = [key for key in again if key in ran_on]
        assert not twice, f"{len(twice)} tasks that ran on were run again"
        assert not [key for key in again if key in effects], "an effect ran twice"
        # A token's second part is its epoch: the new owner's first decision that reached a worker.
        resumed = min(e.start_ns for e in found if e.token.split(".")[1] != "1")
        return {
            **figures,
            "ran on": len(ran_on),
            "run again": len(again),
            "resumed after ms": (resumed - killed_at) / 1e6,
        }


async def fill_store(chains: int = 200, seconds: float = 10.0) -> Figures:
    """The store may not grow by a page for ten seconds: new starts are refused with a code that says so, what runs is safe,
    and all goes on when there is room again, without a restart."""
    async with Processes(program="chaos.bounded_orchestrator") as cluster:
        room = cluster.folder / "max_page_count"
        await cluster.start_worker("w1")
        await cluster.start_worker("w2")
        async with await cluster.client() as client:
            await cluster.wait_for_workers(client, 2)
            plain = chain("calculate", "compute", 1)
            await client.register(plain)
            handles = await _start(client, mixed(), chains)
            await until(lambda: len(traces.executions(cluster.folder)) > chains, "work under way")
            room.write_text("1")
            answers: list[Answer] = []
            full = time.monotonic()
            while time.monotonic() - full < seconds:
                answers.append(await plain_start(cluster.address, plain.workflow_type))
                await asyncio.sleep(0.1)
            assert "store" in (await client.health()).details, "the health answer says nothing"
            stands = len(traces.executions(cluster.folder))
            room.write_text("1000000")
            room_at = time.time_ns()
            async with asyncio.timeout(10.0):
                while (answer := await plain_start(cluster.address, plain.workflow_type)).code:
                    answers.append(answer)
                    await asyncio.sleep(0.02)
            taken_at = time.time_ns()
            await _finish(handles)
            assert cluster.orchestrator is not None
            assert cluster.orchestrator.returncode is None, "the orchestrator has ended"
            figures = await _checked(client, "chaos-mixed", chains)
        check_codes(answers)
        refused = [answer for answer in answers if answer.code == StoreFull.code]
        assert refused, "the store was not full: the round proves nothing"
        assert {answer.code for answer in answers} <= {"", StoreFull.code}
        assert all(answer.again > 0 for answer in refused), "refused without RetryInfo"
        grouped = traces.by_key(traces.executions(cluster.folder))
        charged = traces.ledger_keys(cluster.folder)
        assert len(charged) == chains * 5
        assert max(len(grouped[key]) for key in charged) == 1, "an effect ran twice"
        assert stands < len(grouped), "all was done before the store was full: the round proves nothing"
        after = min(one.start_ns for key in charged for one in grouped[key] if one.start_ns > room_at)
        return {
            **figures,
            "starts refused": len(refused),
            "longest answer s": max(answer.seconds for answer in answers),
            "starts taken after ms": (taken_at - room_at) / 1e6,
            "effects go on after ms": (after - room_at) / 1e6,
        }


async def cut_streams(chains: int = 100, cuts: int = 20) -> Figures:
    """Streams cut with both ends alive: pure tasks again at once, no effect twice at the same time."""
    async with Processes() as cluster, Relay(cluster.address) as relay:
        cluster.through = f"127.0.0.1:{relay.port}"
        await cluster.start_worker("w1")
        await cluster.start_worker("w2")
        async with await cluster.client() as client:
            await cluster.wait_for_workers(client, 2)
            handles = await _start(client, mixed(), chains)
            finished = asyncio.ensure_future(_finish(handles))
            made = 0
            while made < cuts and not finished.done():
                await asyncio.sleep(0.1)
                relay.cut()
                made += 1
            await finished
            figures = await _checked(client, "chaos-mixed", chains)
        found = traces.executions(cluster.folder)
        grouped = traces.by_key(found)
        assert len(grouped) == chains * 10
        effects = [e for e in found if e.key in traces.ledger_keys(cluster.folder)]
        assert not traces.overlapping(effects), "an effect ran twice at the same time"
        again = sum(len(runs) - 1 for runs in traces.by_key(effects).values())
        pure = sum(len(runs) - 1 for runs in grouped.values()) - again
        return {**figures, "cuts": made, "effects run again": again, "pure run again": pure}


async def kill_etcd(chains: int = 200, seconds: float = 30.0) -> Figures:
    """kill -9 of etcd, and its return later: nothing stops, the registration is restored, the shards stay."""
    return await _without_etcd("kill", chains, seconds)


async def freeze_etcd(chains: int = 200, seconds: float = 8.0) -> Figures:
    """The same with an etcd that is stopped for longer than the leases last."""
    return await _without_etcd("freeze", chains, seconds)


async def wipe_etcd(chains: int = 200, seconds: float = 8.0) -> Figures:
    """The same with an etcd that comes back empty."""
    return await _without_etcd("wipe", chains, seconds)


async def _without_etcd(fault: str, chains: int, seconds: float) -> Figures:
    async with Processes() as cluster:
        await cluster.start_worker("w1")
        await cluster.start_worker("w2")
        async with await cluster.client() as client:
            await cluster.wait_for_workers(client, 2)
            await client.register(mixed())
            before = await _shards(cluster)
            await _take_away(cluster, fault)
            gone = time.monotonic()
            runs, longest = 0, 0.0
            while time.monotonic() - gone < seconds:
                began = time.monotonic()
                handles = await _start(client, mixed(), chains // 10)
                await _finish(handles, 30.0)
                runs += len(handles)
                longest = max(longest, time.monotonic() - began)
            if fault == "freeze":
                cluster.etcd.thaw()
            else:
                await cluster.etcd.start()
            back = time.monotonic()
            await _registered(client, {"w1", "w2"})
            async with asyncio.timeout(15.0):
                while await _shards(cluster) != before:
                    await asyncio.sleep(0.05)
            restored = time.monotonic() - back
            figures = await _checked(client, "chaos-mixed", runs)
        found = traces.executions(cluster.folder)
        assert len(found) == runs * 10, "a task ran twice"
        assert restored <= 3.0, f"registration took {restored:.1f} s"
        return {**figures, "away s": seconds, "longest wave s": longest, "registered after s": restored}


async def _take_away(cluster: Processes, fault: str) -> None:
    if fault == "freeze":
        cluster.etcd.freeze()
    elif fault == "wipe":
        await cluster.etcd.wipe()
    else:
        await cluster.etcd.kill()


async def _shards(cluster: Processes) -> dict[bytes, bytes]:
    """What etcd holds of the shards: owner, epoch, address."""
    etcd = EtcdClient(EtcdSettings(endpoints=(cluster.etcd.endpoint,)))
    try:
        answer = await etcd.range(b"/onexflow/local/shards/")
        return {kv.key: kv.value for kv in answer.kvs}
    finally:
        await etcd.close()


async def _registered(client: Client, workers: set[str]) -> None:
    async with asyncio.timeout(15.0):
        while True:
            nodes = await client.nodes()
            if workers <= {node.node_id for node in nodes if node.registered} and (await client.health()).details == {}:
                return
            await asyncio.sleep(0.05)


SCENARIOS = {
    "kill-worker": kill_worker,
    "kill-worker-once-only": kill_worker_once_only,
    "kill-orchestrations": kill_orchestrations,
    "kill-orchestrator": kill_orchestrator,
    "kill-orchestrator-under-events": kill_orchestrator_under_events,
    "fill-store": fill_store,
    "cut-streams": cut_streams,
    "kill-etcd": kill_etcd,
    "freeze-etcd": freeze_etcd,
    "wipe-etcd": wipe_etcd,
}
