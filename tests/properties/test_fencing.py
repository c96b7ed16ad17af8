"""An orchestrator that stands still for ten seconds under load, and goes on: nothing of it counts any more.

The same with processes and PostgreSQL: integration/test_store_postgres_frozen.py, and the chaos runs."""

from __future__ import annotations

import pytest

from onexflow.testing.clock import run_virtual
from support.mutant_scenarios import woken_owner

ROUNDS = 20
#: Lease and a second.
TAKEOVER_SECONDS = 6.0


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_what_it_sends_is_refused_by_the_store_though_it_looks_at_nothing(seed: int) -> None:
    """With fencing by what it could know (lease, epochs) switched off, what is left is the fence of each append."""
    world = run_virtual(woken_owner(seed))
    assert world.rejected > 0
    assert world.stories == []  # so of its appends none was stored, and no effect began under a token of it


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_it_looks_and_sends_nothing_that_counts(seed: int) -> None:
    world = run_virtual(woken_owner(seed, looks=True))
    assert world.stories == []
    assert world.taken_within <= TAKEOVER_SECONDS
