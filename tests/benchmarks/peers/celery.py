"""Celery on a Redis of its own: one worker of two processes, chains and a chord; Redis syncs its log each second."""

from __future__ import annotations

import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from celery import Celery, chain, chord

from .peer import Wait
from .tree import end

READY_SECONDS = 30.0

app = Celery("bench")


@app.task(name="noop")
def noop(payload: dict[str, Any]) -> dict[str, bool]:
    return {"ok": True}


@app.task(name="count")
def count(results: list[dict[str, bool]]) -> int:
    return len(results)


class _Celery:
    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []

    def prepare(self, folder: Path, url: str) -> str:
        socket = folder / "redis.sock"
        place = f"redis+socket://{socket}"
        self._spawn(
            "redis-server", "--port", "0", "--unixsocket", str(socket), "--dir", str(folder),
            "--save", "", "--appendonly", "yes", "--appendfsync", "everysec",
        )  # fmt: skip
        until = time.monotonic() + READY_SECONDS
        while not socket.exists():
            assert time.monotonic() < until, "Redis did not start"
            time.sleep(0.02)
        app.conf.update(broker_url=place, result_backend=place)
        self._spawn(
            sys.executable, "-m", "celery", "--app", __name__, "--broker", place, "--result-backend", place,
            "worker", "--concurrency", "2", "--loglevel", "warning",
        )  # fmt: skip
        noop.delay({}).get(timeout=READY_SECONDS)
        redis = app.broker_connection().default_channel.client.info("server")["redis_version"]
        return f"Celery {version('celery')} on Redis {redis}, fsync each second"

    def _spawn(self, *command: str) -> None:
        self._processes.append(subprocess.Popen(command))

    def single(self, payload: dict[str, Any]) -> Wait:
        wait: Wait = noop.delay(payload).get
        return wait

    def chain(self, payload: dict[str, Any], length: int) -> Wait:
        wait: Wait = chain(*(noop.si(payload) for _ in range(length))).apply_async().get
        return wait

    def fan(self, items: list[dict[str, Any]]) -> Wait:
        wait: Wait = chord([noop.s(item) for item in items])(count.s()).get
        return wait

    def stop(self) -> None:
        for process in reversed(self._processes):
            end({process.pid})


peer = _Celery
