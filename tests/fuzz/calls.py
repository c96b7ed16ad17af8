"""Random calls and streams to an orchestrator that serves a canary meanwhile.

What must hold: nothing is answered UNKNOWN, INTERNAL or DATA_LOSS, which say that our code raised what it did not mean to; no error is
left behind in a task; and the canary, a client of its own with a worker of its own, gets its result each time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from collections.abc import Sequence
from random import Random
from typing import Any, Final

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

import onexflow
from support.grpc_cluster import grpc_address
from support.methods import METHODS

from .values import CANARY, Maker

_OUR_FAULT: Final = (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS)
#: What gRPC itself says, as INTERNAL, to who writes to a stream that the other end has just ended.
_BROKEN_WRITE: Final = "Internal error from Core"
#: Seconds for which an answer is listened to. Who waits for what never comes is left.
_ANSWER: Final = 0.3
#: Seconds in which the canary must have its result, whatever the others do.
_CANARY: Final = 10.0
_CANARY_EVERY: Final = 20  #: calls
_DAMAGED: Final = 0.15
#: Seconds for which each message of a stream is followed by answers, which the next ones may speak of.
_COMPANY: Final = 0.005


class Calls:
    """One orchestrator, and what was found out about it."""

    def __init__(self, seed: int, methods: Sequence[MethodDescriptor] = tuple(METHODS.values())) -> None:
        self._maker = Maker(Random(seed))
        self._methods = methods
        self.codes: Counter[str] = Counter()
        self.findings: list[str] = []
        self.canaries = 0

    async def run(self, rounds: int) -> None:
        asyncio.get_running_loop().set_exception_handler(self._on_loose_end)
        worker = onexflow.Worker()
        worker.compute(f"{CANARY}-work")(_echo)
        flow = onexflow.workflow(CANARY)
        flow.compute("work", handler=f"{CANARY}-work", input="input")
        async with (
            grpc_address(worker) as address,
            await onexflow.connect(address) as canary,
            grpc.aio.insecure_channel(address) as channel,
        ):
            await canary.register(flow.build())
            for number in range(rounds):
                await self._call(channel, self._maker.chance.choice(self._methods))
                if number % _CANARY_EVERY == 0:
                    await self._sing(canary, number)
        gc.collect()  # a task that ended with an error which nobody took tells of it when it is collected
        await asyncio.sleep(0)  # one turn of the loop, in which it is told

    def _on_loose_end(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.findings.append(f"left behind: {context['message']}: {context.get('exception')!r}")

    async def _sing(self, canary: onexflow.Client, number: int) -> None:
        try:
            result = await canary.run(CANARY, number, timeout=_CANARY)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is a finding
            self.findings.append(f"after {number} calls the canary had no result: {error!r}")
        else:
            self.canaries += 1
            if result != number:
                self.findings.append(f"after {number} calls the canary had {result!r}")

    async def _call(self, channel: Any, method: MethodDescriptor) -> None:
        said = [self._said(method) for _ in range(self._maker.chance.randint(1, 6) if method.client_streaming else 1)]
        code, details = grpc.StatusCode.OK, ""
        try:
            async with asyncio.timeout(_ANSWER):
                await self._exchange(channel, method, said)
        except TimeoutError:
            self.codes["(left)"] += 1
            return
        except grpc.aio.AioRpcError as error:
            code, details = error.code(), error.details() or ""
        self.codes[code.name] += 1
        if code in _OUR_FAULT and details != _BROKEN_WRITE:
            what = ", ".join(repr(_readable(method, one))[:400] for one in said)
            self.findings.append(f"{method.full_name}({what}): {code.name}: {details}")

    def _said(self, method: MethodDescriptor) -> bytes:
        data = self._maker.message(method.input_type).SerializeToString()
        return self._maker.damaged(data) if self._maker.chance.random() < _DAMAGED else data

    async def _exchange(self, channel: Any, method: MethodDescriptor, said: list[bytes]) -> None:
        path = f"/{method.containing_service.full_name}/{method.name}"
        if not method.client_streaming and not method.server_streaming:
            self._hear(method, await channel.unary_unary(path)(said[0]))
            return
        if not method.client_streaming:
            call: Any = channel.unary_stream(path)(said[0])
            said = []
        else:
            call = channel.stream_stream(path)()
            said = [*self._opening(method), *said]
        reader = asyncio.ensure_future(self._listen(call, method))
        try:
            with contextlib.suppress(asyncio.InvalidStateError):  # ended: the reader knows why
                for one in said:
                    if reader.done():
                        break
                    await call.write(one)
                    await asyncio.wait([reader], timeout=_COMPANY)
            await reader
        finally:
            call.cancel()
            await asyncio.gather(reader, return_exceptions=True)

    async def _listen(self, call: Any, method: MethodDescriptor) -> None:
        while (answer := await call.read()) is not grpc.aio.EOF:
            self._hear(method, answer)
        if (code := await call.code()) is not grpc.StatusCode.OK:
            raise grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(), await call.details())

    def _opening(self, method: MethodDescriptor) -> list[bytes]:
        """Mostly a first message that is taken, so that something hears the second."""
        if self._maker.chance.random() < 0.2:
            return []
        kind = method.input_type
        first = kind.oneofs_by_name["message"].fields[0]
        assert first.message_type is not None
        hello: Any = self._maker.message(first.message_type)
        if "protocol_version" in first.message_type.fields_by_name:
            hello.protocol_version = 1
        if "worker_id" in first.message_type.fields_by_name:
            hello.worker_id, hello.incarnation = "fuzz-worker", self._maker.text()
            for role in ("effect", "compute", "reducer"):
                hello.handlers.add(name="work", role=role)
                hello.slots[role] = 4
        return [GetMessageClass(kind)(**{first.name: hello}).SerializeToString()]

    def _hear(self, method: MethodDescriptor, answer: bytes) -> None:
        self._maker.hear(GetMessageClass(method.output_type).FromString(answer))


def _readable(method: MethodDescriptor, said: bytes) -> Message | bytes:
    try:
        return GetMessageClass(method.input_type).FromString(said)
    except DecodeError:
        return said


async def _echo(value: int) -> int:
    return value
