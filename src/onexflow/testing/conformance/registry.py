"""What every registry must do. An adapter's test subclasses `RegistryConformance` and gives it a `harness`.

    class TestMyRegistry(RegistryConformance):
        @pytest.fixture
        async def harness(self) -> AsyncIterator[RegistryHarness]: ...

Nothing here sleeps: `harness.until` turns the adapter's own time until a condition holds, or fails.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol
from uuid import UUID

import msgspec

from onexflow.core.errors import InvalidArgument
from onexflow.core.ids import RunKey
from onexflow.ports.registry import Assignment, HealthReport, MemberEvent, NodeRecord, Registry, ShardAnnouncement

#: Something that becomes true.
Condition = Callable[[], bool] | Callable[[], Awaitable[bool]]


async def holds(condition: Condition) -> bool:
    """Ask a condition, for harnesses."""
    answer = condition()
    return answer if isinstance(answer, bool) else await answer


class RegistryHarness(Protocol):
    """Makes registries of one cluster, as if each were in a process of its own, and turns their loops."""

    async def open(self) -> Registry:
        """Another process's registry: not started, beaten until `hang`."""

    def hang(self, registry: Registry) -> None:
        """The process's loop stands still: no more beats for it."""

    def wake(self, registry: Registry) -> None:
        """The process's loop turns again."""

    async def until(self, condition: Condition) -> None:
        """Let time pass until the condition holds. Fails with AssertionError when it does not in good time."""


def node(node_id: str = "w1", incarnation: str = "i1", **changes: object) -> NodeRecord:
    """A worker's record."""
    record = NodeRecord(kind="effect", node_id=node_id, incarnation=incarnation, handlers=("charge",), slots=4)
    return msgspec.structs.replace(record, **changes)


def run_key(number: int = 1) -> RunKey:
    """A run's name, with everything in it that a key must survive."""
    return RunKey("team/ä b", "order.processing", UUID(int=number))


class _Seen:
    """What a listener heard, by name."""

    def __init__(self, registry: Registry) -> None:
        self.events: list[MemberEvent] = []
        self.stop = registry.subscribe(self.events.append)

    @property
    def story(self) -> list[tuple[str, str, str]]:
        return [(event.type, event.record.node_id, event.record.incarnation) for event in self.events]


class RegistryConformance:
    """The suite."""

    async def test_a_registered_node_is_seen_by_all_with_all_it_said(self, harness: RegistryHarness) -> None:
        one, two = await _started(harness), await _started(harness)
        record = node(
            address="10.0.0.1:7411",
            liveness="10.0.0.1:9",
            version="0.1.0",
            started_at=1_700_000_000_000_000_000,
            labels={"zone": "ä"},
        )
        await one.register(record)
        assert list(one.members()) == [record]
        await harness.until(lambda: list(two.members()) == [record])

    async def test_who_starts_later_sees_who_was_there(self, harness: RegistryHarness) -> None:
        one = await _started(harness)
        await one.register(node())
        two = await _started(harness)
        assert list(two.members()) == [node()]

    async def test_members_by_kind(self, harness: RegistryHarness) -> None:
        one = await _started(harness)
        records = [
            node("x", kind="orchestrator"),
            node("x", kind="effect"),
            node("x", kind="compute"),
            node("y", kind="reducer"),
        ]
        for record in records:
            await one.register(record)
        assert len(one.members()) == 4
        assert list(one.members("orchestrator")) == records[:1]
        assert list(one.members("compute")) == records[2:3]

    async def test_names_may_hold_anything(self, harness: RegistryHarness) -> None:
        one, two = await _started(harness), await _started(harness)
        names = ["a/b", "a", "a/b/c", "ü % \n", "..", "a%2Fb"]
        for name in names:
            await one.register(node(name))
        await harness.until(lambda: {record.node_id for record in two.members()} == set(names))

    async def test_events_come_in_order(self, harness: RegistryHarness) -> None:
        one, two = await _started(harness), await _started(harness)
        seen = _Seen(two)
        await one.register(node())
        await harness.until(lambda: len(seen.events) == 1)
        await one.register(node(status="draining"))
        await harness.until(lambda: len(seen.events) == 2)
        await one.unregister("effect", "w1")
        await harness.until(lambda: len(seen.events) == 3)
        assert [event.type for event in seen.events] == ["up", "changed", "down"]
        assert [event.record.status for event in seen.events] == ["ready", "draining", "draining"]

    async def test_many_changes_arrive_complete_and_in_order(self, harness: RegistryHarness) -> None:
        one, two = await _started(harness), await _started(harness)
        seen = _Seen(two)
        for number in range(40):
            await one.register(node(slots=number + 1))
        await harness.until(lambda: bool(seen.events) and seen.events[-1].record.slots == 40)
        assert [event.record.slots for event in seen.events] == list(range(1, 41))
        assert [event.type for event in seen.events] == ["up"] + ["changed"] * 39

    async def test_the_same_record_again_is_no_change(self, harness: RegistryHarness) -> None:
        one = await _started(harness)
        await one.register(node())
        seen = _Seen(one)
        await one.register(node())
        await one.register(node("w2"))
        await harness.until(lambda: bool(seen.events))
        await harness.until(lambda: len(seen.story) >= 1)  # told a turn after it is shown
        assert seen.story == [("up", "w2", "i1")]

    async def test_a_stopped_subscription_hears_no_more(self, harness: RegistryHarness) -> None:
        one = await _started(harness)
        first, second = _Seen(one), _Seen(one)
        first.stop()
        first.stop()
        await one.register(node())
        await harness.until(lambda: len(second.events) == 1)
        assert not first.events

    async def test_a_listener_that_raises_hurts_nobody(self, harness: RegistryHarness) -> None:
        one = await _started(harness)

        def broken(event: MemberEvent) -> None:
            raise RuntimeError(event.type)

        one.subscribe(broken)
        seen = _Seen(one)
        await one.register(node())
        await one.register(node("w2"))
        await harness.until(lambda: len(seen.events) == 2)

    async def test_a_new_incarnation_replaces_the_old_and_fences_it(self, harness: RegistryHarness) -> None:
        old, new, third = [await _started(harness) for _ in range(3)]
        await old.register(node(incarnation="i1", started_at=2))
        await harness.until(lambda: len(third.members()) == 1)
        seen = _Seen(third)
        # Its clock is behind that of its predecessor's machine: what counts is that it came later.
        await new.register(node(incarnation="i2", started_at=1))
        await harness.until(lambda: len(seen.events) == 2)
        await old.register(node("other"))
        await old.announce([ShardAnnouncement(shard=1, owner="w1", epoch=1)])
        await harness.until(lambda: len(seen.events) == 3)
        await harness.until(lambda: len(seen.story) >= 3)  # told a turn after it is shown
        assert seen.story == [("down", "w1", "i1"), ("up", "w1", "i2"), ("up", "other", "i1")]
        await old.close()
        await harness.until(lambda: len(seen.events) == 4)
        assert [record.incarnation for record in third.members()] == ["i2"]

    async def test_unregistering_takes_one_record_of_its_own(self, harness: RegistryHarness) -> None:
        one, two = await _started(harness), await _started(harness)
        await one.register(node())
        await one.register(node(kind="compute"))
        await harness.until(lambda: len(two.members()) == 2)
        await two.unregister("effect", "w1")
        await one.unregister("effect", "nobody")
        await one.unregister("compute", "w1")
        await harness.until(lambda: list(two.members()) == [node()])

    async def test_closing_takes_everything_at_once(self, harness: RegistryHarness) -> None:
        one, two = await _started(harness), await _started(harness)
        await one.register(node())
        await one.announce([ShardAnnouncement(shard=3, owner="w1", epoch=1)])
        await two.assign(Assignment(key=run_key(), node_id="w1"))
        await harness.until(lambda: len(two.members()) == 1)
        await one.close()
        await one.close()
        await harness.until(lambda: not two.members())
        await _until_seen(harness, two, shards=[], runs=[])
        assert not one.health().connected

    async def test_a_process_whose_loop_hangs_loses_its_membership_and_gets_it_back(
        self, harness: RegistryHarness
    ) -> None:
        one, two = await _started(harness), await _started(harness)
        await one.register(node())
        await one.announce([ShardAnnouncement(shard=3, owner="w1", epoch=7)])
        await harness.until(lambda: len(two.members()) == 1)
        seen = _Seen(two)
        harness.hang(one)
        await harness.until(lambda: not two.members())
        await _until_seen(harness, two, shards=[])
        harness.wake(one)
        await harness.until(lambda: list(two.members()) == [node()])
        await _until_seen(harness, two, shards=[3])
        await harness.until(lambda: len(seen.story) >= 2)  # told a turn after it is shown
        assert seen.story == [("down", "w1", "i1"), ("up", "w1", "i1")]

    async def test_a_working_process_keeps_its_membership(self, harness: RegistryHarness) -> None:
        one, two, dying = [await _started(harness) for _ in range(3)]
        await one.register(node())
        await dying.register(node("dying"))
        await harness.until(lambda: len(two.members()) == 2)
        seen = _Seen(two)
        harness.hang(dying)  # a whole lease passes
        await harness.until(lambda: bool(seen.story))
        assert seen.story == [("down", "dying", "i1")]
        assert len(two.members()) == 1

    async def test_a_proven_death_ends_the_membership_at_once(self, harness: RegistryHarness) -> None:
        dead, one, two = [await _started(harness) for _ in range(3)]
        await dead.register(node())
        await dead.register(node(kind="compute"))
        await dead.announce([ShardAnnouncement(shard=3, owner="w1", epoch=1)])
        harness.hang(dead)
        await harness.until(lambda: len(two.members()) == 2 == len(one.members()))
        await one.revoke(node())
        assert not one.members()
        await harness.until(lambda: not two.members())
        await _until_seen(harness, two, shards=[])
        await one.revoke(node())

    async def test_only_the_incarnation_that_died_is_revoked(self, harness: RegistryHarness) -> None:
        one, two = await _started(harness), await _started(harness)
        await one.register(node(incarnation="i2"))
        await harness.until(lambda: len(two.members()) == 1)
        await two.revoke(node(incarnation="i1"))
        await two.revoke(node("nobody"))
        await two.register(node("witness"))
        await harness.until(lambda: len(one.members()) == 2)
        assert len(two.members()) == 2

    async def test_who_was_revoked_in_error_comes_back(self, harness: RegistryHarness) -> None:
        one, two = await _started(harness), await _started(harness)
        await one.register(node())
        await harness.until(lambda: len(two.members()) == 1)
        seen = _Seen(two)
        await two.revoke(node())
        await harness.until(lambda: len(seen.events) == 2)
        await harness.until(lambda: len(seen.story) >= 2)  # told a turn after it is shown
        assert seen.story == [("down", "w1", "i1"), ("up", "w1", "i1")]

    async def test_announcements_replace_those_of_before(self, harness: RegistryHarness) -> None:
        one, two = await _started(harness), await _started(harness)
        await one.announce([ShardAnnouncement(shard=n, owner="o1", epoch=1, address="a:1") for n in (0, 1, 10)])
        await two.announce([ShardAnnouncement(shard=2, owner="o2", epoch=4)])
        await _until_seen(harness, two, shards=[0, 1, 2, 10])
        await one.announce(
            [ShardAnnouncement(shard=1, owner="o1", epoch=2), ShardAnnouncement(shard=5, owner="o1", epoch=1)]
        )
        await _until_seen(harness, two, shards=[1, 2, 5])
        assert (await two.announcements())[0] == ShardAnnouncement(shard=1, owner="o1", epoch=2)
        await one.announce([])
        await _until_seen(harness, two, shards=[2])

    async def test_a_deposed_owner_does_not_overwrite_its_successor(self, harness: RegistryHarness) -> None:
        old, new = await _started(harness), await _started(harness)
        await old.announce([ShardAnnouncement(shard=1, owner="o1", epoch=1)])
        await _until_seen(harness, new, shards=[1])
        await new.announce([ShardAnnouncement(shard=1, owner="o2", epoch=2)])
        await old.announce(
            [ShardAnnouncement(shard=1, owner="o1", epoch=1), ShardAnnouncement(shard=2, owner="o1", epoch=1)]
        )
        await _until_seen(harness, new, shards=[1, 2])
        assert [item.owner for item in await new.announcements()] == ["o2", "o1"]

    async def test_a_pin_lives_with_its_node(self, harness: RegistryHarness) -> None:
        owner, worker, other = [await _started(harness) for _ in range(3)]
        await owner.assign(Assignment(key=run_key(1), node_id="w1", assigned_at=5))
        assert not await owner.assignments()
        await worker.register(node())
        await _until_seen(harness, other, runs=[1])
        assert list(await other.assignments("w1")) == [Assignment(key=run_key(1), node_id="w1", assigned_at=5)]
        assert not await other.assignments("w2")
        harness.hang(worker)
        await _until_seen(harness, other, runs=[])
        harness.wake(worker)
        await _until_seen(harness, other, runs=[1])

    async def test_pins_are_moved_and_taken_back(self, harness: RegistryHarness) -> None:
        owner, other = await _started(harness), await _started(harness)
        await owner.register(node("w1"))
        await owner.register(node("w2"))
        await owner.assign(Assignment(key=run_key(1), node_id="w1"))
        await owner.assign(Assignment(key=run_key(2), node_id="w1"))
        await owner.assign(Assignment(key=run_key(1), node_id="w2"))
        await _until_seen(harness, other, runs=[1, 2])
        assert [item.key for item in await owner.assignments("w2")] == [run_key(1)]
        await owner.unassign(run_key(1))
        await owner.unassign(run_key(9))
        await _until_seen(harness, other, runs=[2])

    async def test_a_report_of_health_is_seen_by_all_and_ends_with_the_nodes_life(
        self, harness: RegistryHarness
    ) -> None:
        reporter, worker, other = [await _started(harness) for _ in range(3)]
        await worker.register(node())
        await worker.register(node(kind="compute"))
        await harness.until(lambda: len(other.members()) == 2 == len(reporter.members()))
        seen = _Seen(other)
        report = HealthReport(node_id="w1", incarnation="i1", health="critical", at=5)
        await reporter.report_health(report)
        await harness.until(lambda: other.health_of("w1") == report)
        await harness.until(lambda: len(seen.story) == 2)
        assert seen.story == [("changed", "w1", "i1")] * 2
        await reporter.close()  # it is the node's, not the reporter's
        await other.register(node("w2"))
        await harness.until(lambda: len(worker.members()) == 3)
        assert worker.health_of("w1") == report
        assert worker.health_of("w2") is None
        again = await _started(harness)
        await again.register(node(incarnation="i2"))
        await harness.until(lambda: "i2" in {record.incarnation for record in other.members()})
        await worker.close()
        await harness.until(lambda: len(other.members()) == 2)
        await harness.until(lambda: other.health_of("w1") is None)

    async def test_the_later_of_two_reports_counts(self, harness: RegistryHarness) -> None:
        one, two, worker = [await _started(harness) for _ in range(3)]
        await worker.register(node())
        await harness.until(lambda: len(one.members()) == 1 == len(two.members()))
        for at, (registry, health) in enumerate(
            [(one, "error"), (two, "warning"), (one, "critical"), (two, "healthy")]
        ):
            await registry.report_health(HealthReport(node_id="w1", incarnation="i1", health=health, at=at + 1))
            await harness.until(lambda: _health(one, "w1") == health == _health(two, "w1"))  # noqa: B023 - until is over before the next
        await worker.register(node("w2"))
        await harness.until(lambda: len(one.members()) == 2)
        assert _health(one, "w1") == "healthy" == _health(two, "w1")

    async def test_a_report_waits_for_its_node(self, harness: RegistryHarness) -> None:
        one, two, worker = [await _started(harness) for _ in range(3)]
        await one.report_health(HealthReport(node_id="w1", incarnation="i1", health="error", at=1))
        await worker.register(node())
        await harness.until(lambda: _health(two, "w1") == "error")
        harness.hang(worker)
        await harness.until(lambda: not two.members())
        harness.wake(worker)  # the same life
        await harness.until(lambda: _health(two, "w1") == "error")

    async def test_a_guest_goes_from_one_keeper_to_another_without_a_gap(self, harness: RegistryHarness) -> None:
        one, two, third = [await _started(harness) for _ in range(3)]
        details = {"host": "192.168.1.100", "port": 8080, "x": [1, {"y": None}]}
        guest = node("g", kind="guest", keeper="o1", kept_since=9, details=details)
        await one.register(guest)
        await harness.until(lambda: list(third.members("guest")) == [guest])
        seen = _Seen(third)
        # The other keeper's clock is behind: what counts is that it came later.
        moved = node("g", kind="guest", keeper="o2", kept_since=3, details=details)
        await two.register(moved)
        await harness.until(lambda: len(seen.story) == 1)
        await one.register(node("other"))
        await one.unregister("guest", "g")
        await harness.until(lambda: len(seen.story) == 2)
        assert seen.story == [("changed", "g", "i1"), ("up", "other", "i1")]
        assert list(third.members("guest")) == [moved]
        await one.revoke(moved)  # not the keeper's lease
        await one.close()
        await harness.until(lambda: len(seen.story) == 3)
        assert list(third.members()) == [moved]

    async def test_a_guest_that_goes_takes_its_health_along(self, harness: RegistryHarness) -> None:
        one, two = await _started(harness), await _started(harness)
        await one.register(node("g", kind="guest", keeper="o1"))
        await harness.until(lambda: len(two.members()) == 1)
        await two.report_health(HealthReport(node_id="g", incarnation="i1", health="error", at=1))
        await harness.until(lambda: _health(one, "g") == "error")
        await one.unregister("guest", "g")
        await harness.until(lambda: not two.members())
        await one.register(node("g", incarnation="i2", kind="guest", keeper="o1"))
        await harness.until(lambda: len(two.members()) == 1)
        assert one.health_of("g") is None
        assert two.health_of("g") is None

    async def test_health_says_what_it_is(self, harness: RegistryHarness) -> None:
        one = await harness.open()
        assert not one.health().connected
        await one.start()
        assert one.health().connected
        assert one.health().kind in {"etcd", "memory"}

    async def test_start_and_close_in_any_order(self, harness: RegistryHarness) -> None:
        await (await harness.open()).close()
        one = await _started(harness)
        await one.start()
        await one.register(node())
        assert len(one.members()) == 1

    async def test_what_was_registered_before_the_start_is_there_after_it(self, harness: RegistryHarness) -> None:
        one, two = await harness.open(), await _started(harness)
        await one.register(node())
        await one.announce([ShardAnnouncement(shard=1, owner="w1", epoch=1)])
        await one.start()
        await harness.until(lambda: list(two.members()) == [node()])
        await _until_seen(harness, two, shards=[1])

    async def test_a_record_without_a_name_is_refused(self, harness: RegistryHarness) -> None:
        one = await _started(harness)
        for bad in (node(""), node(incarnation="")):
            try:
                await one.register(bad)
            except InvalidArgument:
                continue
            raise AssertionError(bad)
        assert not one.members()


def _health(registry: Registry, node_id: str) -> str:
    report = registry.health_of(node_id)
    return report.health if report is not None else ""


async def _started(harness: RegistryHarness) -> Registry:
    registry = await harness.open()
    await registry.start()
    return registry


async def _until_seen(
    harness: RegistryHarness, registry: Registry, *, shards: list[int] | None = None, runs: list[int] | None = None
) -> None:
    """Wait until these shards are announced and these runs assigned, no more and no less."""

    async def seen() -> bool:
        said = [item.shard for item in await registry.announcements()]
        pinned = sorted(item.key.instance_id.int for item in await registry.assignments())
        return (shards is None or said == shards) and (runs is None or pinned == runs)

    await harness.until(seen)
