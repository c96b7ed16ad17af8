"""Receipts on the two streams, each end against one that is written from the generated stubs alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from onexflow.client import connect
from onexflow.codec.wire.common import MAX_BATCH
from onexflow.core.ids import Token
from onexflow.ports import worker_link as link
from onexflow.rpc.worker_connection import connect_worker
from onexflow.v1 import worker_pb2, worker_pb2_grpc, workflow_pb2, workflow_pb2_grpc
from support.rpc_kit import FakeService, served

MANY = 9


class Busy:
    """An orchestrator that has taken a first message, and then says nothing until its gate is opened."""

    def __init__(self, welcome: Any, receipt: Any, *, tells: bool) -> None:
        self._welcome, self._receipt = welcome, receipt
        self.gate = asyncio.Event()
        self.taken: list[Any] = []
        self._tells = tells
        self._came = asyncio.Event()

    async def until(self, count: int) -> None:
        while len(self.taken) < count:
            self._came.clear()
            await self._came.wait()

    async def serve(self, context: Any) -> None:
        """The stream: what comes is written down as it comes, and told when the gate is open."""

        async def read() -> None:
            while (message := await context.read()) is not grpc.aio.EOF:
                self.taken.append(message)
                self._came.set()

        reading = asyncio.ensure_future(read())
        await self.until(1)
        await self._say(context, self._welcome)
        await self.gate.wait()
        await self._say(context, self._receipt)
        await reading

    async def _say(self, context: Any, message: Any) -> None:
        message.taken = len(self.taken) if self._tells else 0
        await context.write(message)


@asynccontextmanager
async def busy_with_workers(*, tells: bool) -> AsyncIterator[tuple[Busy, str]]:
    welcome = worker_pb2.SessionResponse(welcome=worker_pb2.Welcome(protocol_version=1, orchestrator_id="o1"))
    busy = Busy(welcome, worker_pb2.SessionResponse(ack=worker_pb2.Ack()), tells=tells)
    async with _listening("WorkerService", "Session", worker_pb2.SessionRequest, busy) as address:
        yield busy, address


@asynccontextmanager
async def busy_with_clients(*, tells: bool) -> AsyncIterator[tuple[Busy, str]]:
    welcome = workflow_pb2.ConnectWelcome(protocol_version=1, orchestrator_id="o1", window=100)
    receipt = workflow_pb2.ConnectResponse(batch=workflow_pb2.AnswerBatch())
    busy = Busy(workflow_pb2.ConnectResponse(welcome=welcome), receipt, tells=tells)
    async with _listening("WorkflowService", "Connect", workflow_pb2.ConnectRequest, busy) as address:
        yield busy, address


@asynccontextmanager
async def _listening(service: str, method: str, request: Any, busy: Busy) -> AsyncIterator[str]:
    async def serve(_: Any, context: Any) -> None:
        await busy.serve(context)

    handler: Any = grpc.stream_stream_rpc_method_handler(
        serve, request_deserializer=request.FromString, response_serializer=lambda message: message.SerializeToString()
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(f"onexflow.v1.{service}", {method: handler})])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


class Runtime:
    """Says Hello, and hears nothing."""

    def __init__(self) -> None:
        self.link: Any = None

    def attach(self, opened: link.OrchestratorLink) -> Runtime:
        self.link = opened
        opened.send(link.Hello(worker_id="w", incarnation="i", handlers=(), slots={}))
        return self

    def on_message(self, message: link.ToWorker) -> None: ...
    def on_close(self, reason: str) -> None: ...


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.mark.parametrize("tells", [True, False])
async def test_a_worker_says_in_one_message_what_has_ended_while_the_orchestrator_was_busy(tells: bool) -> None:
    async with busy_with_workers(tells=tells) as (busy, address):
        runtime = Runtime()
        connections = await connect_worker(runtime, address)
        await connections.wait_connected(5)
        assert busy.taken[0].hello.receipts
        for number in range(MANY):
            runtime.link.send(link.Results([link.AttemptResult(Token(0, 1, number), "completed")]))
            runtime.link.send(link.Credits({"compute": 1}))
            await (turns(5) if tells and number >= 2 else busy.until(2 + number))
        busy.gate.set()
        await busy.until(4 if tells else 1 + MANY)
        sizes = [len(message.results.results) for message in busy.taken[1:]]
        assert sizes == ([1, 1, MANY - 2] if tells else [1] * MANY)
        assert sum(message.results.credits.granted["compute"] for message in busy.taken[1:]) == MANY
        await connections.close()


async def test_a_client_sends_a_full_message_to_a_busy_orchestrator_and_one_that_may_get_company_later() -> None:
    async with busy_with_clients(tells=True) as (busy, address):
        client = await connect(address)
        calls = []
        for number in range(2):
            calls.append(asyncio.ensure_future(client.start("any", input=number)))
            await busy.until(2 + number)
        calls += [asyncio.ensure_future(client.start("any", input=number)) for number in range(MAX_BATCH - 1)]
        await turns(5)
        assert len(busy.taken) == 3
        calls.append(asyncio.ensure_future(client.start("any", input=0)))
        await busy.until(4)
        assert len(busy.taken[3].batch.starts) == MAX_BATCH
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await client.close()


@pytest.mark.parametrize("tells", [True, False])
async def test_a_client_asks_in_one_message_what_was_asked_while_the_orchestrator_was_busy(tells: bool) -> None:
    async with busy_with_clients(tells=tells) as (busy, address):
        client = await connect(address)
        assert busy.taken[0].hello.receipts
        calls = []
        for number in range(MANY):
            calls.append(asyncio.ensure_future(client.start("any", input=number)))
            await (turns(5) if tells and number >= 2 else busy.until(2 + number))
        busy.gate.set()
        await busy.until(4 if tells else 1 + MANY)
        sizes = [len(message.batch.starts) for message in busy.taken[1:]]
        assert sizes == ([1, 1, MANY - 2] if tells else [1] * MANY)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await client.close()


@pytest.mark.parametrize("asked", [True, False])
async def test_a_worker_that_asks_is_told_soon_after_every_second_message(asked: bool) -> None:
    service = FakeService()
    async with served(service) as (_, channel):
        stream: Any = worker_pb2_grpc.WorkerServiceStub(channel).Session()
        hello = worker_pb2.Hello(protocol_version=1, worker_id="w", incarnation="i", receipts=asked)
        await stream.write(worker_pb2.SessionRequest(hello=hello))
        assert (await stream.read()).taken == (1 if asked else 0)
        credits = worker_pb2.SessionRequest(credits=worker_pb2.Credits(granted={"compute": 1}))
        for _ in range(2):
            await stream.write(credits)
        if asked:
            receipt = await stream.read()
            assert (receipt.taken, receipt.WhichOneof("message"), len(receipt.ack.tokens)) == (3, "ack", 0)
        await service.peers[-1].until(3)
        service.peers[-1].link.send(link.Demand({"compute": 1}))
        said = await stream.read()
        assert (said.taken, said.WhichOneof("message")) == (3 if asked else 0, "demand")
        stream.cancel()


@pytest.mark.parametrize("asked", [True, False])
async def test_a_client_that_asks_is_told_soon_after_every_second_message(asked: bool) -> None:
    service = FakeService()
    async with served(service) as (_, channel):
        stream: Any = workflow_pb2_grpc.WorkflowServiceStub(channel).Connect()
        hello = workflow_pb2.ConnectHello(protocol_version=1, client_id="c", receipts=asked)
        await stream.write(workflow_pb2.ConnectRequest(hello=hello))
        assert (await stream.read()).taken == (1 if asked else 0)
        for call_id in (1, 2):
            await stream.write(_wait(call_id, "stuck"))
        if asked:
            receipt = await stream.read()
            assert (receipt.taken, receipt.WhichOneof("message"), len(receipt.batch.answers)) == (3, "batch", 0)
        await stream.write(_wait(3, "echo"))
        said = await stream.read()
        assert (said.taken, len(said.batch.answers)) == (4 if asked else 0, 1)
        stream.cancel()


def _wait(call_id: int, workflow_type: str) -> workflow_pb2.ConnectRequest:
    request = workflow_pb2.ConnectRequest()
    wait = request.batch.waits.add(call_id=call_id)
    wait.key.workflow_type = workflow_type
    wait.key.instance_id = "01890000-0000-7000-8000-000000000001"
    return request
