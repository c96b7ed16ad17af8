"""Each chaos scenario, small, as a test. The figures come from `scripts/chaos --rounds N`."""

from __future__ import annotations

from typing import Any

import pytest

from . import scenarios

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(120)]


async def test_killed_worker_loses_nothing_and_repeats_idempotent_effects_within_300_ms() -> None:
    figures = await scenarios.kill_worker(40)
    assert figures["interrupted"] > 0
    assert 0 < figures["re-dispatch ms"] <= 300


async def test_killed_worker_leaves_other_effects_waiting_and_none_runs_twice() -> None:
    figures = await scenarios.kill_worker_once_only(40)
    assert figures["resolved"] >= figures["interrupted"] > 0


async def test_killed_orchestrations_repeat_no_call() -> None:
    figures = await scenarios.kill_orchestrations(20, 5)
    assert figures["run again"] > 0


async def test_killed_orchestrator_adopts_what_ran_on() -> None:
    figures = await scenarios.kill_orchestrator(40)
    assert figures["ran on"] > 0


async def test_a_full_store_refuses_starts_and_runs_go_on_when_there_is_room() -> None:
    figures = await scenarios.fill_store(40, 3.0)
    assert figures["starts refused"] > 0
    assert figures["longest answer s"] < 5


async def test_cut_streams_run_no_effect_twice_at_once() -> None:
    figures = await scenarios.cut_streams(40, 8)
    assert figures["cuts"] > 1


@pytest.mark.parametrize("scenario", [scenarios.freeze_etcd, scenarios.wipe_etcd])
async def test_etcd_frozen_or_wiped_beyond_the_leases_moves_no_shard(scenario: Any) -> None:
    await scenario(50, 7.0)


async def test_etcd_killed_stops_nothing() -> None:
    await scenarios.kill_etcd(50, 6.0)
