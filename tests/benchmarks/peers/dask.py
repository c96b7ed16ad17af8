"""Dask: a scheduler and two worker processes of one thread each, all in memory."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster

from .peer import Wait


def noop(payload: dict[str, Any], before: object = None) -> dict[str, bool]:
    return {"ok": True}


def count(results: list[dict[str, bool]]) -> int:
    return len(results)


class _Dask:
    def __init__(self) -> None:
        self._cluster: Any = None
        self._client: Any = None

    def prepare(self, folder: Path, url: str) -> str:
        dask.config.set(temporary_directory=str(folder))
        self._cluster = LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None)
        self._client = Client(self._cluster)
        return f"Dask {version('distributed')}"

    def single(self, payload: dict[str, Any]) -> Wait:
        wait: Wait = self._client.submit(noop, payload, pure=False).result
        return wait

    def chain(self, payload: dict[str, Any], length: int) -> Wait:
        task = None
        for _ in range(length):
            task = self._client.submit(noop, payload, task, pure=False)
        assert task is not None
        wait: Wait = task.result
        return wait

    def fan(self, items: list[dict[str, Any]]) -> Wait:
        wait: Wait = self._client.submit(count, self._client.map(noop, items, pure=False), pure=False).result
        return wait

    def stop(self) -> None:
        for part in (self._client, self._cluster):
            if part is not None:
                part.close()


peer = _Dask
