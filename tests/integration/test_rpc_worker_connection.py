"""The worker's end of its streams: found, kept up, found again, and ended in good order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from onexflow.core.errors import ProtocolViolation, Unavailable
from onexflow.core.ids import Token
from onexflow.core.payload import Payload
from onexflow.ports import worker_link as link
from onexflow.rpc import worker_session
from onexflow.rpc.server import GrpcServer
from onexflow.rpc.worker_connection import WorkerConnections, connect_worker
from onexflow.testing.faults.relay import Relay
from support.rpc_kit import FakeService, RecordingPeer


class FakeRuntime:
    """Says Hello on every link and remembers what came."""

    def __init__(self) -> None:
        self.links: list[link.OrchestratorLink] = []
        self.messages: list[link.ToWorker] = []
        self.reasons: list[str] = []
        self.changed = asyncio.Event()

    def attach(self, opened: link.OrchestratorLink) -> FakePeer:
        self.links.append(opened)
        opened.send(link.Hello(worker_id="w", incarnation="i", handlers=(), slots={}))
        return FakePeer(self)

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()


class FakePeer:
    def __init__(self, runtime: FakeRuntime) -> None:
        self.runtime = runtime

    def on_message(self, message: link.ToWorker) -> None:
        self.runtime.messages.append(message)
        self.runtime.changed.set()

    def on_close(self, reason: str) -> None:
        self.runtime.reasons.append(reason)
        self.runtime.changed.set()


class NamedService(FakeService):
    """Its Welcome names other orchestrators."""

    def __init__(self, name: str, *others: str) -> None:
        super().__init__()
        self.orchestrator_id = name
        self.others = others

    def accept_worker(self, opened: link.WorkerLink) -> RecordingPeer:
        service = self

        class Peer(RecordingPeer):
            def on_message(self, message: link.FromWorker) -> None:
                self.messages.append(message)
                self.heard.set()
                if isinstance(message, link.Hello):
                    self.link.send(
                        link.Welcome(orchestrator_id=service.orchestrator_id, epochs={}, orchestrators=service.others)
                    )

        peer = Peer(opened)
        self.peers.append(peer)
        return peer


async def test_a_stream_carries_messages_both_ways_and_ends_planned() -> None:
    service = FakeService()
    server = GrpcServer(service, "127.0.0.1:0")
    runtime = FakeRuntime()
    connections = await connect_worker(runtime, await server.start())
    await connections.wait_connected(5)
    assert set(connections.connected.values()) == {"o1"}
    (peer,) = service.peers
    await runtime.until(lambda: len(runtime.messages) == 1)

    peer.link.send(link.Demand({"effect": 1}))
    await runtime.until(lambda: len(runtime.messages) == 2)
    assert runtime.messages[-1] == link.Demand({"effect": 1})
    (opened,) = runtime.links
    result = link.AttemptResult(Token(0, 1, 2), "completed", Payload(b"1"))
    opened.send(link.Credits({"effect": 1}))
    opened.send(link.Credits({"effect": 2, "compute": 1}))
    opened.send(link.Results([result]))
    opened.send(link.Results([result]))
    await peer.until(2)
    assert peer.messages[1:] == [link.Results([result, result], {"effect": 3, "compute": 1})]

    opened.send(link.Goodbye())
    opened.close()
    assert await peer.closed is True
    await runtime.until(lambda: len(runtime.reasons) == 1)
    await connections.close()
    await server.stop(0)
    assert len(runtime.links) == 1


async def test_closing_the_connections_sends_what_is_queued() -> None:
    service = FakeService()
    server = GrpcServer(service, "127.0.0.1:0")
    runtime = FakeRuntime()
    connections = WorkerConnections(runtime, await server.start())
    async with connections:
        await connections.wait_connected(5)
        runtime.links[0].send(link.WorkerDraining())
        runtime.links[0].send(link.Goodbye())
    (peer,) = service.peers
    assert await peer.closed is True
    assert peer.messages[1:] == [link.WorkerDraining(), link.Goodbye()]
    await server.stop(0)


async def test_a_lost_orchestrator_is_found_again_when_it_is_back() -> None:
    first = FakeService()
    server = GrpcServer(first, "127.0.0.1:0")
    address = await server.start()
    runtime = FakeRuntime()
    connections = await connect_worker(runtime, address)
    await connections.wait_connected(5)
    await server.stop(0)
    await runtime.until(lambda: bool(runtime.reasons))
    assert "stopping" in runtime.reasons[0]

    again = FakeService()
    server = GrpcServer(again, address)
    await server.start()
    await connections.wait_connected(5)
    assert len(again.peers) == 1
    await connections.close()
    await server.stop(0)


async def test_a_stream_that_is_broken_by_the_orchestrator_is_opened_again_soon() -> None:
    service = FakeService()
    server = GrpcServer(service, "127.0.0.1:0")
    runtime = FakeRuntime()
    connections = await connect_worker(runtime, await server.start())
    for count in range(1, 4):
        await runtime.until(lambda count=count: len(runtime.messages) == count)  # type: ignore[misc]  # count is bound, not given
        service.peers[-1].link.close("again")
    await runtime.until(lambda: len(runtime.messages) == 4)
    assert runtime.reasons == ["again"] * 3
    await connections.close()
    await server.stop(0)


async def test_other_orchestrators_are_learned_and_one_has_one_stream() -> None:
    second = NamedService("o2")
    second_server = GrpcServer(second, "127.0.0.1:0")
    second_address = await second_server.start()
    first = NamedService("o1", second_address)
    first_server = GrpcServer(first, "127.0.0.1:0")
    first_address = await first_server.start()
    port = first_address.rpartition(":")[2]

    runtime = FakeRuntime()
    connections = await connect_worker(runtime, [first_address, f"localhost:{port}"])
    await runtime.until(lambda: len(connections.connected) == 2)
    assert connections.connected == {first_address: "o1", second_address: "o2"}
    assert (len(first.peers), len(second.peers)) == (1, 1)
    await connections.close()
    await first_server.stop(0)
    await second_server.stop(0)


async def test_one_orchestrator_under_two_addresses_keeps_one_stream() -> None:
    service = NamedService("o1")
    servers = [GrpcServer(service, "127.0.0.1:0"), GrpcServer(service, "127.0.0.1:0")]
    addresses = [await server.start() for server in servers]
    runtime = FakeRuntime()
    connections = await connect_worker(runtime, addresses)
    await runtime.until(lambda: len(runtime.reasons) == 1)
    assert list(connections.connected.values()) == ["o1"]
    assert len(runtime.links) == 2
    await connections.close()
    for server in servers:
        await server.stop(0)


async def test_no_orchestrator_is_said_in_time_and_a_refusal_with_its_reason() -> None:
    connections = await connect_worker(FakeRuntime(), "127.0.0.1:1")
    with pytest.raises(Unavailable):
        await connections.wait_connected(0.3)
    await connections.close()

    class Refusing(FakeService):
        def accept_worker(self, opened: link.WorkerLink) -> RecordingPeer:
            raise ProtocolViolation("Not you.")

    server = GrpcServer(Refusing(), "127.0.0.1:0")
    connections = await connect_worker(FakeRuntime(), await server.start())
    with pytest.raises(ProtocolViolation, match="Not you"):
        await connections.wait_connected(0.5)
    await connections.close()
    await server.stop(0)


async def test_a_cut_connection_is_made_again_at_once() -> None:
    service = FakeService()
    server = GrpcServer(service, "127.0.0.1:0")
    async with Relay(await server.start()) as relay:
        runtime = FakeRuntime()
        connections = await connect_worker(runtime, relay.address)
        await runtime.until(lambda: len(runtime.messages) == 1)
        relay.cut()
        assert await service.peers[0].closed is False
        await runtime.until(lambda: len(runtime.messages) == 2)
        await connections.close()
    await server.stop(0)


@pytest.mark.slow
async def test_a_silent_partition_is_noticed_by_both_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(worker_session.WorkerStream.__init__.__kwdefaults__, "ping_after", 0.1)
    monkeypatch.setitem(worker_session.WorkerStream.__init__.__kwdefaults__, "ping_within", 0.2)
    service = FakeService()
    server = GrpcServer(service, "127.0.0.1:0")
    async with Relay(await server.start()) as relay:
        runtime = FakeRuntime()
        connections = WorkerConnections(runtime, relay.address, ping=(0.2, 0.3))
        async with connections:
            await runtime.until(lambda: len(runtime.messages) == 1)
            relay.drop()
            assert await service.peers[0].closed is False
            await runtime.until(lambda: bool(runtime.reasons))
            relay.resume()
            await runtime.until(lambda: sum(isinstance(one, link.Welcome) for one in runtime.messages) == 2)
    await server.stop(0)
