"""What every event bus of ours must do with what it delivers: messages to be pulled, failures, groups. Subclass
`EventDeliveryConformance`, give it what `EventBusConformance` needs."""

from __future__ import annotations

import asyncio
import json
from typing import Any, cast
from uuid import uuid4

import pytest

from onexflow.engine.protocols.event_bus import WorkflowEventBus
from onexflow.spi import InvalidProtocolStateError, ProtocolWorkflowEventMessage, RegistryError
from onexflow.testing.conformance.onex_event_bus import ORDER, BusSuite, Connect, Seen, event, until


class EventDeliveryConformance(BusSuite):
    """At least once, in order, and what fails is kept."""

    # ---- messages to be pulled

    async def test_messages_are_pulled_and_acknowledged(self, bus: WorkflowEventBus) -> None:
        subscription = await bus.subscribe_to_workflow_events(ORDER)
        given = event(data={"n": 1}, source="tests", correlation_id="req-abc123")
        assert await bus.pull(subscription, timeout=0) == []
        await bus.publish_workflow_event(given)
        [message] = await bus.pull(subscription, max_messages=10)
        assert isinstance(cast("Any", message), ProtocolWorkflowEventMessage)
        assert (message.topic, message.workflow_type, message.instance_id) == (ORDER, ORDER, given.instance_id)
        assert message.key == str(given.instance_id).encode()
        assert (message.sequence_number, message.event_type) == (1, "task_completed")
        assert (message.correlation_id, message.idempotency_key) == (given.correlation_id, given.idempotency_key)
        assert (message.headers["correlation_id"], message.headers["source"]) == ("req-abc123", "tests")
        assert message.offset
        assert message.partition == 0
        value = json.loads(message.value)
        assert (value["event_type"], value["payload"]) == ("task.completed", {"n": 1})
        got = await message.get_workflow_event()
        assert (got.event_id, got.data) == (given.event_id, {"n": 1})
        await message.ack()
        await message.ack()
        assert bus.subscription_status(subscription).unanswered == 0
        assert await bus.pull(subscription, timeout=0) == []

    async def test_a_pull_waits_for_the_first_and_takes_no_more_than_asked(self, bus: WorkflowEventBus) -> None:
        subscription, instance = await bus.subscribe_to_workflow_events(ORDER), uuid4()
        pulling = asyncio.ensure_future(bus.pull(subscription, timeout=10))
        await asyncio.sleep(0)
        await self.numbered(bus, instance, 1, 2, 3)
        got = await pulling
        while len(got) < 3:
            got += await bus.pull(subscription, max_messages=1, timeout=10)
        assert [message.sequence_number for message in got] == [1, 2, 3]
        with pytest.raises(Exception, match="max_messages"):
            await bus.pull(subscription, max_messages=0)

    async def test_what_is_not_acknowledged_comes_again(self, make: Connect) -> None:
        bus = make(ack_timeout=0.05)
        subscription, instance = await bus.subscribe_to_workflow_events(ORDER), uuid4()
        await self.numbered(bus, instance, 1)
        [first] = await bus.pull(subscription)
        [second] = await bus.pull(subscription, timeout=10)
        assert (first.attempt, second.attempt) == (1, 2)
        assert (second.offset, second.headers["delivery_attempt"]) == (first.offset, 2)
        await first.ack()  # the event counts, not the message
        assert await bus.pull(subscription, timeout=0.2) == []

    async def test_what_nobody_acknowledges_is_a_dead_letter(self, make: Connect) -> None:
        bus = make(ack_timeout=0.02, max_deliveries=2)
        subscription, instance = await bus.subscribe_to_workflow_events(ORDER), uuid4()
        await self.numbered(bus, instance, 1, 2)
        attempts = []
        async for message in bus.messages(subscription):
            attempts.append((message.sequence_number, message.attempt))
            if message.sequence_number == 2:
                await message.ack()
            if (1, 2) in attempts:
                break
        await until(lambda: bus.subscription_status(subscription).unanswered == 0)
        letters = await self.letters(bus, 1)
        assert letters[0].error.type == "NotAcknowledged"
        assert letters[0].delivery.event.sequence == 1

    async def test_messages_end_with_the_subscription(self, bus: WorkflowEventBus) -> None:
        subscription, got = await bus.subscribe_to_workflow_events(ORDER), []

        async def collect() -> None:
            async for message in bus.messages(subscription):
                got.append(message.sequence_number)
                await message.ack()

        collecting = asyncio.ensure_future(collect())
        await self.numbered(bus, uuid4(), 1)
        await until(lambda: got == [1])
        await bus.unsubscribe_from_workflow_events(subscription)
        async with asyncio.timeout(5):
            await collecting

    async def test_there_is_nothing_to_pull_with_a_handler(self, bus: WorkflowEventBus) -> None:
        subscription = await bus.subscribe_to_workflow_events(ORDER, handler=Seen())
        with pytest.raises(InvalidProtocolStateError):
            await bus.pull(subscription)
        with pytest.raises(RegistryError):
            await bus.pull("subscription-none")

    async def test_a_group_has_one_filter_a_topic(self, make: Connect) -> None:
        group, seen = make(group="billing"), Seen()
        letters: list[Any] = []
        await group.subscribe_to_workflow_events(ORDER, ["task.completed"], seen)
        with pytest.raises(InvalidProtocolStateError):
            await group.subscribe_to_workflow_events(ORDER, ["task.failed"], seen)
        await group.subscribe_to_workflow_events("another", ["task.failed"], seen)
        await group.base_event_bus.subscribe(ORDER, cast("Any", letters.append))
        await group.publish_workflow_event(event(data={"n": 1}))
        await seen.got(1)
        await until(lambda: letters)

    # ---- failures and groups

    async def letters(self, bus: WorkflowEventBus, count: int) -> list[Any]:
        found: list[Any] = []
        async with asyncio.timeout(10):
            while len(found) < count:
                found = await bus.dead_letters(ORDER)
                await asyncio.sleep(0.005)
        assert len(found) == count
        return found

    @pytest.mark.parametrize("group", [None, "billing"])
    async def test_a_raising_handler_is_called_again_and_then_it_is_a_dead_letter(
        self, make: Connect, group: str | None
    ) -> None:
        bus, patient, hopeless = make(group=group), Seen(failures=2), Seen(failures=3)
        subscription = await bus.subscribe_to_workflow_events(ORDER, handler=patient)
        instance = uuid4()
        await self.numbered(bus, instance, 1, 2)
        await patient.got(4)
        assert (patient.numbers, [one["delivery_attempt"] for one in patient.contexts]) == ([1, 1, 1, 2], [1, 2, 3, 1])
        assert await bus.dead_letters(ORDER) == []
        await bus.unsubscribe_from_workflow_events(subscription)
        await bus.subscribe_to_workflow_events(ORDER, handler=hopeless)
        await self.numbered(bus, instance, 3, 4)
        await hopeless.got(4)
        assert hopeless.numbers == [3, 3, 3, 4]
        [letter] = await self.letters(bus, 1)
        assert (letter.error.type, letter.error.message) == ("ValueError", "it does not work")
        assert "it does not work" in letter.error.traceback
        assert (letter.delivery.event.sequence, letter.delivery.topic) == (3, ORDER)
        assert letter.at > 0

    @pytest.mark.parametrize("group", [None, "billing"])
    async def test_dead_letters_go_back_to_those_who_read_or_away(self, make: Connect, group: str | None) -> None:
        bus, seen, instance = make(group=group), Seen(failures=6), uuid4()
        elsewhere = Seen(failures=3)
        await bus.subscribe_to_workflow_events("another", handler=elsewhere)
        await self.numbered(bus, instance, 0, workflow_type="another")
        await elsewhere.got(3)
        await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        await self.numbered(bus, instance, 1, 2, 3)
        await seen.got(7)
        letters = await self.letters(bus, 2)
        assert [letter.delivery.event.sequence for letter in letters] == [1, 2]
        assert await bus.requeue_dead_letters(ORDER, [letters[1].delivery.position]) == 1
        await seen.got(8)
        assert seen.numbers[-1] == 2
        await self.letters(bus, 1)
        assert await bus.discard_dead_letters(ORDER) == 1
        assert await bus.dead_letters(ORDER) == []
        assert (await bus.requeue_dead_letters(ORDER), await bus.discard_dead_letters(ORDER)) == (0, 0)
        assert await bus.requeue_dead_letters("another") == 1
        await elsewhere.got(4)

    async def test_a_late_subscriber_reads_from_the_start(self, make: Connect) -> None:
        early, alone, group, instance = make(), Seen(), Seen(), uuid4()
        await self.numbered(early, instance, *range(20))
        await make(start="earliest").subscribe_to_workflow_events(ORDER, handler=alone)
        await early.group("late", start="earliest").subscribe_to_workflow_events(ORDER, handler=group)
        await alone.got(20)
        await group.got(20)
        assert alone.numbers == group.numbers == list(range(20))

    async def test_a_group_s_place_outlives_its_members(self, make: Connect) -> None:
        publisher, instance, first, second = make(), uuid4(), Seen(), Seen()
        member = make().group("billing")
        await member.subscribe_to_workflow_events(ORDER, handler=first)
        await self.numbered(publisher, instance, 1, 2)
        await first.got(2)
        await until(lambda: not any(status.unanswered for status in member.subscriptions()))
        await member.close()
        await self.numbered(publisher, instance, 3, 4)
        await make(group="billing").subscribe_to_workflow_events(ORDER, handler=second)
        await second.got(2)
        assert (first.numbers, second.numbers) == ([1, 2], [3, 4])

    async def test_what_a_member_has_not_acknowledged_goes_to_another(self, make: Connect) -> None:
        publisher, instance, second = make(), uuid4(), Seen()
        member = make(group="billing")
        subscription = await member.subscribe_to_workflow_events(ORDER)
        await self.numbered(publisher, instance, 1, 2, 3)
        got = await member.pull(subscription)
        while len(got) < 3:
            got += await member.pull(subscription)
        await got[1].ack()
        await member.close()
        await make(group="billing").subscribe_to_workflow_events(ORDER, handler=second)
        await second.got(2)
        assert second.numbers == [1, 3]
        assert [context["delivery_attempt"] for context in second.contexts] == [2, 2]

    async def test_groups_are_listed_and_forgotten(self, make: Connect) -> None:
        bus, seen, instance = make(group="billing"), Seen(), uuid4()
        subscription = await bus.subscribe_to_workflow_events(ORDER, handler=seen)
        await self.numbered(bus, instance, 1)
        await seen.got(1)
        [view] = await bus.list_groups()
        assert (view.name, view.members, view.projection) == (f"billing/{ORDER}", 1, False)
        with pytest.raises(InvalidProtocolStateError):
            await bus.delete_group(view.name)
        await bus.unsubscribe_from_workflow_events(subscription)
        async with asyncio.timeout(5):
            while (await bus.list_groups())[0].members:  # noqa: ASYNC110 - as in until
                await asyncio.sleep(0.005)
        assert await bus.delete_group(view.name) is True
        assert await bus.delete_group(view.name) is False
        assert await bus.list_groups() == []

    async def test_members_share_and_groups_do_not(self, make: Connect) -> None:
        members, other = [Seen(), Seen()], Seen()
        for seen in members:
            await make(group="billing").subscribe_to_workflow_events(ORDER, handler=seen)
        await make(group="audit").subscribe_to_workflow_events(ORDER, handler=other)
        publisher = make()
        for n in range(30):
            await publisher.publish_workflow_event(event(data={"n": n}))
        await other.got(30)
        await until(lambda: sum(len(seen.events) for seen in members) == 30)
        assert sorted(n for seen in members for n in seen.numbers) == list(range(30))
