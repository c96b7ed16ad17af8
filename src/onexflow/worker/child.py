"""The program of a child process: runs one attempt after another for its parent, and ends with it.

The main thread runs the handler. A second thread reads the socket, so that the parent's death is noticed while a
handler is busy. Nothing here touches gRPC or the event loop.
"""

from __future__ import annotations

import importlib
import os
import queue
import runpy
import socket
import sys
import threading
import time
import types
from collections.abc import Callable
from typing import Any

import msgspec

from onexflow.codec.payload import JsonCodec
from onexflow.core.errors import ModuleNotImportable
from onexflow.core.payload import Payload
from onexflow.worker.children import Done, Job, Place, Raised, Reported, Run, frame
from onexflow.worker.context import Context
from onexflow.worker.contracts import dumper_for, loader_for
from onexflow.worker.errors import failure_of
from onexflow.worker.handlers import Handler

_CODEC = JsonCodec()


def main(descriptor: int) -> None:
    """Serve the parent at the other end of this socket until it closes it."""
    link = socket.socket(fileno=descriptor)
    jobs: queue.SimpleQueue[Run] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(link, jobs), daemon=True).start()
    programs: dict[Job, Callable[[Run], Payload]] = {}
    while True:
        run = jobs.get()
        try:
            program = programs.get(run.job)
            if program is None:
                program = programs[run.job] = _program(run.job, link)
            answer: Any = Done(program(run))
        except (SystemExit, KeyboardInterrupt):  # ends this process: the attempt's worker is lost, as with os._exit()
            raise
        except BaseException as error:  # noqa: BLE001 — whatever it is, it is the handler's
            answer = Raised(failure_of(error))
        link.sendall(frame(answer))


def _read(link: socket.socket, jobs: queue.SimpleQueue[Run]) -> None:
    decode = msgspec.msgpack.Decoder(Run).decode
    with link.makefile("rb") as stream:
        while len(head := stream.read(4)) == 4:
            size = int.from_bytes(head, "big")
            data = stream.read(size)
            if len(data) < size:
                break
            jobs.put(decode(data))
    os._exit(0)  # the parent is gone; the main thread may be busy for hours


def _program(job: Job, link: socket.socket) -> Callable[[Run], Payload]:
    handler = Handler(
        role=job.role,
        name=job.name,
        function=_find(job.place),
        is_async=False,
        takes_context=job.takes_context,
        idempotent=True,
    )
    load, dump, function = loader_for(handler, _CODEC), dumper_for(handler, _CODEC), handler.function

    def run(message: Run) -> Payload:
        contract = load(message.assignment.input)
        if not job.takes_context:
            return dump(function(contract))
        return dump(function(contract, _context(message, link)))

    return run


def _context(message: Run, link: socket.socket) -> Context:
    return Context(
        message.assignment,
        codec=_CODEC,
        report=lambda details: link.sendall(frame(Reported(details))),
        now=time.time_ns,  # noqa: TID251 — a process of its own, with no port to ask
        started_at=message.started_at,
    )


def _find(place: Place) -> Callable[..., Any]:
    try:
        found: Any = _main(place.path) if place.path else importlib.import_module(place.module)
        for part in place.qualname.split("."):
            found = getattr(found, part)
    except (Exception, SystemExit) as error:
        raise ModuleNotImportable(
            f"the child process cannot import {place.module}:{place.qualname}: {error}"
        ) from error
    function: Callable[..., Any] = found
    return function


def _main(path: str) -> types.ModuleType:
    """The parent's main script as a module, under the name that keeps its `if __name__ == "__main__"` closed."""
    known = sys.modules.get("__mp_main__")
    if known is None:
        known = types.ModuleType("__mp_main__")
        known.__dict__.update(runpy.run_path(path, run_name="__mp_main__"))
        sys.modules["__mp_main__"] = known
        # Objects of the script name their module `__main__`, and are looked up there.
        sys.modules["__main__"] = known
    return known
