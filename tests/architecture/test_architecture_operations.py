"""What docs/operations.md and the pages of cluster/ tell people to type and to look for is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from onexflow.config import OrchestratorSettings, WorkerSettings, paths
from onexflow.core.errors import BY_CODE
from onexflow.telemetry.names import METRICS
from support import commands

ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs/operations.md"
PAGES = [
    ROOT / "README.md",
    *(ROOT / "docs" / name for name in ("operations.md", "guarantees.md", "errors.md", "security.md", "stability.md")),
    *sorted((ROOT / "cluster").rglob("*.md")),
]
_LOGGED = re.compile(r"log(?:ger)?\.(debug|info|warning|error|exception|critical)\(\s*\"([a-z_]+\.[a-z_]+)\"")


def logged() -> dict[str, set[str]]:
    """Every log event of the code, with its levels."""
    found: dict[str, set[str]] = {}
    for file in (ROOT / "src/onexflow").rglob("*.py"):
        for level, event in _LOGGED.findall(file.read_text()):
            found.setdefault(event, set()).add(level)
    return found


def problems(page: str) -> list[str]:
    """What the page names and there is not."""
    settings = {*paths(OrchestratorSettings), *paths(WorkerSettings)}
    known = {*logged(), *settings, *(metric.name for metric in METRICS)}
    # A file's ending, or a field of a program, is none of these: `node.toml`, `client.work_queue()`.
    dotted = re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", page)
    files = (".toml", ".md", ".yaml", ".pem", ".key", ".env", ".txt", ".conf", ".service")
    return [
        *commands.problems_in(page),
        *(f"no code {code}" for code in re.findall(r"OXF-\d{4}", page) if code not in BY_CODE),
        *(
            f"no log event, setting or metric {name}"
            for name in dotted
            if name not in known and not name.endswith(files)
        ),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_tells_people_to_type_there_is(page: Path) -> None:
    assert list(commands.problems_in(page.read_text())) == []


def test_what_the_page_of_operations_names_there_is() -> None:
    assert problems(OPERATIONS.read_text()) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("`onexflow run resolv RUN TASK --retry`", "no command run resolv"),
        ("`onexflow run resolve RUN TASK --again`", "no flag --again"),
        ("`onexflow nodes`", "no command nodes"),
        ("```\nonex-orchestrator --listen=h:1 --store=x\n```", "no flag --store"),
        ("```\nsystemctl x && onex-worker m \\\n  --slots-effects=3\n```", "no flag --slots-effects"),
        ("`scripts/bnch chain`", "scripts/bnch: there is no such script"),
        ("OXF-1999", "no code OXF-1999"),
        ("log `shard.fence`", "no log event, setting or metric shard.fence"),
        ("`onexflow.store.commit`", "no log event, setting or metric onexflow.store.commit"),
        ("`store.shard`", "no log event, setting or metric store.shard"),
    ],
)
def test_what_there_is_not_is_told(line: str, words: str) -> None:
    assert [problem for problem in problems(line) if words in problem]


def test_each_row_of_what_to_do_when_names_something_to_type() -> None:
    rows = table("## What to do when")
    assert len(rows) > 35
    for row in rows:
        symptom, meaning, action = (cell.strip() for cell in row.strip("|").split(" | "))
        assert meaning, row
        assert re.search(r"`(onexflow|onex-orchestrator|onex-worker) ", action), f"{symptom}: {action}"


def test_what_ends_a_process_is_in_the_table() -> None:
    text = "".join(table("## What to do when"))
    for event, levels in logged().items():
        if "critical" in levels:
            assert f"`{event}`" in text, event


def test_log_events_are_found_in_the_code() -> None:
    assert {"shard.fenced", "registry.alone", "store.lost_events", "shard.taken_by_twin"} <= set(logged())


def table(heading: str) -> list[str]:
    """The rows below a heading."""
    text = OPERATIONS.read_text().partition(heading)[2].partition("\n## ")[0]
    return [line for line in text.splitlines() if line.startswith("| ")][1:]
