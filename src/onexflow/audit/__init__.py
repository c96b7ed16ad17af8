"""The auditor: reads a store's log and proves, or refutes, that it tells one consistent story.

It shares nothing with the engine but the event types and their stored form: what is legal is written down here a second
time (`audit.rules`, `audit.run`), so that a bug in the engine's own tables and folds does not hide itself. It reads only,
also beside an orchestrator that is at work.
"""

from __future__ import annotations

from onexflow.audit.report import Finding, Report
from onexflow.audit.shard import Source, audit

__all__ = ["Finding", "Report", "Source", "audit"]
