"""Known bugs, each put back into the real code by a context manager, with the scenario that must find it.

`tests/properties/test_mutants.py` runs them; docs/mutants.md is the same list for people, and is compared with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import msgspec
import pytest

from onexflow.codec.rows import decode_snapshot, encode_snapshot
from onexflow.core import attempts as core_attempts
from onexflow.core.errors import ShardMoved
from onexflow.core.ids import RunKey, Token
from onexflow.core.state import ItemState
from onexflow.core.turn import Turn
from onexflow.engine import attempts as engine_attempts
from onexflow.engine import claims as engine_claims
from onexflow.engine import results as engine_results
from onexflow.engine.answers import Answers
from onexflow.engine.attempts import AttemptBook
from onexflow.engine.lane import CommitLane
from onexflow.engine.loader import Loader
from onexflow.engine.outcomes import Outcomes
from onexflow.engine.placing import Placing
from onexflow.engine.readback import open_items
from onexflow.engine.run import Run
from onexflow.engine.shard import Shard
from onexflow.ports.event_store import AppendOutcome, EventStore, RunRecord, ShardAppend
from onexflow.registry.view import Kv, View
from onexflow.storage import memory
from onexflow.storage.memory import MemoryStore
from onexflow.worker.peers import OrchestratorPeer
from support import mutant_scenarios as scenarios
from support.mutant_world import World, storm

Scenario = Callable[[int], Coroutine[Any, Any, World]]
Plant = Callable[[pytest.MonkeyPatch], None]


class Bug(NamedTuple):
    """One known bug. `caught_by`: accusations (`World.found`) that the seeds must bring together."""

    name: str
    plant: Plant
    scenario: Scenario
    seeds: Sequence[int]
    caught_by: tuple[str, ...]
    #: Tests of the conformance suite that fail with it.
    suite: tuple[str, ...] = ()


@contextmanager
def planted(bug: Bug) -> Iterator[None]:
    """The bug is in the code for as long as the block runs."""
    with pytest.MonkeyPatch.context() as patch:
        bug.plant(patch)
        yield


# ---- the store


def blind_write(patch: pytest.MonkeyPatch) -> None:
    """An append does not compare the head: last writer wins."""
    append = MemoryStore.append

    async def blind(self: MemoryStore, batch: Sequence[ShardAppend]) -> AppendOutcome:
        for part in batch:
            if self._shards[part.shard].epoch == part.epoch:
                self._shards[part.shard].head = part.head
        return await append(self, batch)

    patch.setattr(MemoryStore, "append", blind)


def no_epoch_check(patch: pytest.MonkeyPatch) -> None:
    """An append compares the head alone: a deposed owner that is up to date may write."""
    append = MemoryStore.append

    async def unfenced(self: MemoryStore, batch: Sequence[ShardAppend]) -> AppendOutcome:
        epochs = {part.shard: self._shards[part.shard].epoch for part in batch}
        for part in batch:
            self._shards[part.shard].epoch = part.epoch
        storing = append(self, batch)
        try:
            storing.send(None)  # all is stored before it lets others run
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]  # what append returns
        finally:
            for shard, epoch in epochs.items():
                self._shards[shard].epoch = epoch
        return await _rest(storing)

    patch.setattr(MemoryStore, "append", unfenced)


async def _rest(storing: Coroutine[Any, Any, AppendOutcome]) -> AppendOutcome:
    await asyncio.sleep(0)
    try:
        storing.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]  # what append returns
    raise AssertionError("an append of the memory store lets others run once")


def no_tombstone(patch: pytest.MonkeyPatch) -> None:
    """A cut takes the events away and leaves nothing that tells of it."""
    cut = memory._cut

    def silent(held: Any, what: Any) -> int:
        before = dict(held.tombstones)
        change = cut(held, what)
        held.tombstones = before
        return change

    patch.setattr(memory, "_cut", silent)


# ---- the commit lane


def early_acknowledgement(patch: pytest.MonkeyPatch) -> None:
    """What waits for the disk does not wait."""
    for name in ("when_durable", "answer_when_durable"):
        patch.setattr(CommitLane, name, lambda self, release, shard=None, **_: release(None))


def doubled_append(patch: pytest.MonkeyPatch) -> None:
    """An append without an answer is taken for one that failed, and sent again behind the store's new head."""
    is_settled = CommitLane._is_settled

    def settled(self: CommitLane, shard: Shard, append: ShardAppend, outcome: AppendOutcome) -> bool:
        epoch, head = outcome.refused.get(append.shard, (0, 0))
        by = head - append.head
        if append.shard in outcome.stored or epoch != append.epoch or by <= 0:
            return is_settled(self, shard, append, outcome)
        append.rows = [msgspec.structs.replace(row, offset=row.offset + by) for row in append.rows]
        append.head, append.next = append.head + by, append.next + by
        shard.next += by
        return False

    patch.setattr(CommitLane, "_is_settled", settled)


def effect_before_its_event(patch: pytest.MonkeyPatch) -> None:
    """An effect is sent at once, while its `task.started` is on the way to the disk."""
    place = Placing._place_effect

    def eager(self: Placing, *arguments: Any) -> bool:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self._kernel.lane, "when_durable", lambda release, shard=None, **_: release(None))
            return place(self, *arguments)

    patch.setattr(Placing, "_place_effect", eager)


# ---- takeovers


def no_barrier(patch: pytest.MonkeyPatch) -> None:
    """A new owner sends the effects that ran anew, without asking the workers what they hold."""
    take_back = AttemptBook.take_back

    def forgetful(self: AttemptBook, run: Run, member_liveness: Callable[[str], str]) -> None:
        take_back(self, run, member_liveness)
        for attempt in list(run.attempts.values()):
            if attempt.role == "effect" and attempt.sent and attempt.session is None:
                self.give_back(attempt)

    patch.setattr(AttemptBook, "take_back", forgetful)


def old_owner_obeyed(patch: pytest.MonkeyPatch) -> None:
    """A worker takes what any orchestrator sends, whoever it has heard of since."""

    class Trusting(dict[int, int]):
        def get(self, *_: object) -> int:  # of whatever shard, none is newer
            return 1 << 60

    begin = OrchestratorPeer.__init__

    def trusted(self: OrchestratorPeer, *arguments: Any) -> None:
        begin(self, *arguments)
        self.epochs = Trusting()

    patch.setattr(OrchestratorPeer, "__init__", trusted)


def lost_timer(patch: pytest.MonkeyPatch) -> None:
    """Timers live in the memory of the owner that armed them."""
    patch.setattr(engine_attempts, "timers_of", lambda run: ())


def one_shot_recovery(patch: pytest.MonkeyPatch) -> None:
    """Recovery reads the rows behind the checkpoint, and not which runs were at work before it."""

    async def short(store: EventStore, shard: Shard) -> tuple[list[RunRecord], set[int]]:
        checkpoint = await store.load_checkpoint(shard.id)
        rows = await store.read_shard(shard.id, checkpoint.offset if checkpoint else 1, 1 << 30)
        return await store.get_runs(shard.id, sorted({row.iid for row in rows})), set()

    patch.setattr(engine_claims, "hot_runs", short)


def request_in_memory(patch: pytest.MonkeyPatch) -> None:
    """The answer under a request id is kept by the owner, and not in the store."""
    keep = Answers.keep

    def kept(self: Answers, shard: Shard, *arguments: Any) -> bool:
        with pytest.MonkeyPatch.context() as meanwhile:
            meanwhile.setattr(shard, "answer", lambda record: None)
            return keep(self, shard, *arguments)

    patch.setattr(Answers, "keep", kept)


def lost_wakeup(patch: pytest.MonkeyPatch) -> None:
    """Who waits for a run of a shard that goes is forgotten, and not sent to its new owner."""

    def left(self: Outcomes, shard: Shard, error: ShardMoved) -> None:
        for key in [key for key in self._waiters if self._kernel.number_of(key) == shard.id]:
            del self._waiters[key]

    patch.setattr(Outcomes, "left", left)


def read_too_early(patch: pytest.MonkeyPatch) -> None:
    """What a run does while its reading waits for the disk is not noticed: when the run leaves memory meanwhile, its old
    state comes back."""

    stored = Loader._stored

    async def unmarked(loader: Loader, shard: Shard, records: Sequence[RunRecord]) -> Any:
        shard.outdated.difference_update(record.iid for record in records)
        return await stored(loader, shard, records)

    patch.setattr(Loader, "_stored", unmarked)


# ---- results and snapshots


def any_result(patch: pytest.MonkeyPatch) -> None:
    """A result counts for the item that it is of, whichever attempt it comes from."""

    def accepted(turn: Turn, task: int, at: Token) -> ItemState | None:
        item = turn.state.tasks[task].items[at.item]
        return item if item.status in {"running", "waiting_for_input"} else None

    def item_of(run: Run, token: Token) -> tuple[int, int] | None:
        return next(((task, index) for task, index, _ in open_items(run) if index == token.item), None)

    patch.setattr(core_attempts, "_accepted", accepted)
    patch.setattr(engine_results, "_item_of", item_of)


def stale_snapshot(patch: pytest.MonkeyPatch) -> None:
    """A snapshot is made once, and written again as that of a later event."""
    snapshot = Run.snapshot
    first: dict[RunKey, bytes] = {}

    def cached(self: Run) -> bytes:
        state = decode_snapshot(first.setdefault(self.key, snapshot(self)))
        assert state is not None, "it was made just now"
        state.seq = self.state.seq
        return encode_snapshot(state)

    patch.setattr(Run, "snapshot", cached)


# ---- the registry


def no_resync(patch: pytest.MonkeyPatch) -> None:
    """After a gap the watch goes on with what is there: what was deleted meanwhile is never told."""
    reset = View.reset

    def added(self: View, kvs: dict[bytes, Kv], revision: int) -> None:
        reset(self, {**self.actual, **kvs}, revision)

    patch.setattr(View, "reset", added)


#: In the order in which the table shows them.
BUGS: tuple[Bug, ...] = (
    Bug("blind write", blind_write, storm, range(4), ("audit:offsets",),
        ("test_the_same_append_twice_stores_once",)),
    Bug("no epoch check", no_epoch_check, scenarios.woken_owner, range(4), ("fence",),
        ("test_a_deposed_owner_cannot_append",)),
    Bug("acknowledged before it is stored", early_acknowledgement, storm, range(4), ("lost",)),
    Bug("ambiguous append sent again", doubled_append, storm, range(4), ("audit:sequence", "wrong-result")),
    Bug("effect sent before it is written", effect_before_its_event, storm, range(8), ("unauthorised", "twice")),
    Bug("no epoch barrier", no_barrier, storm, range(8), ("twice",)),
    Bug("deposed owner obeyed", old_owner_obeyed, scenarios.late_arrival, range(4), ("at-once",)),
    Bug("timer lost on failover", lost_timer, scenarios.patient_runs, range(2), ("late",)),
    Bug("one-shot recovery", one_shot_recovery, scenarios.patient_runs, range(2), ("audit:stalled", "late")),
    Bug("request ids in memory", request_in_memory, scenarios.repeated_request, range(2), ("request-twice",)),
    Bug("lost wake-up", lost_wakeup, scenarios.waiting_client, range(2), ("stalled",)),
    Bug("run read back while it ended", read_too_early, scenarios.ended_while_read, range(2),
        ("audit:sequence", "twice")),
    Bug("superseded result accepted", any_result, scenarios.returned_worker, range(2), ("wrong-result",)),
    Bug("stale snapshot", stale_snapshot, scenarios.parked_twice, range(2), ("audit:snapshot",)),
    Bug("cut without a tombstone", no_tombstone, scenarios.cut_history, range(2), ("audit:offsets",),
        ("test_a_cut_takes_rows_away_and_leaves_a_tombstone",)),
    Bug("watch without resync", no_resync, scenarios.registry_gap, range(2), ("missed",)),
)  # fmt: skip
