"""A worker's side of the session: epochs, credits, results kept until acknowledged, cancels, recalls."""

from __future__ import annotations

import asyncio
from typing import Any

from onexflow.core.ids import Token
from onexflow.ports.worker_link import (
    Ack,
    Assignments,
    AttemptResult,
    Cancel,
    Credits,
    Demand,
    Drain,
    Held,
    Hello,
    Ping,
    Pong,
    Recall,
    Reclaim,
    Reclaimed,
    Results,
    ShardEpoch,
    Welcome,
)
from onexflow.worker import Worker
from support.worker_kit import Assigner, FakeLink, Shop, connect, serving, settle


async def test_hello_comes_first_and_credits_after_welcome() -> None:
    async with serving(Shop().worker) as worker:
        link = FakeLink()
        link.peer = worker.attach(link)
        (hello,) = link.sent
        assert isinstance(hello, Hello)
        assert hello.slots == {"effect": 4, "compute": 2}  # no reducer is served
        assert {(info.role, info.name, info.idempotent) for info in hello.handlers} == {
            ("effect", "hold", False), ("effect", "fast", False), ("compute", "fast", True),
        }  # fmt: skip
        link.say(Welcome(orchestrator_id="o1", epochs={0: 1, 3: 7}, orchestrators=("10.0.0.1:7411",)))
        assert link.sent[1:] == [Held(0, 1, []), Held(3, 7, []), Credits({"effect": 4, "compute": 2})]
        assert worker.orchestrators == ("10.0.0.1:7411",)


async def test_results_go_out_in_batches_and_wait_for_their_ack() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker, effect=100) as worker:
        link = connect(worker, acks=False)
        batch = [assign("effect", "fast", n) for n in range(70)]
        link.assign(*batch)
        await link.until(lambda: len(link.results) == 70)
        assert [len(message.results) for message in link.of(Results)] == [64, 6]
        assert all(result.status == "completed" for result in link.results.values())
        assert worker.statistics().unacknowledged == 70
        link.say(Ack([a.token for a in batch[:60]], discarded=[a.token for a in batch[60:]]))
        assert worker.statistics().unacknowledged == 0


async def test_large_results_are_cut_at_a_mebibyte_a_message() -> None:
    worker, assign = Worker("w"), Assigner()

    @worker.effect("big")
    async def big(contract: Any) -> str:
        return "x" * 400_000

    async with serving(worker, effect=8) as running:
        link = connect(running)
        link.assign(*[assign("effect", "big") for _ in range(8)])
        await link.until(lambda: len(link.results) == 8)
        sizes = [sum(len(r.result.data) for r in message.results) for message in link.of(Results)]
        assert max(sizes) <= 1024 * 1024


async def test_a_known_token_is_not_run_twice() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker) as worker:
        link = connect(worker, acks=False)
        first = assign("effect", "hold", 1)
        link.assign(first)
        await settle()
        link.assign(first)  # while it runs
        await settle()
        shop.gate.set()
        await link.result(first)
        link.sent.clear()
        link.assign(first)  # while its result waits for the ack
        assert (await link.result(first)).status == "completed"
        assert shop.ran == [1]
        assert worker.statistics().duplicates == 2


async def test_a_new_epoch_is_answered_with_results_and_then_what_is_held() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker) as worker:
        old = connect(worker, {0: 1, 1: 1}, acks=False)
        done, held, other = (
            assign("effect", "fast", 1),
            assign("effect", "hold", 2),
            assign("effect", "hold", 3, shard=1),
        )
        old.assign(done, held, other)
        await old.result(done)
        new = connect(worker, {}, name="o2", acks=False)
        new.sent.clear()
        new.say(ShardEpoch(0, 2))
        assert [type(message) for message in new.sent] == [Results, Held]
        assert new.results[done.token].status == "completed"
        assert new.of(Held) == [Held(0, 2, [held.token])]
        shop.gate.set()
        await new.result(held)  # goes to the shard's owner of now
        await old.result(other)  # this one is still the old one's
        assert held.token not in old.results


async def test_a_deposed_owner_is_refused() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker) as worker:
        old, new = connect(worker, {0: 1}, acks=False), connect(worker, {}, name="o2", acks=False)
        kept = assign("effect", "fast", 1)
        old.assign(kept)
        await old.result(kept)
        held = assign("effect", "hold", 2)
        old.assign(held)
        await settle()
        new.say(ShardEpoch(0, 2))
        old.assign(assign("effect", "fast", 3))
        old.say(Cancel([held.token]))
        old.say(Ack([kept.token]))
        old.say(ShardEpoch(0, 1))
        await settle()
        assert shop.ran == [1, 2]
        statistics = worker.statistics()
        assert statistics.refused_stale == 4
        assert statistics.unacknowledged == 1
        assert statistics.stopping == 0
        # A pure attempt that the log scheduled in an older epoch may be sent by the new owner.
        again = assign("effect", "fast", 4, epoch=1)
        new.assign(again)
        assert (await new.result(again)).status == "completed"
        # An attempt of a shard that the sender never said it owns, or from the future, is refused.
        new.assign(assign("compute", "fast", 5, shard=9), assign("compute", "fast", 6, epoch=3))
        await settle()
        assert 5 not in shop.ran
        assert 6 not in shop.ran


async def test_attempts_outlive_their_link_and_results_find_the_next_one() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker) as worker:
        link = connect(worker, acks=False)
        held = assign("effect", "hold", 1)
        link.assign(held)
        await settle()
        assert link.peer is not None
        link.peer.on_close("cut")
        shop.gate.set()
        await settle()
        assert worker.statistics().unacknowledged == 1
        assert link.results == {}
        back = connect(worker, {0: 1})
        assert back.results[held.token].status == "completed"
        assert back.of(Held) == [Held(0, 1, [])]
        assert worker.statistics().unacknowledged == 0


async def test_a_running_attempt_is_stopped_and_an_unknown_one_returned() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker) as worker:
        link = connect(worker, acks=False)
        running = assign("effect", "hold", 1)
        link.assign(running)
        await settle()
        unknown = Token(0, 1, 999)
        link.say(Cancel([running.token, unknown], "no longer needed"))
        assert (await link.result(running)).status == "stopped"
        await settle()
        assert link.results[unknown] == AttemptResult(unknown, "returned")
        # The slot is free again.
        after = assign("effect", "fast", 2)
        link.assign(after)
        assert (await link.result(after)).status == "completed"


async def test_a_handler_that_swallows_its_cancel_gives_its_true_result() -> None:
    worker, assign, gate = Worker("w"), Assigner(), asyncio.Event()

    @worker.effect("stubborn")
    async def stubborn(contract: Any) -> str:
        try:
            await gate.wait()
        except asyncio.CancelledError:
            async with asyncio.timeout(5):
                await gate.wait()
        return "done anyway"

    async with serving(worker, effect=1) as running:
        link = connect(running)
        first, second = assign("effect", "stubborn"), assign("effect", "stubborn")
        link.assign(first)
        await settle()
        link.say(Cancel([first.token]))
        await settle()
        assert running.statistics().stopping == 1
        gate.set()
        assert (await link.result(first)).result.data == b'"done anyway"'
        link.assign(second)
        assert (await link.result(second)).status == "completed"


async def test_a_cancelled_error_of_the_handlers_own_is_a_failure() -> None:
    worker, assign = Worker("w"), Assigner()

    @worker.effect("odd")
    async def odd(contract: Any) -> None:
        raise asyncio.CancelledError

    async with serving(worker) as running:
        link = connect(running)
        attempt = assign("effect", "odd")
        link.assign(attempt)
        result = await link.result(attempt)
        assert result.status == "failed"
        assert result.error is not None
        assert result.error.type == "CancelledError"


async def test_a_discarded_attempt_is_stopped_and_says_nothing() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker) as worker:
        link = connect(worker)
        held = assign("effect", "hold", 1)
        link.assign(held)
        await settle()
        link.say(Ack([], discarded=[held.token]))
        await settle()
        assert worker.statistics().running["effect"] == 0
        assert link.results == {}


async def test_recall_takes_back_what_has_not_begun() -> None:
    worker, assign, gate = Worker("w"), Assigner(), asyncio.Event()

    @worker.compute("hold")
    async def hold(contract: Any) -> None:
        await gate.wait()

    async with serving(worker, compute=1) as running:
        running._attempts.lanes["compute"].ledger.mean = 0.004  # five of these fit into the window
        link = connect(running)
        assert link.credits == {"compute": 6}
        batch = [assign("compute", "hold", n) for n in range(6)]
        link.assign(*batch)
        await settle()
        assert running.statistics().queued == {"compute": 5}
        link.say(Recall("compute", 2))
        await settle()
        assert {token: r.status for token, r in link.results.items()} == {
            batch[5].token: "returned", batch[4].token: "returned",
        }  # fmt: skip
        link.say(Recall("compute", 100))
        await settle()
        assert running.statistics().queued == {"compute": 0}
        assert running.statistics().running == {"compute": 1}
        gate.set()
        assert (await link.result(batch[0])).status == "completed"


async def test_what_was_given_back_runs_when_it_comes_again_with_the_ack_of_that() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker, compute=1) as worker:
        worker._attempts.lanes["compute"].ledger.mean = 0.004
        link = connect(worker, acks=False)
        first, second = (assign("compute", "fast", n) for n in range(2))
        link.assign(first, second)
        link.say(Recall("compute", 1))
        await settle()
        assert link.results[second.token].status == "returned"
        link.say(Assignments([second], Ack([second.token])))
        await settle()
        assert [r.status for message in link.of(Results) for r in message.results if r.token == second.token] == [
            "returned", "completed",
        ]  # fmt: skip
        link.say(Ack([first.token, second.token]))


async def test_more_than_the_credits_is_returned() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker, effect=1) as worker:
        link = connect(worker)
        batch = [assign("effect", "hold", n) for n in range(3)]
        link.assign(*batch)
        await settle()
        assert [link.results[a.token].status for a in batch[1:]] == ["returned", "returned"]
        assert worker.statistics().refused_uncredited == 2
        assert worker.statistics().running["effect"] == 1


async def test_credits_come_back_as_slots_do() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker, effect=2) as worker:
        link = connect(worker)
        link.assign(assign("effect", "hold", 1), assign("effect", "hold", 2))
        await settle()
        assert link.credits["effect"] == 2
        shop.gate.set()
        await settle()
        assert link.credits["effect"] == 4


async def test_two_orchestrators_share_by_demand() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker, effect=4) as worker:
        first = connect(worker, {0: 1})
        second = connect(worker, {1: 1}, name="o2")
        first.assign(*[assign("effect", "hold", n) for n in range(4)])
        await settle()
        first.say(Demand({"effect": 10}))
        second.say(Demand({"effect": 10}))
        await settle()
        assert second.credits.get("effect", 0) == 0
        shop.gate.set()
        await settle()
        assert second.credits["effect"] >= 1
        assert first.credits["effect"] + second.credits["effect"] == 8


async def test_unused_credits_are_asked_back_for_who_is_short() -> None:
    shop, assign = Shop(), Assigner(shard=1)
    async with serving(shop.worker, effect=4) as worker:
        idle = connect(worker, {0: 1})
        busy = connect(worker, {1: 1}, name="o2")
        assert idle.credits["effect"] == 4
        busy.say(Demand({"effect": 9}))
        await settle()
        assert idle.of(Reclaim) == [Reclaim({"effect": 4})]
        busy.say(Demand({"effect": 9}))
        await settle()
        assert len(idle.of(Reclaim)) == 1  # it is asked once
        idle.say(Reclaimed({"effect": 3}))  # one was used meanwhile
        await settle()
        assert busy.credits == {"effect": 3}
        batch = [assign("effect", "fast", n) for n in range(3)]
        busy.assign(*batch)
        await busy.until(lambda: len(busy.results) == 3)
        assert all(result.status == "completed" for result in busy.results.values())


async def test_an_unknown_handler_fails_by_name() -> None:
    async with serving(Shop().worker) as worker:
        link, assign = connect(worker), Assigner()
        one, two = assign("effect", "nothing"), assign("reducer", "nothing")
        link.assign(one, two)
        for attempt in (one, two):
            error = (await link.result(attempt)).error
            assert error is not None
            assert "serves no" in error.message


async def test_what_is_answered_at_once_gives_no_credits_for_what_came_with_it() -> None:
    """More than a message of answers, so that credits are given while the others of their message are being queued."""
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker, effect=100) as worker:
        link = connect(worker)
        unknown = [assign("effect", "nothing") for _ in range(70)]
        held = [assign("effect", "hold", n) for n in range(10)]
        link.assign(*unknown, *held)
        await settle()
        assert len(link.results) == 70
        assert link.credits["effect"] - len(unknown) - len(held) <= 100 - len(held)


async def test_ping_is_answered_and_another_protocol_version_ends_the_link() -> None:
    async with serving(Shop().worker) as worker:
        link = connect(worker)
        link.say(Ping(7))
        assert link.sent[-1] == Pong(7)
        link.say(Welcome(orchestrator_id="o", epochs={}, protocol_version=99))
        assert link.closed


async def test_an_orchestrator_that_drains_gets_no_more_credits_but_its_results() -> None:
    shop, assign = Shop(), Assigner()
    async with serving(shop.worker, effect=1) as worker:
        link = connect(worker)
        held = assign("effect", "hold", 1)
        link.assign(held)
        link.say(Drain("stopping"))
        shop.gate.set()
        assert (await link.result(held)).status == "completed"
        await settle()
        assert link.credits == {"effect": 1, "compute": 2}
