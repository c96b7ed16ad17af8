"""What the handlers of a loaded cluster noted, read as it grows."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

#: Executions that ended so long ago are looked at no more for overlaps with one that begins.
ENDLESS: Final = 1 << 62


@dataclass
class Ran:
    """One execution of a handler's body. `end_ns` is 0 while it runs, and of one that was never finished."""

    kind: str
    instance: str
    task: str
    shard: int
    epoch: int
    start_ns: int
    pid: int
    end_ns: int = 0

    @property
    def key(self) -> tuple[str, str]:
        return self.instance, self.task


class Trail:
    """The executions of all worker processes that write to a folder. `read` takes what is new."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read_to: dict[Path, int] = {}
        self._open: dict[tuple[int, str, str], Ran] = {}
        #: By (instance, task), in the order of their starts as far as each process goes.
        self.by_key: dict[tuple[str, str], list[Ran]] = defaultdict(list)
        self.by_instance: dict[str, list[Ran]] = defaultdict(list)
        self.count = 0

    def read(self) -> list[Ran]:
        """Executions that have begun since the last call, by start."""
        new: list[Ran] = []
        for file in self._folder.glob("trace-*.log"):
            pid = int(file.stem.rpartition("-")[2])
            with file.open("rb") as stream:
                stream.seek(self._read_to.get(file, 0))
                text = stream.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read_to[file] = self._read_to.get(file, 0) + len(whole)
            for line in whole.decode().splitlines():
                self._take(line, pid, new)
        new.sort(key=lambda one: one.start_ns)
        for one in new:
            self.by_key[one.key].append(one)
            self.by_instance[one.instance].append(one)
        self.count += len(new)
        return new

    def _take(self, line: str, pid: int, new: list[Ran]) -> None:
        what, kind, key, token, at = line.split()
        if what == "end":
            self._open.pop((pid, key, token)).end_ns = int(at)
            return
        instance, _, task = key.partition(":")
        shard, epoch, *_ = token.split(".")
        ran = self._open[pid, key, token] = Ran(kind, instance, task, int(shard), int(epoch), int(at), pid)
        new.append(ran)

    def running(self, pid: int = 0, at: int = ENDLESS) -> list[Ran]:
        """Executions that had begun and not ended at that time, of that process (0: of any)."""
        return [
            ran for runs in self.by_key.values() for ran in runs
            if ran.start_ns <= at and not (0 < ran.end_ns <= at) and pid in (0, ran.pid)
        ]  # fmt: skip

    def again(self, kinds: frozenset[str], since: int = 0) -> list[list[Ran]]:
        """All executions of each task of these kinds that was begun more than once, the last time after `since`."""
        return [
            runs for runs in self.by_key.values()
            if len(runs) > 1 and runs[0].kind in kinds and max(ran.start_ns for ran in runs) >= since
        ]  # fmt: skip


def overlapping(runs: list[Ran], ended: dict[int, int]) -> bool:
    """Did the body run twice at the same time? `ended`: when processes were killed; what they left open ended then."""
    ordered = sorted(runs, key=lambda one: one.start_ns)
    until = 0
    for one in ordered:
        if one.start_ns < until:
            return True
        until = max(until, one.end_ns or ended.get(one.pid, ENDLESS))
    return False
