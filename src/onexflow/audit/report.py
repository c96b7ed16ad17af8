"""What an audit found."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

#: Findings that are kept; further ones are counted.
KEPT: Final = 1000


class Finding(NamedTuple):
    """One violation. `rule` is a word of `audit.rules.RULES`; `run` is "" for one of a shard."""

    rule: str
    shard: int
    run: str
    sequence: int
    story: str

    def __str__(self) -> str:
        place = f"shard {self.shard}"
        if self.run:
            place += f", {self.run}"
        if self.sequence:
            place += f" event {self.sequence}"
        return f"{self.rule}: {place}: {self.story}"


class Report(msgspec.Struct):
    """The result: consistent when there are no findings."""

    shards: int = 0
    runs: int = 0
    open_runs: int = 0
    entities: int = 0  #: queues, streams: what has events and is no run
    events: int = 0
    cut_events: int = 0
    snapshots: int = 0
    findings: list[Finding] = []
    violations: int = 0

    @property
    def is_consistent(self) -> bool:
        return not self.violations

    def add(self, finding: Finding) -> None:
        self.violations += 1
        if len(self.findings) < KEPT:
            self.findings.append(finding)

    def join(self, other: Report) -> None:
        """Count in what was found elsewhere."""
        for name in ("shards", "runs", "open_runs", "entities", "events", "cut_events", "snapshots"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.findings += other.findings[: KEPT - len(self.findings)]
        self.violations += other.violations
