"""Stored rows: every event comes back as it was, what is not known is kept, and rows of old releases stay readable."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from onexflow.codec.definitions import load_definition
from onexflow.codec.rows import UnknownEvent, decode_row, decode_snapshot, encode_row, encode_snapshot, split_row
from onexflow.core.compiler import compile_graph
from onexflow.core.errors import StoreUnusable
from onexflow.core.events import (
    EVENTS,
    KINDS,
    CompensationCompleted,
    CompensationStarted,
    DependencyFailed,
    DependencyResolved,
    Event,
    StateTransitioned,
    TaskCompleted,
    TaskFailed,
    TaskRetry,
    TaskScheduled,
    TaskStarted,
    WorkflowCancelled,
    WorkflowCompleted,
    WorkflowCreated,
    WorkflowFailed,
    WorkflowPaused,
    WorkflowResumed,
    WorkflowStarted,
    WorkflowTimedOut,
)
from onexflow.core.evolve import evolve
from onexflow.core.machine import TERMINAL_WORKFLOW_STATES
from onexflow.core.payload import Failure, Payload
from onexflow.core.state import RunState
from onexflow.engine.views import event_views
from onexflow.ports.event_store import Row
from support.core_driver import INSTANCE, Model, Stored, fold, one_task

FIXTURES = Path(__file__).parent.parent / "fixtures" / "rows"
AT = 1_767_225_600_000_000_000

#: One event of each type, with every field of release 0.1 set.
ALL: list[Event] = [
    WorkflowCreated(
        "default", "order", 2, "ab" * 32, INSTANCE.bytes, Payload(b'{"a":1}'), "corr", "cause", AT, AT + 5,
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "alice", "req-1", 1, "",
    ),
    WorkflowStarted(),
    WorkflowPaused("lunch"),
    WorkflowResumed("back"),
    WorkflowCompleted(Payload(b"\x00\x01", "bytes")),
    WorkflowFailed(Failure("Boom", "it broke", "trace", "OXF-4002", False, {"task": "a", "item": 3})),
    WorkflowCancelled("not needed"),
    WorkflowTimedOut("late"),
    TaskScheduled(3, 2, 10, 2, 40, -2, (Payload(b"1"), Payload(b"2")), "again"),
    TaskStarted(3, [10, 11], "w1", "w1.1", AT, False),
    TaskCompleted(3, [10, 11], [Payload(b"1"), Payload(b'"x"')], "resolved"),
    TaskFailed(3, 10, Failure("Boom", "no"), "timeout"),
    TaskRetry(3, 10, 3, AT + 7, Failure("Boom", "no"), "lost", "w1"),
    DependencyResolved("", Payload(b"1")),
    DependencyFailed("", Payload(b"2")),
    StateTransitioned("task.skipped", "pending", "skipped", [1, 2], 0, "input.no", AT, Failure("x", "y")),
    CompensationStarted("", Payload(b"3")),
    CompensationCompleted(""),
]  # fmt: skip


#: And with what release 0.2 has added.
ALL_0_2: list[Event] = [
    *ALL,
    StateTransitioned("run.assigned", "running", "running", node="n1"),
    StateTransitioned("stream.published", "order.paid", "", data=Payload(b"\x01", "bytes")),
]

#: And with what release 0.3 has added.
ALL_0_3: list[Event] = [
    *ALL_0_2,
    WorkflowCancelled("not needed", "compensating"),
    CompensationStarted("failed", None, "too late", Failure("Boom", "it broke")),
    StateTransitioned("task.cancelled", "running", "cancelled", [1], 0, "it was told to stop, and has"),
    CompensationCompleted("failed"),
]

#: And with what release 0.4 has added.
ALL_0_4: list[Event] = [*ALL_0_3, WorkflowPaused("lunch", by="bob")]


def test_every_type_of_event_is_here() -> None:
    assert [type(event) for event in ALL] == list(EVENTS)
    assert set(KINDS) == {event.type for event in EVENTS}
    assert len({event.type for event in EVENTS}) == 18


def test_every_event_comes_back_as_it_was() -> None:
    assert decode_row(encode_row(AT, ALL)) == (AT, ALL, {})
    assert decode_row(encode_row(AT, ALL[:1], {"principal": "bob"})) == (AT, ALL[:1], {"principal": "bob"})


def test_rows_of_release_0_1_are_read_for_ever() -> None:
    """Never write these files anew: what they hold is in people's stores."""
    stored = (FIXTURES / "release-0.1.row").read_bytes()
    assert decode_row(stored) == (AT, ALL, {"principal": "bob"})


def test_rows_of_release_0_2_are_read_for_ever() -> None:
    stored = (FIXTURES / "release-0.2.row").read_bytes()
    assert decode_row(stored) == (AT, ALL_0_2, {"principal": "bob"})


def test_rows_of_release_0_3_are_read_for_ever() -> None:
    stored = (FIXTURES / "release-0.3.row").read_bytes()
    assert decode_row(stored) == (AT, ALL_0_3, {"principal": "bob"})


def test_rows_of_release_0_4_are_read_for_ever() -> None:
    stored = (FIXTURES / "release-0.4.row").read_bytes()
    assert decode_row(stored) == (AT, ALL_0_4, {"principal": "bob"})


def test_release_0_4_still_writes_what_it_wrote() -> None:
    """A new field at an event's end changes these bytes: then keep the old file, and add one of the new release."""
    assert encode_row(AT, ALL_0_4, {"principal": "bob"}) == (FIXTURES / "release-0.4.row").read_bytes()


def test_an_event_of_a_newer_release_is_kept_and_shown() -> None:
    new = msgspec.msgpack.encode(
        [1, AT, [[99, "x", 5], [2, ""], [3, "why", "", "bob", "a new field"]], None, "a new part"]
    )
    at, events, _ = decode_row(new)
    assert at == AT
    assert events == [UnknownEvent([99, "x", 5]), WorkflowStarted(), WorkflowPaused("why", by="bob")]
    shown = event_views([Row(7, 3, 2, 1, 5, new)], 4, None, 1)
    assert [(view.sequence, view.type, view.offset) for view in shown] == [
        (5, "unknown", 7),
        (6, "workflow.started", 8),
        (7, "workflow.paused", 9),
    ]
    assert shown[0].data["fields"] == [99, "x", 5]


def test_a_row_is_split_between_its_events_whatever_they_are() -> None:
    new = msgspec.msgpack.encode(
        [1, AT, [[99, "x", 5], [2, ""], [3, "why", "", "bob", "a new field"]], {"principal": "bob"}]
    )
    for count in range(4):
        head, rest = split_row(new, count)
        assert decode_row(head)[0] == decode_row(rest)[0] == AT
        assert decode_row(head)[1] + decode_row(rest)[1] == decode_row(new)[1]
        assert len(decode_row(head)[1]) == count
        assert decode_row(head)[2] == decode_row(rest)[2] == {"principal": "bob"}
        raw = [msgspec.msgpack.decode(part)[2] for part in (head, rest)]
        assert raw[0] + raw[1] == msgspec.msgpack.decode(new)[2], "fields of a newer release stay too"
    with pytest.raises(StoreUnusable):
        split_row(b"no row", 1)


def test_an_unknown_kind_is_kept_and_changes_no_state() -> None:
    event = StateTransitioned("signal.received", "running", "running", [0])
    assert decode_row(encode_row(AT, [event]))[1] == [event]
    model = Model(one_task())
    before = msgspec.structs.asdict(model.state)
    folded = model.fold()
    evolve(model.graph, folded, event, 1, 99, model.now)
    after = msgspec.structs.asdict(folded)
    assert after.pop("seq") == before.pop("seq") + 1
    assert after == before


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xc1",
        b"garbage",
        *map(
            msgspec.msgpack.encode,
            ([1], {}, *([1, AT, [event]] for event in ({}, {0: 99}, [], [0], [-1], [1.5], "text"))),
        ),
    ],
)
def test_bytes_that_are_no_row_are_refused(data: bytes) -> None:
    with pytest.raises(StoreUnusable, match="cannot be read"):
        decode_row(data)


def test_a_field_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(StoreUnusable):
        decode_row(msgspec.msgpack.encode([1, AT, [[9, "not a number"]]]))


def test_a_snapshot_of_another_form_is_left_to_the_events() -> None:
    model = Model(one_task())
    data = encode_snapshot(model.state)
    assert decode_snapshot(data) == model.state
    assert decode_snapshot(msgspec.msgpack.encode([2, *msgspec.msgpack.decode(data)[1:]])) is None
    assert decode_snapshot(b"garbage") is None
    assert decode_snapshot(b"") is None


def test_text_that_is_no_utf_8_is_no_text_of_ours() -> None:
    model = Model(one_task())
    snapshot = encode_snapshot(model.state)
    assert decode_snapshot(snapshot.replace(b"single", b"sin\xffle")) is None
    row = encode_row(AT, [WorkflowPaused("lunch")], {"principal": "bob"})
    for data in (row.replace(b"lunch", b"lun\xffh"), row.replace(b"bob", b"b\xffb")):
        with pytest.raises(StoreUnusable, match="cannot be read"):
            decode_row(data)
    with pytest.raises(StoreUnusable, match="cannot be read"):
        split_row(row.replace(b"bob", b"b\xffb"), 1)


def test_a_stored_run_of_release_0_1_folds_to_its_state() -> None:
    """The history of a whole run, and its definition, as release 0.1 wrote them."""
    graph = compile_graph(load_definition((FIXTURES / "release-0.1.definition.json").read_bytes(), "json"))
    log: list[Stored] = []
    for data in msgspec.msgpack.decode((FIXTURES / "release-0.1.run").read_bytes(), type=list[bytes]):
        at, events, _ = decode_row(data)
        log.extend(Stored(event, 1, len(log) + 1 + n, at) for n, event in enumerate(events))
    state = fold(graph, log)
    assert state.status in TERMINAL_WORKFLOW_STATES
    expected = (FIXTURES / "release-0.1.state").read_bytes()
    assert msgspec.msgpack.decode(expected, type=RunState) == state
