"""Several orchestrators over one store: who owns what, what becomes of runs when owners die, freeze, come and go."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from typing import Any

import msgspec
import pytest

from onexflow.codec.definitions import dump_definition
from onexflow.codec.payload import encode_value
from onexflow.core.builder import WorkflowBuilder, workflow
from onexflow.core.errors import ShardMoved, UnknownNode
from onexflow.core.ids import RunKey
from onexflow.engine.placement import LOOK_SECONDS, MOVE_SECONDS, SETTLED_SECONDS, homes
from onexflow.engine.protocols.work_queue import WorkQueue
from onexflow.engine.routing import FORWARDED
from onexflow.ports.client_link import ControlRequest, RunOutcome, StartOutcome, StartRequest
from onexflow.ports.events import EventRecord, Publish
from onexflow.ports.persistence import StateRecord
from onexflow.spi import WorkTask
from onexflow.testing.clock import virtual_time
from onexflow.testing.multi_cluster import MultiCluster
from onexflow.worker.context import Context
from onexflow.worker.handlers import Worker
from support.engine_kit import Script, single, until


def chain() -> WorkflowBuilder:
    flow = workflow("chain")
    flow.effect("first", handler="charge")
    flow.compute("second", handler="calc", after="first")
    flow.effect("third", handler="send", after="second")
    return flow


async def three(cluster: MultiCluster, script: Script, *flows: WorkflowBuilder, workers: int = 2) -> None:
    for name in ("a", "b", "c"):
        await cluster.add_orchestrator(name)
    for flow in flows:
        await cluster.register(flow.build())
    for number in range(1, workers + 1):
        await cluster.add_worker(script.worker(f"w{number}"), f"w{number}")
    await spread(cluster)


async def spread(cluster: MultiCluster) -> None:
    """Return when every shard is where it should be."""
    async with asyncio.timeout(120):
        while True:
            await cluster.settled()
            owned = await cluster.owned()
            names = [name for name, member in cluster.members.items() if member.state == "running"]
            home = homes(sum(map(len, owned.values())), names)
            if all(home[shard] == owner for owner, shards in owned.items() for shard in shards):
                return
            await cluster.clock.sleep(0.2)


async def key_owned_by(cluster: MultiCluster, name: str) -> RunKey:
    """A key for a new run in a shard of that member."""
    owned = (await cluster.owned())[name]
    while True:
        key = RunKey(cluster.namespace, "chain", cluster.ids.uuid())
        if cluster.number_of(key) in owned:
            return key


async def start_at(cluster: MultiCluster, name: str, workflow_type: str = "chain") -> RunKey:
    key = await key_owned_by(cluster, name)
    while (
        cluster.number_of(msgspec.structs.replace(key, workflow_type=workflow_type))
        not in (await cluster.owned())[name]
    ):
        key = msgspec.structs.replace(key, instance_id=cluster.ids.uuid())
    return await cluster.start(workflow_type, 1, instance_id=key.instance_id)


@virtual_time
async def test_the_first_orchestrator_owns_all_and_those_that_join_get_their_share_slowly() -> None:
    async with MultiCluster() as cluster:
        await cluster.add_orchestrator("a")
        await cluster.settled()
        assert await cluster.owned() == {"a": list(range(8))}
        await cluster.add_orchestrator("b")
        began = cluster.clock.monotonic()
        await cluster.clock.sleep(SETTLED_SECONDS - 0.5)
        assert await cluster.owned() == {"a": list(range(8))}
        await spread(cluster)
        owned = await cluster.owned()
        assert set(owned) == {"a", "b"}
        assert cluster.clock.monotonic() - began >= SETTLED_SECONDS + (len(owned["b"]) - 1) * MOVE_SECONDS


@virtual_time
async def test_no_shard_moves_to_and_fro_while_a_member_is_new() -> None:
    """Who hands a shard over and who claims it then reckon by the same members: with some of these names they would not
    agree on two of the shards while the third member is new."""
    async with MultiCluster(shards=64) as cluster:
        await cluster.add_orchestrator("a")
        await cluster.settled()
        await cluster.add_orchestrator("b")
        await cluster.clock.sleep(37.0)
        await cluster.add_orchestrator("c")
        await spread(cluster)
        epochs = [epoch for _, epoch, _ in await cluster.store.owners()]
        assert max(epochs) <= 5, "claimed once, and moved (two epochs) at most once for each that joined"


@virtual_time
async def test_runs_of_a_killed_orchestrator_go_on_at_once_and_no_effect_that_runs_begins_again() -> None:
    script = Script()
    gate = script.gate("charge")
    async with MultiCluster() as cluster:
        await three(cluster, script, chain())
        keys = [await start_at(cluster, "a") for _ in range(20)]
        await script.called("charge", 20)
        killed_at = cluster.clock.monotonic()
        await cluster.kill("a")
        await cluster.settled()
        assert cluster.clock.monotonic() - killed_at < 1.0
        gate.set()
        for key in keys:
            assert await cluster.result(key) == 1
        assert script.count("charge") == script.count("send") == 20


@virtual_time
async def test_a_killed_orchestrator_of_many_shards_is_replaced_within_a_second_over_a_slow_store() -> None:
    """Claims and reads of 50 ms each on average, for some 20 shards: one after the other they take 1.4 s."""
    script = Script()
    gate = script.gate("charge")
    async with MultiCluster(shards=64, slowest=0.05) as cluster:
        await three(cluster, script, chain())
        keys = [await start_at(cluster, "a") for _ in range(20)]
        await script.called("charge", 20)
        assert len((await cluster.owned())["a"]) > 10
        killed_at = cluster.clock.monotonic()
        await cluster.kill("a")
        await cluster.settled()
        assert cluster.clock.monotonic() - killed_at < 1.0
        gate.set()
        for key in keys:
            assert await cluster.result(key) == 1
        assert script.count("charge") == script.count("send") == 20


@virtual_time
async def test_a_graceful_stop_hands_over_and_nothing_runs_twice() -> None:
    script = Script()
    gates = [script.gate("charge"), script.gate("calc")]
    async with MultiCluster() as cluster:
        await three(cluster, script, chain(), single("compute", "calc"))
        keys = [await start_at(cluster, "b") for _ in range(10)]
        keys += [await start_at(cluster, "b", "single") for _ in range(10)]
        await script.called("charge", 10)
        await until(lambda: script.count("calc") >= 8)  # as many as there are slots
        began = script.count("calc")
        await cluster.stop("b")
        assert "b" not in await cluster.owned()
        await cluster.settled()
        assert script.count("calc") == began
        for gate in gates:
            gate.set()
        for key in keys:
            assert await cluster.result(key) == 1
        assert script.count("charge") == script.count("send") == 10
        assert max(Counter(call.token for call in script.calls).values()) == 1


@virtual_time
async def test_a_frozen_owner_loses_its_shards_and_afterwards_neither_stores_nor_authorises_anything() -> None:
    script = Script()
    async with MultiCluster() as cluster:
        await three(cluster, script, chain())
        keys = [await start_at(cluster, "c") for _ in range(5)]
        for key in keys:
            assert await cluster.result(key) == 1
        gate = script.gate("charge")
        script.calls.clear()
        keys = [await start_at(cluster, "c") for _ in range(5)]
        await script.called("charge", 5)
        member = cluster.members["c"]
        cluster.freeze("c")
        gate.set()  # the results come to a stopped owner
        frozen_at = cluster.clock.monotonic()
        await cluster.clock.sleep(10.0)
        assert "c" not in await cluster.owned()
        accepted = len(member.store.accepted)
        for key in keys:
            assert await cluster.result(key) == 1
        cluster.thaw("c")
        await until(lambda: not member.engine.shards or cluster.clock.monotonic() > frozen_at + 12)
        await cluster.clock.sleep(1.0)
        assert all(epoch_of(cluster, shard) <= epoch for _, shard, epoch in member.store.accepted[accepted:])
        assert script.count("charge") == script.count("send") == 5
        await spread(cluster)  # it is a member again, and gets its share back
        assert "c" in await cluster.owned()


def epoch_of(cluster: MultiCluster, shard: int) -> int:
    return cluster.store._shards[shard].epoch


@virtual_time
async def test_who_does_not_own_a_shard_says_who_does() -> None:
    async with MultiCluster() as cluster:
        await three(cluster, Script(), chain())
        key = await key_owned_by(cluster, "a")
        await cluster.clock.sleep(2 * LOOK_SECONDS)  # the last one may have looked just before the last claim
        with pytest.raises(ShardMoved) as moved:
            await cluster.members["b"].engine.describe_run(key)
        assert moved.value.context["owner"] == "a"
        assert moved.value.context["address"] == "a:7411"


@virtual_time
async def test_an_owner_that_is_robbed_while_idle_notices_within_a_second_and_serves_no_read() -> None:
    script = Script()
    async with MultiCluster() as cluster:
        await three(cluster, script, chain())
        key = await start_at(cluster, "a")
        assert await cluster.result(key) == 1
        await cluster.clock.sleep(30)
        number = cluster.number_of(key)
        engine = cluster.members["a"].engine
        shard = engine.shards[number]
        assert await cluster.store.claim(number, shard.epoch, "ghost") is not None
        await until(lambda: shard.lost is not None, seconds=1.3)


@virtual_time
async def test_both_think_they_own_a_shard_and_one_append_alone_is_accepted() -> None:
    script = Script()
    async with MultiCluster() as cluster:
        await three(cluster, script, chain())
        key = await key_owned_by(cluster, "a")
        number = cluster.number_of(key)
        old = cluster.members["a"].engine
        shard = old.shards[number]
        assert await cluster.store.claim(number, shard.epoch, "ghost") is not None
        answers: asyncio.Queue[object] = asyncio.Queue()
        request = StartRequest(
            namespace="default", workflow_type="chain", input=encode_value(1), instance_id=key.instance_id
        )
        old.start_run(request, answers.put_nowait)
        assert isinstance(await answers.get(), ShardMoved)
        assert cluster.members["a"].store.rejected == 1
        assert not script.calls
        others = [other for other in old.shards.values() if other.id != number]
        assert others  # the others go on
        assert await cluster.result(await start_at(cluster, "a")) == 1
        assert await cluster.start("chain", 1, instance_id=key.instance_id) == key
        assert await cluster.result(key) == 1


@virtual_time
async def test_any_orchestrator_answers_any_call() -> None:
    script = Script()
    gate = script.gate("charge")
    async with MultiCluster() as cluster:
        await three(cluster, script, chain())
        gateway = cluster.members["b"].engine.gateway
        keys = [await key_owned_by(cluster, name) for name in ("a", "b", "c")]
        for key in keys:
            answers: asyncio.Queue[object] = asyncio.Queue()
            gateway.start_run(
                StartRequest(
                    namespace="default", workflow_type="chain", input=encode_value(1), instance_id=key.instance_id
                ),
                answers.put_nowait,
            )
            started = await answers.get()
            assert isinstance(started, StartOutcome)
            assert started.key == key
        await script.called("charge", 3)
        outcomes: asyncio.Queue[object] = asyncio.Queue()
        heard: list[int] = []
        for key in keys:
            assert (await gateway.describe_run(key)).state == "running"
            gateway.wait_run(key, outcomes.put_nowait)
            gateway.follow_run(key, 1, lambda events: heard.extend(e.sequence for e in events or ()))
        assert (await gateway.control(ControlRequest(key=keys[0], action="pause"))).changed
        assert (await gateway.control(ControlRequest(key=keys[0], action="resume"))).changed
        await cluster.kill("a")  # those who wait hear of it from the new owner
        gate.set()
        for _ in keys:
            outcome = await outcomes.get()
            assert isinstance(outcome, RunOutcome)
            assert outcome.state == "completed"
        lengths = [len(await gateway.read_history(key)) for key in keys]
        await until(lambda: len(heard) >= sum(lengths))
        assert sorted(heard) == sorted(number for length in lengths for number in range(1, length + 1))
        listed, _ = await gateway.list_runs("default")
        assert {run.key for run in listed} == set(keys)


@virtual_time
async def test_a_call_that_was_passed_on_is_not_passed_on_again() -> None:
    async with MultiCluster() as cluster:
        await three(cluster, Script(), chain())
        key = await key_owned_by(cluster, "a")
        FORWARDED.set(True)
        with pytest.raises(ShardMoved):
            await cluster.members["b"].engine.gateway.describe_run(key)


@virtual_time
async def test_tasks_of_a_queue_are_done_by_workers_whoever_owns_the_queue_and_the_run() -> None:
    script = Script()
    async with MultiCluster() as cluster:
        await three(cluster, script, chain())
        for name in ("a", "b", "c"):
            gateway = cluster.members[name].engine.gateway
            queue = WorkQueue(gateway, name=f"queue-{name}")
            for number in range(5):
                await queue.enqueue_task(WorkTask(task_id=f"{name}{number}", task_name="send", payload=number))
        for name in ("a", "b", "c"):  # every queue by another orchestrator than before
            queue = WorkQueue(cluster.members["b"].engine.gateway, name=f"queue-{name}")
            for number in range(5):
                async with asyncio.timeout(60):
                    while (await queue.get_task_status(f"{name}{number}")).state != "completed":
                        await cluster.clock.sleep(0.1)
        assert script.count("send") == 15


@virtual_time
async def test_saved_states_are_found_through_any_orchestrator() -> None:
    async with MultiCluster() as cluster:
        await three(cluster, Script())
        first, second = (cluster.members[name].engine.gateway for name in ("a", "b"))
        for _ in range(12):
            key = RunKey("default", "elsewhere", cluster.ids.uuid())
            record = StateRecord(key=key, state="running", sequence=1, data=encode_value({"n": 1}))
            assert await first.records.save_state(record)
            loaded = await second.records.load_state(key)
            assert isinstance(loaded, StateRecord)
            assert loaded.data == record.data


@virtual_time
async def test_events_are_published_and_read_through_any_orchestrator() -> None:
    async with MultiCluster() as cluster:
        await three(cluster, Script())
        first, second = (cluster.members[name].engine.gateway for name in ("a", "b"))
        assert await first.events.create_topic("default", "parted", 16)
        partitions = set()
        for number in range(24):
            key = RunKey("default", f"topic-{number % 6}", cluster.ids.uuid())
            event = EventRecord(key=key, type="noted", payload=encode_value({"n": 1}), event_id=cluster.ids.uuid())
            topic = "parted" if number % 2 else ""
            published = await second.events.publish_event(Publish(event=event, topic=topic, partition_key="same"))
            partitions.add((topic, published.partition))
            found = await first.events.read_events(key)
            assert [one.event_id for one in found] == [event.event_id]
        assert len(partitions) == 2  # a topic's number of partitions is the same everywhere
        assert ("parted", 0) not in partitions


@virtual_time
async def test_a_worker_that_is_drained_gets_nothing_new_from_any_orchestrator() -> None:
    script = Script()
    async with MultiCluster() as cluster:
        await three(cluster, script, single("effect", "send"))
        gateway = cluster.members["a"].engine.gateway
        assert await gateway.drain_node("w1")
        assert not await gateway.drain_node("w1")
        for _ in range(12):
            await cluster.result(await cluster.start("single", 1))
        assert {call.worker for call in script.calls} == {"w2"}
        with pytest.raises(UnknownNode):
            await gateway.drain_node("nobody")


@virtual_time
async def test_an_orchestration_calls_runs_of_other_owners_and_goes_on_when_its_own_dies() -> None:
    script = Script()
    conductor = Worker("conductor")

    @conductor.orchestrator("conduct")
    async def conduct(contract: Any, ctx: Context) -> list[int]:
        return [await ctx.run("chain", number) for number in range(6)]

    leading = workflow("leading")
    leading.orchestrator("lead", handler="conduct")
    async with MultiCluster() as cluster:
        await three(cluster, script, chain(), leading)
        await cluster.add_worker(conductor, "conductor")
        keys = [await start_at(cluster, name, "leading") for name in ("a", "b", "c")]
        await script.called("charge", 4)
        await cluster.kill("a")
        for key in keys:
            assert await cluster.result(key) == list(range(6))
        assert script.count("charge") == script.count("send") == 18


@virtual_time
async def test_an_effect_that_a_deposed_owner_had_sent_is_refused_by_its_worker() -> None:
    script = Script()
    async with MultiCluster() as cluster:
        await three(cluster, script, single("effect", "charge"))
        for worker in cluster.workers.values():
            worker.streams["a"].held = True  # what it sends is in the socket
        key = await start_at(cluster, "a", "single")
        await cluster.clock.sleep(0.2)
        assert not script.calls
        spare = await cluster.add_worker(script.worker("w3"), "w3")
        spare.streams["a"].cut()  # its slots are for the others
        number = cluster.number_of(key)
        taker = cluster.members["b"].engine
        epoch = cluster.members["a"].engine.shards[number].epoch
        await taker._ownership._placement._claim(number, epoch, "a")
        assert await cluster.result(key) == 1
        assert [call.worker for call in script.calls] == ["w3"]
        for name in ("w1", "w2"):
            cluster.workers[name].streams["a"].release()  # and now it arrives
        await cluster.clock.sleep(0.5)
        assert script.count("charge") == 1
        assert sum(worker.runtime.statistics().refused_stale for worker in cluster.workers.values()) > 0


@virtual_time
async def test_a_result_that_comes_to_nobody_is_kept_for_the_next_owner() -> None:
    script = Script()
    gate = script.gate("charge")
    async with MultiCluster() as cluster:
        await three(cluster, script, single("effect", "charge"))
        key = await start_at(cluster, "a", "single")
        await script.called("charge")
        cluster.freeze("b")
        cluster.freeze("c")
        number = cluster.number_of(key)
        engine = cluster.members["a"].engine
        await engine._ownership.stop()
        assert await engine._kernel.claims.release(number)
        gate.set()
        await cluster.clock.sleep(0.5)
        cluster.thaw("b")
        cluster.thaw("c")
        assert await cluster.result(key) == 1
        assert script.count("charge") == 1


@virtual_time
async def test_a_run_that_is_read_back_for_nobody_any_more_complains_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
    script = Script()
    script.gate("charge")
    async with MultiCluster() as cluster:
        await three(cluster, script, chain())
        key = await start_at(cluster, "a")
        kernel = cluster.members["a"].engine._kernel
        record = await cluster.store.find_run(cluster.number_of(key), key.to_bytes())
        assert record is not None
        reading = asyncio.Event()

        async def read(*_: object) -> None:
            await reading.wait()
            raise ShardMoved("it has gone meanwhile")

        monkeypatch.setattr(kernel.loader, "_read", read)
        asking = asyncio.ensure_future(kernel.loader.load(kernel.shard_of(key), record))
        await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        del asking  # its traceback has the frame that waited
        reading.set()
        await until(lambda: not kernel.loader._loading)
        gc.collect()
        assert not complaints
        script.gates["charge"].set()
        assert await cluster.result(key) == 1


@virtual_time
async def test_a_start_without_a_version_takes_the_newest_whoever_registered_it() -> None:
    script = Script()
    async with MultiCluster() as cluster:
        await three(cluster, script, chain())
        longer = chain()
        longer.compute("more", handler="calc")
        definition = dump_definition(msgspec.structs.replace(longer.build(), version=2))
        registered = await cluster.members["a"].engine.gateway.register_definition("default", definition)
        assert registered.version == 2
        for name in ("a", "b", "c"):
            answers: asyncio.Queue[object] = asyncio.Queue()
            key = await key_owned_by(cluster, name)
            request = StartRequest(
                namespace="default", workflow_type="chain", input=encode_value(1), instance_id=key.instance_id
            )
            cluster.members[name].engine.gateway.start_run(request, answers.put_nowait)
            started = await answers.get()
            assert isinstance(started, StartOutcome), started
            assert started.version == 2
