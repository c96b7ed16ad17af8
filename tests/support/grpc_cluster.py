"""One orchestrator over memory ports, served over gRPC, with workers on real streams: all in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import onexflow
from onexflow.app.calling import caller_over
from onexflow.app.system import SystemClock, SystemIds
from onexflow.codec.payload import JsonCodec
from onexflow.engine.orchestrator import Orchestrator
from onexflow.registry.memory import MemoryRegistry, MemoryRegistryHub
from onexflow.rpc.server import GrpcServer
from onexflow.rpc.worker_connection import connect_worker
from onexflow.storage.memory import MemoryStore
from onexflow.worker.runtime import WorkerRuntime

CONNECTED_WITHIN = 20.0
"""Seconds: a deadline, not a wait. What a test asks for by name (client.node) must not be told before the Hello is in."""


@asynccontextmanager
async def grpc_cluster(*workers: onexflow.Worker) -> AsyncIterator[onexflow.Client]:
    async with grpc_address(*workers) as address, await onexflow.connect(address) as client:
        yield client


@asynccontextmanager
async def grpc_address(*workers: onexflow.Worker) -> AsyncIterator[str]:
    """The same for those who bring clients of their own."""
    clock, ids = SystemClock(), SystemIds()
    async with AsyncExitStack() as stack:
        registry = MemoryRegistry(MemoryRegistryHub(clock))
        await registry.start()
        stack.push_async_callback(registry.close)
        orchestrator = Orchestrator(
            MemoryStore(clock),
            registry,
            clock=clock,
            ids=ids,
            codec=JsonCodec(),
            orchestrator_id="o1",
            incarnation="i1",
        )
        await orchestrator.start()
        stack.push_async_callback(orchestrator.stop)
        server = GrpcServer(orchestrator, "127.0.0.1:0")
        address = await server.start()
        stack.push_async_callback(server.stop, 1.0)
        for number, worker in enumerate(workers):
            runtime = WorkerRuntime(
                worker,
                worker_id=f"w{number}",
                incarnation=f"w{number}-1",
                clock=clock,
                caller=caller_over(lambda: [address]),
            )
            await stack.enter_async_context(runtime)
            connections = await connect_worker(runtime, address)
            stack.push_async_callback(connections.close)
            await connections.wait_connected(CONNECTED_WITHIN)
        yield address


@asynccontextmanager
async def grpc_worker(address: str, worker: onexflow.Worker, worker_id: str) -> AsyncIterator[None]:
    """One more worker, as the binary runs it: from when it is connected and its nodes are initialised to the end of
    their shutdown()."""
    runtime = WorkerRuntime(
        worker,
        worker_id=worker_id,
        incarnation=f"{worker_id}-1",
        clock=SystemClock(),
        caller=caller_over(lambda: [address]),
    )
    runtime.open()
    connections = await connect_worker(runtime, address)
    try:
        await runtime.initialize()
        await connections.wait_connected(CONNECTED_WITHIN)
        yield
        await runtime.drain(5.0)
    finally:
        await runtime.close()
        await connections.close()
