"""etcd may cut what it tells in the middle of a revision: what is not whole is not there, or a resume would skip its rest."""

from __future__ import annotations

import pytest

from onexflow.registry.etcd.access import EtcdError
from onexflow.registry.etcd.client import EtcdClient
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.registry.etcd.v1 import etcd_pb2 as pb
from onexflow.registry.etcd.watch import Watcher
from onexflow.registry.view import View


class _Call:
    """A stream that gives these answers and then ends."""

    def __init__(self, *answers: pb.WatchResponse) -> None:
        self._answers = list(answers)

    async def read(self) -> pb.WatchResponse | None:
        return self._answers.pop(0) if self._answers else None


def piece(*names: str, revision: int, more: bool) -> pb.WatchResponse:
    prefix = EtcdSettings(endpoints=("a:1",)).prefix
    events = [pb.Event(kv=pb.KeyValue(key=f"{prefix}{name}".encode(), mod_revision=revision)) for name in names]
    return pb.WatchResponse(events=events, fragment=more)


async def follow(*answers: pb.WatchResponse) -> View:
    view = View(lambda *_: None, lambda *_: None)
    client = EtcdClient(EtcdSettings(endpoints=("127.0.0.1:1",)))
    watcher = Watcher(client, view, on_live=lambda: None, on_failure=lambda _: None, expiry_suspect=lambda: False)
    watcher._list_at = float("inf")
    with pytest.raises(EtcdError, match="the watch has ended"):
        await watcher._follow(_Call(*answers))
    return view


async def test_a_revision_is_there_when_its_last_piece_is() -> None:
    view = await follow(piece("a", "b", revision=7, more=True), piece("c", revision=7, more=False))
    assert set(view.actual) == {b"a", b"b", b"c"}
    assert view.revision == 7


async def test_pieces_without_the_last_one_are_as_if_never_told() -> None:
    view = await follow(piece("x", revision=6, more=False), piece("a", "b", revision=7, more=True))
    assert set(view.actual) == {b"x"}
    assert view.revision == 6
