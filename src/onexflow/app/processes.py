"""Child processes that are kept alive: started, restarted when they die, stopped in good order.

Each runs in a session of its own (a Ctrl-C is the supervisor's to handle) and ends with the supervisor, however that
ends (`ONEXFLOW_PARENT_PID`, see `launch`). What it writes goes to its log file, or where the supervisor's own goes; its
first line on stdout says that it serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from onexflow.spi.exceptions import HandlerInitializationError

#: Seconds until a process with a log file must have said that it serves.
START_WITHIN: Final = 30.0
#: Seconds between the end of a process and its next life, at first and at most.
RESTART_AFTER: Final = (0.2, 5.0)
#: Bytes of a child's output that are passed on at once.
_PIECE: Final = 1 << 16
#: Seconds that what an ended child has printed may take to be passed on.
_LAST_WORDS_WITHIN: Final = 1.0
#: A life of less than this many seconds makes the next pause longer.
SETTLED_AFTER: Final = 5.0

Report = Callable[[str], None]


class StartFailed(HandlerInitializationError):
    """A child process ended before it served. `exit_code` is its own; the message is its last words."""

    def __init__(self, name: str, exit_code: int, words: str) -> None:
        message, _, hint = words.partition("\nhint: ")
        ended = f"{name} ended with {describe_exit(exit_code)} before it served"
        super().__init__(message or ended, {"process": name, **({"hint": hint} if hint else {})})
        self.exit_code = exit_code if exit_code > 0 else 1


class ChildProcess:
    """One program under supervision. `start` waits until it serves; then it is kept alive until `stop`.

    `listen` is the flag of that name for its first life; later ones listen where the first did. `log` None: its output is
    the supervisor's own, and it has as long as it needs until it serves."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        listen: str = "",
        log: Path | None,
        restart: bool,
        report: Report,
        on_change: Callable[[], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.said = ""  #: its line that said that it serves
        self.served_at = ""  #: what it said after "on", if anything: its address
        self._listen = listen
        self.lives = 0
        self._arguments = [sys.executable, "-m", *arguments]
        self._log = log
        self._environment = {**os.environ, **(environment or {}), "ONEXFLOW_PARENT_PID": str(os.getpid())}
        self._restart = restart
        self._report = report
        self._on_change = on_change
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._copies: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def exit_code(self) -> int | None:
        """Of its last life, None while that goes on; below 0 the signal that ended it."""
        return self._process.returncode if self._process is not None else None

    @property
    def pid(self) -> int | None:
        """The running process, None while there is none."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    async def start(self) -> None:
        """Start it and wait until it serves. Raises StartFailed with its own words and exit code."""
        await self._begin()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep-{self.name}")

    async def stop(self, within: float) -> None:
        """Ask it to stop; after `within` seconds end it. Idempotent."""
        self._stopping = True
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                async with asyncio.timeout(within):
                    await process.wait()
            except TimeoutError:
                self._report(f"{self.name} did not stop within {within:g} s and was killed")
                process.kill()
                await process.wait()
        if self._copies:  # it has ended, but what it has started itself may hold its stdout
            await asyncio.wait(self._copies, timeout=_LAST_WORDS_WITHIN)
        for copy in self._copies:
            copy.cancel()
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def _begin(self) -> None:
        """One life, until it serves."""
        offset = self._log.stat().st_size if self._log is not None and self._log.exists() else 0
        with self._log.open("ab") if self._log is not None else contextlib.nullcontext() as log:
            self._process = process = await asyncio.create_subprocess_exec(
                *self._arguments,
                *([f"--listen={self.served_at or self._listen}"] if self._listen else []),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        self.lives += 1
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_WITHIN if self._log is not None else None):
                line = (await process.stdout.readline()).decode(errors="replace").strip()
        except TimeoutError:
            process.kill()
            line = ""
        if not line:
            raise StartFailed(self.name, await process.wait(), _last_words(self._log, offset))
        copy = asyncio.create_task(_copy(process.stdout, self._log), name=f"copy-{self.name}")
        self._copies.add(copy)
        copy.add_done_callback(self._copies.discard)
        self.said, self.served_at = line, line.partition(" on ")[2]
        self._on_change()

    async def _keep(self) -> None:
        """Wait for its end; begin again, after a pause that grows while lives are short."""
        loop = asyncio.get_running_loop()
        pause = RESTART_AFTER[0]
        while True:
            process = self._process
            assert process is not None
            began, pid = loop.time(), process.pid
            code = await process.wait()
            self._on_change()
            if self._stopping:
                return
            self._report(f"{self.name} (pid {pid}) ended: {describe_exit(code)}")
            if not self._restart:
                return
            pause = RESTART_AFTER[0] if loop.time() - began > SETTLED_AFTER else min(pause * 2, RESTART_AFTER[1])
            await asyncio.sleep(pause)
            try:
                await self._begin()
            except StartFailed as error:
                if not self._stopping:
                    self._report(f"{self.name} cannot start: {error}")
            else:
                self._report(f"{self.name} runs again (pid {self.pid})")


def describe_exit(code: int) -> str:
    """In words: the signal's name, or the code."""
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"


async def _copy(stdout: asyncio.StreamReader, log: Path | None) -> None:
    """Pass on what a child prints: one whose output is not read stands still as soon as the pipe is full."""
    while piece := await stdout.read(_PIECE):
        with contextlib.suppress(OSError):  # nobody takes it any more: let the child go on
            if log is not None:
                with log.open("ab") as file:
                    file.write(piece)
            else:
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()


def _last_words(log: Path | None, offset: int) -> str:
    """What it said in its log when it failed: its `error:` line, and the hint after it."""
    if log is None:
        return ""
    with log.open("rb") as file:
        file.seek(offset)
        lines = file.read().decode(errors="replace").splitlines()
    said = [line.removeprefix("error: ") for line in lines if line.startswith(("error: ", "hint: "))]
    return "\n".join(said[-2:])
