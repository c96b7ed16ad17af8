"""Following a run's events across lost connections."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, Final

import grpc

from onexflow.client.channels import Channels
from onexflow.codec.wire import workflow as wire
from onexflow.ports.client_link import EventView
from onexflow.v1 import admin_pb2, common_pb2
from onexflow.v1 import workflow_pb2 as pb

#: Seconds between a lost stream and the next one, so that an orchestrator that refuses is not asked without pause.
PAUSE: Final = 0.1


async def follow(
    channels: Channels, key: common_pb2.RunKey, from_sequence: int, patience: float
) -> AsyncIterator[EventView]:
    """Every event from `from_sequence` on, once and in order, until the run's last. After a lost connection it goes on
    behind the last event that was seen; raises Unavailable after `patience` seconds without any orchestrator."""
    wanted = from_sequence
    while True:
        stream: Any = channels.workflows.FollowRun(pb.FollowRunRequest(key=key, from_sequence=wanted))
        try:
            while (message := await stream.read()) is not grpc.aio.EOF:
                for event in message.events:
                    wanted = event.sequence + 1
                    yield wire.event_view(event)
            return
        except grpc.aio.AioRpcError as error:
            if not channels.ask_again(error):
                raise channels.error_of(error) from error
        finally:
            stream.cancel()
        await asyncio.sleep(PAUSE)
        await channels.unary(partial(ask, channels), patience)


async def ask(channels: Channels, seconds: float) -> admin_pb2.GetHealthResponse:
    """Does an orchestrator answer?"""
    return await channels.admin.GetHealth(admin_pb2.GetHealthRequest(), timeout=seconds)
