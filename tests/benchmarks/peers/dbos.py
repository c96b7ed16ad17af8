"""DBOS: steps of a workflow that runs in this process, their results in SQLite or PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dbos import DBOS

from .peer import Wait


@DBOS.step()
async def noop(payload: dict[str, Any]) -> dict[str, bool]:
    return {"ok": True}


@DBOS.step()
async def count(results: list[dict[str, bool]]) -> int:
    return len(results)


@DBOS.workflow()
async def chain(payload: dict[str, Any], length: int) -> dict[str, bool]:
    result = {}
    for _ in range(length):
        result = await noop(payload)
    return result


@DBOS.workflow()
async def fan(items: list[dict[str, Any]]) -> int:
    number: int = await count(await asyncio.gather(*(noop(item) for item in items)))
    return number


class _Dbos:
    """Async workflows, which do more a second than its threads do."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def prepare(self, folder: Path, url: str) -> str:
        place = url.replace("postgresql:", "postgresql+psycopg:") or f"sqlite:///{folder}/dbos.db"
        DBOS(config={"name": "bench", "system_database_url": place, "run_admin_server": False, "log_level": "WARNING"})
        DBOS.launch()
        self._thread.start()
        return f"DBOS {version('dbos')} on {'PostgreSQL' if url else 'SQLite'}"

    def _start(self, workflow: Coroutine[Any, Any, object]) -> Wait:
        return asyncio.run_coroutine_threadsafe(workflow, self._loop).result

    def single(self, payload: dict[str, Any]) -> Wait:
        return self._start(chain(payload, 1))

    def chain(self, payload: dict[str, Any], length: int) -> Wait:
        return self._start(chain(payload, length))

    def fan(self, items: list[dict[str, Any]]) -> Wait:
        return self._start(fan(items))

    def stop(self) -> None:
        DBOS.destroy()
        self._loop.call_soon_threadsafe(self._loop.stop)


peer = _Dbos
