"""Child processes for sync computes: one a slot, spawned (never forked), started when first needed, replaced alone.

Each has a socket pair of its own to its parent, with length-prefixed frames; its end of file is the news of the
child's death, and to the child the news of its parent's. A child that ends under an attempt makes the attempt `failed`
with type WorkerLost, code OXF-4003 and the exit code in the context: the engine counts it like any worker that was lost
with its task, three at most. Killing one child leaves the others alone.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any, Final

import msgspec

from onexflow.core.errors import WorkerLost
from onexflow.core.payload import Failure, Payload
from onexflow.ports.clock import Clock
from onexflow.ports.worker_link import Assignment, Role
from onexflow.worker.errors import Cancelled
from onexflow.worker.handlers import Handler
from onexflow.worker.lanes import RemoteFailure

#: Seconds between SIGTERM and SIGKILL.
GRACE: Final = 1.0
_BOOT: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[2]); "
    "from onexflow.worker.child import main; main(int(sys.argv[1]))"
)
_FRAME_LIMIT: Final = 64 * 1024 * 1024


class Place(msgspec.Struct, frozen=True, array_like=True):
    """Where a child finds a handler: a module (or the path of the parent's main script) and a qualified name."""

    module: str
    qualname: str
    path: str = ""


class Job(msgspec.Struct, frozen=True, array_like=True):
    """A handler, as a child is told of it."""

    place: Place
    role: Role
    name: str
    takes_context: bool


class Run(msgspec.Struct, frozen=True, array_like=True):
    """Parent → child: run this attempt."""

    job: Job
    assignment: Assignment
    started_at: int


class Reported(msgspec.Struct, frozen=True, array_like=True, tag=1):
    """Child → parent: `ctx.progress`."""

    details: Payload


class Done(msgspec.Struct, frozen=True, array_like=True, tag=2):
    """Child → parent: the handler returned."""

    result: Payload


class Raised(msgspec.Struct, frozen=True, array_like=True, tag=3):
    """Child → parent: the handler raised."""

    failure: Failure


FromChild = Reported | Done | Raised

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(FromChild).decode


def frame(message: Any) -> bytes:
    """A message as it goes over the socket."""
    data = _encode(message)
    return len(data).to_bytes(4, "big") + data


def importable(handler: Handler) -> tuple[Place | None, str]:
    """Where a fresh process can import this handler from, or None and the reason why it cannot."""
    function: Any = handler.function
    module, qualname = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
    if handler.node is not None or not module or not qualname:
        return None, "it belongs to an object that lives in this process"
    if "<" in qualname:
        return None, "it is a lambda or is defined inside a function, so a child process cannot import it"
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    if found is not function:
        return None, f"{module}:{qualname} is another object than the handler"
    if module != "__main__":
        return Place(module, qualname), ""
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return Place(main.__spec__.name, qualname), ""  # type: ignore[union-attr]  # checked in the line above
    path = getattr(main, "__file__", None)
    if not path:
        return None, "its main module has no file that a child process could import"
    return Place(module, qualname, str(path)), ""


class ChildPool:
    """All child processes of a runtime."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._children: list[Child] = []

    def child(self) -> Child:
        """A new one, not started yet."""
        child = Child(self._clock)
        self._children.append(child)
        return child

    @property
    def pids(self) -> list[int]:
        """Of those that run."""
        return [child.pid for child in self._children if child.pid]

    async def close(self) -> None:
        """End them all, the busy ones too."""
        await asyncio.gather(*(child.close() for child in self._children))
        self._children.clear()


class Child:
    """One slot's child process, and its successors."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._stopping = False  #: the attempt is to stop: the process is being ended
        self._killer: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Of the running process; 0 when there is none."""
        return self._process.pid if self._process is not None and self._process.poll() is None else 0

    async def run(
        self, job: Job, assignment: Assignment, started_at: int, report: Callable[[Payload], None]
    ) -> Payload:
        """Run one attempt. Raises RemoteFailure (WorkerLost among them), Cancelled after `stop`."""
        self._stopping = False
        if not self.pid or self._reader is None or self._reader.at_eof():
            await self._start()
        if self._stopping:
            await self._end()
            raise Cancelled
        assert self._reader is not None
        assert self._writer is not None
        try:
            self._writer.write(frame(Run(job, assignment, started_at)))
            while True:
                size = int.from_bytes(await self._reader.readexactly(4), "big")
                if size > _FRAME_LIMIT:
                    raise ConnectionResetError
                message = _decode(await self._reader.readexactly(size))
                if type(message) is Reported:
                    report(message.details)
                elif type(message) is Done:
                    return message.result
                elif type(message) is Raised:
                    raise RemoteFailure(message.failure)
        except (asyncio.IncompleteReadError, OSError, msgspec.MsgspecError) as error:
            lost = await self._lost()
            if self._stopping:
                raise Cancelled from error
            raise lost from error

    def stop(self) -> None:
        """End the process under its attempt: SIGTERM, and after a grace SIGKILL."""
        if self._stopping:
            return
        self._stopping = True
        process = self._process
        if process is not None and process.poll() is None:
            process.terminate()
            self._killer = asyncio.get_running_loop().create_task(self._kill_later(process))

    async def close(self) -> None:
        """End the process, whatever it does."""
        self._stopping = True
        await self._end()

    async def _start(self) -> None:
        await self._end()
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", _BOOT, str(theirs.fileno()), json.dumps(sys.path)]

        def spawn() -> subprocess.Popen[bytes]:
            # A process group of its own: Ctrl-C at the terminal is for the worker, which ends its children itself.
            with theirs:
                return subprocess.Popen(command, pass_fds=(theirs.fileno(),), stdin=subprocess.DEVNULL, process_group=0)

        try:
            # In a thread: spawning holds its caller until the new program has begun.
            self._process = await asyncio.to_thread(spawn)
            self._reader, self._writer = await asyncio.open_connection(sock=ours)
        except BaseException:
            ours.close()  # the end of file ends the child, whatever became of its spawning
            raise

    async def _lost(self) -> RemoteFailure:
        """The process ended under its attempt, or broke the protocol: how it ended."""
        process = self._process
        assert process is not None
        try:
            code = await asyncio.to_thread(process.wait, GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = await asyncio.to_thread(process.wait)
        await self._end()
        facts = {"exitcode": code, "pid": process.pid}
        message = f"the child process that ran the handler {_how(code)}"
        return RemoteFailure(Failure("WorkerLost", message, code=WorkerLost.code, retryable=True, context=facts))

    async def _end(self) -> None:
        process, writer = self._process, self._writer
        self._process = self._reader = self._writer = None
        if writer is not None:
            writer.close()
        if process is not None and process.poll() is None:
            process.kill()
            await asyncio.to_thread(process.wait)
        if self._killer is not None:
            self._killer.cancel()
            self._killer = None

    async def _kill_later(self, process: subprocess.Popen[bytes]) -> None:
        await self._clock.sleep(GRACE)
        if process.poll() is None:
            process.kill()


def _how(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
