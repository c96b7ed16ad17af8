"""Ending a registry must not hang: a cancellation is never lost, even when what was waited for comes in the same moment."""

from __future__ import annotations

import asyncio

import pytest

from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.registry.etcd.watch import Watcher
from onexflow.registry.view import View


async def test_a_cancellation_beside_the_awaited_revision_is_not_lost() -> None:
    view = View(lambda *_: None, lambda *_: None)
    client = EtcdClient(EtcdSettings(endpoints=("127.0.0.1:1",)))
    watcher = Watcher(client, view, on_live=lambda: None, on_failure=lambda _: None, expiry_suspect=lambda: False)
    waiting = asyncio.get_running_loop().create_task(watcher.reach(5, 10.0))
    await asyncio.sleep(0)
    [(_, future)] = watcher._waiters
    future.set_result(None)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert watcher._waiters == []
