"""The tests are tested: each known bug is put back into the code, and what looks for broken promises must find it; the
same scenarios find nothing in the code as it is. The bugs are in support/mutants.py, the table in docs/mutants.md."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conformance.test_event_store_memory import MemoryStores
from onexflow.audit.rules import RULES
from onexflow.testing.clock import run_virtual
from onexflow.testing.conformance.event_store import EventStoreSuite
from support.mutant_world import PROMISES, storm
from support.mutants import BUGS, Bug, planted

PAGE = Path(__file__).parents[2] / "docs/mutants.md"
WITH_SUITE = [(bug, name) for bug in BUGS for name in bug.suite]

each_bug = pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)


@each_bug
def test_a_known_bug_is_found(bug: Bug) -> None:
    found: set[str] = set()
    for seed in bug.seeds:
        with planted(bug):
            found |= run_virtual(bug.scenario(seed)).found
        if found >= set(bug.caught_by):
            return
    pytest.fail(f"{bug.name}: found were {sorted(found)}, not all of {bug.caught_by}")


@each_bug
def test_the_same_scenario_finds_nothing_in_the_code_as_it_is(bug: Bug) -> None:
    for seed in bug.seeds:
        assert run_virtual(bug.scenario(seed)).stories == []


def test_further_storms_find_nothing_in_the_code_as_it_is(rounds: Callable[..., int]) -> None:
    for seed in range(100, 100 + rounds(12, 60)):
        assert run_virtual(storm(seed)).stories == [], f"seed {seed}"


@pytest.mark.parametrize(("bug", "name"), WITH_SUITE, ids=[bug.name for bug, _ in WITH_SUITE])
async def test_the_suite_for_stores_fails_with_it(bug: Bug, name: str) -> None:
    async def run() -> None:
        stores = MemoryStores()
        store = stores.make()
        await store.open()
        test: Any = getattr(EventStoreSuite(), name)
        has = {"stores": stores, "store": store}
        await test(**{one: has[one] for one in inspect.signature(test).parameters})

    await run()
    with planted(bug), pytest.raises(AssertionError):
        await run()


def test_there_are_more_than_ten_and_all_that_they_may_be_found_by_is_explained() -> None:
    assert len(BUGS) >= 10
    assert len({bug.name for bug in BUGS}) == len(BUGS)
    for bug in BUGS:
        for word in bug.caught_by:
            kind, _, rule = word.partition(":")
            assert (rule in RULES) if kind == "audit" else (word in PROMISES), word


def test_the_table_says_what_the_catalog_has() -> None:
    text = PAGE.read_text()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    table = {cells[0]: cells for cells in rows}
    for bug in BUGS:
        cells = table.pop(bug.name)
        assert cells[1] == re.sub(r"\s+", " ", inspect.getdoc(bug.plant) or ""), bug.name
        assert cells[2], f"{bug.name}: who had it"
        assert cells[3] == ", ".join(f"`{word}`" for word in (*bug.caught_by, *bug.suite)), bug.name
    for word, story in PROMISES.items():
        assert table.pop(f"`{word}`")[1] == story
    assert {name for name in table if name not in {"bug", "word"} and not name.startswith("---")} == set()
