"""What `scripts/chaos` can run."""

from __future__ import annotations

import inspect

from . import (
    catalog,
    events,
    nats,
    scenarios,
    scenarios_etcd,
    scenarios_operation,
    scenarios_orchestrators,
    scenarios_store,
    scenarios_workers,
)

MODULES = (scenarios, events, nats, scenarios_etcd, scenarios_operation, scenarios_orchestrators, scenarios_store,
           scenarios_workers)  # fmt: skip


def test_every_scenario_that_there_is_has_a_name() -> None:
    listed = [scenario.__doc__ for scenario in catalog.SCENARIOS.values()]
    made = [
        one.__doc__
        for module in MODULES
        for name, one in vars(module).items()
        if inspect.iscoroutinefunction(one) and one.__module__ == module.__name__ and not name.startswith("_")
    ]
    assert sorted(map(str, listed)) == sorted(map(str, made))
    assert None not in made
    assert all(f"  {name} " in catalog.described() for name in catalog.SCENARIOS)
