"""The bridge between the engine and a real NATS server: everything arrives, in order, whatever happens to either side."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from nats.js.api import DiscardPolicy

import onexflow
from nats_support import NatsServer
from onexflow.app.serve_bridge import tls_of
from onexflow.bridge import jetstream
from onexflow.bridge import publisher as sending
from onexflow.bridge.bridge import Bridge
from onexflow.bridge.jetstream import JetStream
from onexflow.config import NatsSettings
from onexflow.core.errors import InvalidTransition, NatsUnavailable, NatsUnusable
from onexflow.core.ids import RunKey
from onexflow.testing import Cluster
from onexflow.testing.faults.relay import Relay
from support.bus_kit import cut, publish, stream
from support.nats_kit import bridging, first_seen, ids, key_of, real_cluster, target, within
from support.security_kit import Authority

pytestmark = pytest.mark.slow


@pytest.fixture
async def server() -> AsyncIterator[NatsServer]:
    async with NatsServer() as running:
        yield running


async def ready(cluster: Cluster) -> None:
    """With a workflow `doubling` and a worker for it."""
    worker = onexflow.Worker("w")

    @worker.compute
    async def double(contract: Any) -> Any:
        return contract.number * 2

    flow = onexflow.workflow("doubling")
    flow.compute("double")
    await cluster.register(flow.build())
    await cluster.add_worker(worker)


async def run_many(cluster: Cluster, first: int, count: int) -> dict[RunKey, list[int]]:
    """Runs, and the numbers of their events."""
    keys = [(await cluster.start("doubling", {"number": n})).key for n in range(first, first + count)]
    for key in keys:
        await cluster.wait(key)
    return {key: [event.sequence for event in await cluster.history(key)] for key in keys}


async def some_stored(bridge: Bridge) -> None:
    await within(lambda: bridge.publisher.stored > 5, "some events")


async def test_every_event_of_runs_and_streams_arrives_once_and_in_order(server: NatsServer) -> None:
    async with real_cluster() as cluster, bridging(cluster.engine.events, target(server)) as bridge:
        await ready(cluster)
        wanted = await run_many(cluster, 0, 60)
        for n in range(30):
            await publish(cluster.engine.events, stream("a"), n)
        wanted[stream("a")] = list(range(1, 31))
        total = sum(map(len, wanted.values()))
        await within(lambda: bridge.publisher.stored >= total, "all events")
        found = await server.stored()
        assert first_seen(found) == wanted
        assert len(found) == total
        assert bridge.publisher.repeated == 0
        body = msgspec.json.decode(found[0].data)
        (record,) = await cluster.engine.events.read_events(key_of(found[0]), 1, 1)
        assert body["event_id"] == str(record.event_id)
        assert body["payload"] == msgspec.json.decode(record.payload.data)
        assert found[0].subject == "onexflow.local.default.doubling.workflow.created"


async def test_a_bridge_that_is_cut_off_goes_on_where_it_was(server: NatsServer) -> None:
    async with real_cluster() as cluster:
        await ready(cluster)
        wanted: dict[RunKey, list[int]] = {}
        for round_ in range(4):
            async with bridging(cluster.engine.events, target(server), gently=False, window=16) as bridge:
                wanted |= await run_many(cluster, 10 * round_, 10)
                await some_stored(bridge)
        total = sum(map(len, wanted.values()))
        async with bridging(cluster.engine.events, target(server)) as bridge:
            await within(lambda: bridge.publisher.waiting == 0 and bridge.readings[0]._feed.connected, "the rest")
            await caught_up(cluster)
            found = await server.stored()
            assert first_seen(found) == wanted
            assert len(found) == total, "JetStream has dropped what came twice"
        async with bridging(cluster.engine.events, target(server)) as bridge:
            await publish(cluster.engine.events, stream("new"), 1)
            await within(lambda: bridge.publisher.stored == 1, "the one new event")
            await caught_up(cluster)
            assert bridge.publisher.stored == 1, "what was acknowledged does not come again"


async def test_nats_killed_and_started_again_loses_nothing(server: NatsServer) -> None:
    async with real_cluster() as cluster, bridging(cluster.engine.events, target(server)) as bridge:
        await ready(cluster)
        wanted = await run_many(cluster, 0, 10)
        server.kill()
        wanted |= await run_many(cluster, 10, 20)
        await within(lambda: bridge.publisher.trouble, "a word about NATS")
        assert bridge.publisher.waiting > 0
        await server.start()
        await within(lambda: bridge.publisher.stored >= sum(map(len, wanted.values())), "all events")
        assert bridge.publisher.trouble == ""
        found = await server.stored()
        assert first_seen(found) == wanted
        assert len(set(ids(found))) == len(found)


async def test_a_nats_that_hangs_makes_only_the_bridge_lag(server: NatsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "ACK_WITHIN", 0.5)
    async with Relay(server.address) as relay, real_cluster() as cluster:
        await ready(cluster)
        to = target(f"nats://{relay.address}")
        async with bridging(cluster.engine.events, to, window=50) as bridge:
            wanted = await run_many(cluster, 0, 5)
            await within(lambda: bridge.publisher.stored >= sum(map(len, wanted.values())), "the first events")
            relay.hold()
            wanted |= await run_many(cluster, 5, 100)  # 600 events behind a window of 50
            assert bridge.publisher.waiting <= 50
            await within(lambda: "no acknowledgement" in bridge.publisher.trouble, "the link to be given up")
            (group,) = await cluster.engine.events.list_groups("default")
            assert group.lag > 500, "and it is seen how far it is behind"
            relay.resume()
            await within(lambda: bridge.publisher.stored >= sum(map(len, wanted.values())), "all events")
            assert first_seen(await server.stored()) == wanted


async def test_a_message_whose_acknowledgement_was_lost_is_stored_once(server: NatsServer) -> None:
    async with Relay(server.address) as relay, real_cluster() as cluster:
        bus, to = cluster.engine.events, target(f"nats://{relay.address}")
        async with bridging(bus, to) as bridge:
            relay.hold("to_client")
            for n in range(20):
                await publish(bus, stream(f"s{n}"), n)
            async with server.connected() as client:
                info = client.jetstream().stream_info
                while (await info("onexflow")).state.messages < 20:
                    await asyncio.sleep(0.01)
            assert bridge.publisher.stored == 0
            relay.cut()
            relay.resume()
            await within(lambda: bridge.publisher.stored == 20, "the acknowledgements")
            assert bridge.publisher.repeated == 20
            assert len(await server.stored()) == 20


async def test_a_full_stream_makes_the_bridge_wait_for_space(server: NatsServer) -> None:
    await server.make_stream(max_msgs=25, discard=DiscardPolicy.NEW)
    async with real_cluster() as cluster, bridging(cluster.engine.events, target(server)) as bridge:
        for n in range(40):
            await publish(cluster.engine.events, stream(f"s{n % 5}"), n)
        await within(lambda: "maximum messages exceeded" in bridge.publisher.trouble, "a word about the full stream")
        assert bridge.publisher.stored == 25
        async with server.connected() as client:
            config = (await client.jetstream().stream_info("onexflow")).config
            await client.jetstream().update_stream(config.evolve(max_msgs=1000))
        await within(lambda: bridge.publisher.stored == 40, "the rest")
        assert first_seen(await server.stored()) == {stream(f"s{n}"): list(range(1, 9)) for n in range(5)}


async def test_what_fits_does_not_overtake_what_does_not(server: NatsServer) -> None:
    await server.make_stream(max_bytes=20_000, discard=DiscardPolicy.NEW)
    async with real_cluster() as cluster, bridging(cluster.engine.events, target(server)) as bridge:
        bus = cluster.engine.events
        await asyncio.gather(
            *(publish(bus, stream("a"), value, sequence=n) for n, value in ((1, "x"), (2, "x" * 30_000), (3, "y")))
        )
        await within(lambda: "maximum bytes exceeded" in bridge.publisher.trouble, "a word about the full stream")
        await within(lambda: bridge.publisher.repeated > 2, "a second try")
        await publish(bus, stream("b"), "z")
        await within(lambda: bridge.publisher.stored == 2, "what fits, of another stream")
        async with server.connected() as client:
            config = (await client.jetstream().stream_info("onexflow")).config
            await client.jetstream().update_stream(config.evolve(max_bytes=1_000_000))
        await within(lambda: bridge.publisher.stored == 4, "the rest")
        assert first_seen(await server.stored())[stream("a")] == [1, 2, 3]


async def test_what_is_larger_than_nats_takes_is_a_dead_letter_and_can_come_later() -> None:
    async with NatsServer("max_payload: 20000") as server, real_cluster() as cluster:
        async with bridging(cluster.engine.events, target(server)) as bridge:
            for value in ("small", "x" * 50_000, "small again"):
                await publish(cluster.engine.events, stream("a"), value)
            await within(lambda: bridge.publisher.stored == 2 and bridge.publisher.parked == 1, "all three")
            await within_letters(cluster, 1)
            (letter,) = await cluster.engine.events.list_dead_letters("default", "nats")
            assert letter.delivery.event.sequence == 2
            assert "max_payload" in letter.error.message
        server.kill()
        server._config = "max_payload: 100000"
        await server.start()
        async with bridging(cluster.engine.events, target(server)) as bridge:
            assert await cluster.engine.events.requeue_dead_letters("default", "nats") == 1
            await within(lambda: bridge.publisher.stored == 1, "the large one")
        assert first_seen(await server.stored()) == {stream("a"): [1, 3, 2]}


async def test_what_the_stream_does_not_take_for_its_size_is_a_dead_letter(server: NatsServer) -> None:
    await server.make_stream(max_msg_size=20_000)
    async with real_cluster() as cluster, bridging(cluster.engine.events, target(server)) as bridge:
        await publish(cluster.engine.events, stream("a"), "x" * 50_000)
        await publish(cluster.engine.events, stream("a"), "small")
        await within(lambda: bridge.publisher.stored == 1 and bridge.publisher.parked == 1, "both")
        await within_letters(cluster, 1)


async def test_a_stream_that_is_deleted_is_made_again(server: NatsServer) -> None:
    async with real_cluster() as cluster, bridging(cluster.engine.events, target(server)) as bridge:
        await publish(cluster.engine.events, stream("a"), 1)
        await within(lambda: bridge.publisher.stored == 1, "the first")
        async with server.connected() as client:
            await client.jetstream().delete_stream("onexflow")
        await publish(cluster.engine.events, stream("a"), 2)
        await within(lambda: bridge.publisher.stored == 2, "the second")
        assert first_seen(await server.stored()) == {stream("a"): [2]}


async def test_a_stream_that_is_deleted_and_not_to_be_made_is_waited_for(server: NatsServer) -> None:
    await server.make_stream()
    async with real_cluster() as cluster, bridging(cluster.engine.events, target(server, create=False)) as bridge:
        async with server.connected() as client:
            await client.jetstream().delete_stream("onexflow")
        await publish(cluster.engine.events, stream("a"), 1)
        await within(lambda: "no stream 'onexflow'" in bridge.publisher.trouble, "a word about the stream")
        await server.make_stream()
        await within(lambda: bridge.publisher.stored == 1, "the event")


async def test_events_that_were_cut_before_they_were_read_are_counted_and_the_rest_comes(server: NatsServer) -> None:
    async with real_cluster() as cluster:
        bus = cluster.engine.events
        async with bridging(bus, target(server)):
            pass
        for name in ("a", "b", "c"):
            for n in range(4):
                await publish(bus, stream(name), n)
            await cut(cluster, stream(name), 3)
        async with bridging(bus, target(server)) as bridge:
            await within(lambda: bridge.publisher.stored == 6, "what is left")
            assert bridge.readings[0].missed == 6
            server.kill()  # and while it lags
            await within(lambda: bridge.publisher.trouble, "NATS to be missed")
        async with NatsServer() as other, bridging(bus, target(other), window=1) as bridge:
            other.freeze()
            for n in range(4):
                await publish(bus, stream("d"), n)
            await within(lambda: bridge.publisher.waiting == 1, "the window to be full")
            await cut(cluster, stream("d"), 4)
            other.thaw()
            await within(lambda: bridge.publisher.stored == 2, "what had been read, and what is left")
            assert bridge.readings[0].missed == 3, "a cut is counted whole, though it began with one that had gone out"
            assert first_seen(await other.stored()) == {stream("d"): [1, 4]}


async def test_only_the_wanted_events_go_out(server: NatsServer) -> None:
    async with real_cluster() as cluster:
        bus = cluster.engine.events
        await publish(bus, stream("a", "wanted"), 1, type="task.completed")
        await publish(bus, stream("a", "wanted"), 2, type="task.failed")
        await publish(bus, stream("a", "other"), 3, type="task.completed")
        await publish(bus, stream("a", "wanted", "blue"), 4, type="task.completed")
        await publish(bus, stream("a", "wanted", "red"), 5, type="task.completed")
        plan: dict[str, Any] = {
            "topics": ("wanted",),
            "event_types": ("task.completed",),
            "namespaces": ("default", "blue"),
        }
        async with bridging(bus, target(server), **plan) as bridge:
            await within(lambda: bridge.publisher.stored == 2, "two events")
            await caught_up(cluster)
        found = await server.stored()
        assert sorted(message.subject for message in found) == [
            "onexflow.local.blue.wanted.task.completed",
            "onexflow.local.default.wanted.task.completed",
        ]
        with pytest.raises(InvalidTransition) as refused:
            async with bridging(bus, target(server)):
                raise AssertionError("the group has another filter")
        assert "--events-group" in refused.value.context["hint"]


async def test_names_of_any_kind_make_legal_subjects(server: NatsServer) -> None:
    names = ["a.b", "*", ">", "with space", "$SYS", "größe", "x" * 255, "\n\r\t", "%41", "日" * 255]
    async with real_cluster() as cluster, bridging(cluster.engine.events, target(server)) as bridge:
        for name in names:
            if not name.startswith("$"):
                await publish(cluster.engine.events, stream("s", name), 1, type=name)
        await within(lambda: bridge.publisher.stored == len(names) - 1, "all of them")
        found = await server.stored()
        assert {msgspec.json.decode(message.data)["workflow_type"] for message in found} == set(names) - {"$SYS"}
        assert all(message.subject.count(".") >= 4 for message in found)


async def test_a_wrong_start_says_what_is_wrong(server: NatsServer) -> None:
    await server.make_stream("elsewhere", subjects=["other.>"])
    await server.make_stream("mute", subjects=["onexflow.local.>"], no_ack=True)
    async with real_cluster() as cluster:

        async def refused(to: Any) -> Any:
            with pytest.raises((NatsUnavailable, NatsUnusable)) as error:
                async with bridging(cluster.engine.events, to):
                    raise AssertionError("it cannot begin")
            return error.value

        error = await refused(target("nats://127.0.0.1:9"))
        assert isinstance(error, NatsUnavailable)
        assert "nats://127.0.0.1:9 cannot be reached" in str(error)
        error = await refused(target(server, stream="gone", create=False))
        assert "no stream 'gone'" in str(error)
        assert "--nats-create-stream" in error.context["hint"]
        error = await refused(target(server, stream="elsewhere"))
        assert "takes the subjects other.>, and not onexflow.local.>" in str(error)
        assert "acknowledges nothing" in str(await refused(target(server, stream="mute")))
        assert "overlap" in str(await refused(target(server, stream="second")))


@pytest.mark.parametrize("says", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"x" * 200_000, b"INFO nonsense\r\n", None])
async def test_what_speaks_no_nats_is_unavailable(says: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream, "CONNECT_WITHIN", 1.0)
    serving: list[asyncio.StreamWriter] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.append(writer)
        if says is not None:
            writer.write(says)
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        with pytest.raises(NatsUnavailable, match=f"NATS at nats://127.0.0.1:{port} cannot be reached: ."):
            await JetStream(target(f"nats://127.0.0.1:{port}")).dial(_Deaf())
        for writer in serving:
            writer.transport.abort()


async def test_a_server_without_jetstream_is_told(server: NatsServer) -> None:
    server.kill()
    server.jetstream = False
    await server.start()
    with pytest.raises(NatsUnavailable, match="JetStream does not") as error:
        await JetStream(target(server)).dial(_Deaf())
    assert "nats-server -js" in error.value.context["hint"]


async def test_any_member_of_a_list_will_do(server: NatsServer) -> None:
    link = await JetStream(target(server, servers=("nats://127.0.0.1:9", server.url, "nats://127.0.0.1:10"))).dial(
        _Deaf()
    )
    await link.close()
    await link.close()


async def test_credentials_and_permissions() -> None:
    users = """
        authorization { users = [
          { user: "root", password: "r" },
          { user: "good", password: "g", permissions: {
              publish: ["onexflow.local.>", "$JS.API.STREAM.INFO.onexflow"], subscribe: ["_INBOX.>"] } },
          { user: "narrow", password: "n", permissions: {
              publish: ["onexflow.local.*.good.>", "$JS.API.STREAM.INFO.onexflow"], subscribe: ["_INBOX.>"] } },
          { user: "blind", password: "b", permissions: { publish: ["onexflow.local.>"], subscribe: ["_INBOX.>"] } },
        ] }
    """
    async with NatsServer(users) as server, real_cluster() as cluster:
        bus = cluster.engine.events
        async with server.connected(user="root", password="r") as client:
            await client.jetstream().add_stream(name="onexflow", subjects=["onexflow.local.>"])
        for user, password, words in (
            ("good", "wrong", "refuses these credentials"),
            ("", "", "refuses these credentials"),
            ("blind", "b", "permissions violation for publish"),
        ):
            with pytest.raises(NatsUnusable, match=words):
                await JetStream(target(server, user=user, password=password)).dial(_Deaf())
        async with bridging(bus, target(server, user="good", password="g", create=False)) as bridge:
            await publish(bus, stream("a", "good"), 1)
            await within(lambda: bridge.publisher.stored == 1, "an event")
        async with bridging(bus, target(server, user="narrow", password="n")) as bridge:
            await publish(bus, stream("a", "good"), 2)
            await publish(bus, stream("a", "bad"), 1)
            await within(lambda: bridge.publisher.stored == 1 and bridge.publisher.repeated > 1, "one of the two")
            await within(lambda: "does not permit" in bridge.publisher.trouble, "a word about the permission")
            assert bridge.publisher.waiting == 1


async def test_tls_with_certificates_of_both_sides(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    its, own = authority.issue("127.0.0.1", file="server"), authority.issue("bridge@example.org", file="bridge")
    config = (
        f'tls {{ cert_file: "{its.certificate}", key_file: "{its.key}", ca_file: "{authority.file}", verify: true }}'
    )
    anonymous = NatsSettings(ca=authority.file)
    known = msgspec.structs.replace(anonymous, certificate=own.certificate, key=own.key)
    async with NatsServer(config) as server, real_cluster() as cluster:
        async with bridging(cluster.engine.events, target(server, tls=tls_of(known))) as bridge:
            await publish(cluster.engine.events, stream("a"), 1)
            await within(lambda: bridge.publisher.stored == 1, "an event")
        for wrong in (tls_of(anonymous), None):
            with pytest.raises((NatsUnavailable, NatsUnusable)):
                await JetStream(target(server, tls=wrong)).dial(_Deaf())


class _Deaf:
    def answered(self, number: int, refusal: object) -> None: ...

    def denied(self, subject: str, reason: str) -> None: ...

    def lost(self, reason: str) -> None: ...


async def within_letters(cluster: Cluster, count: int) -> None:
    async with asyncio.timeout(20):
        while len(await cluster.engine.events.list_dead_letters("default", "nats")) < count:
            await asyncio.sleep(0.01)


async def caught_up(cluster: Cluster) -> None:
    """Return when the group has acknowledged everything."""
    async with asyncio.timeout(20):
        while any(group.lag for group in await cluster.engine.events.list_groups("default")):
            await asyncio.sleep(0.01)
