"""The worker's stream on the wire: everything comes back as it went, and what is wrong names its field."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from onexflow.codec.wire.worker_request import from_request, to_requests
from onexflow.codec.wire.worker_response import from_response, to_responses
from onexflow.core.errors import ProtocolViolation
from onexflow.core.ids import Token
from onexflow.core.payload import Failure, Payload
from onexflow.ports import worker_link as link
from onexflow.v1 import common_pb2, worker_pb2

TOKEN = Token(3, 2**40, 2**50, 7)
ASSIGNMENT = link.Assignment(
    token=TOKEN,
    info=link.TaskInfo("order", "charge", "effect", "charge", 1.5, 0.5),
    namespace="default",
    instance_id="01890000-0000-7000-8000-000000000001",
    attempt=2,
    input=Payload(b'{"a":1}'),
    idempotency_key="k",
    trace="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    progress=Payload(b"\x00\xff", "raw"),
)


@pytest.mark.parametrize(
    "message",
    [
        link.Hello(
            worker_id="w1",
            incarnation="i1",
            handlers=(link.HandlerInfo("effect", "charge", False), link.HandlerInfo("reducer", "sum")),
            slots={"effect": 4, "reducer": 1},
            liveness="127.0.0.1:5",
            build_id="b",
            labels={"zone": "a"},
        ),
        link.Credits({"effect": 3}),
        link.Results(
            [
                link.AttemptResult(TOKEN, "completed", Payload(b"[1]"), None, 1, 2),
                link.AttemptResult(TOKEN, "completed", Payload(b"\x00", "raw"), None, 1, 2),
                link.AttemptResult(TOKEN, "failed", error=Failure("E", "m", "t", "OXF-4002", False, {"a": [1]})),
                link.AttemptResult(TOKEN, "stopped"),
                link.AttemptResult(TOKEN, "returned"),
            ]
        ),
        link.Results([link.AttemptResult(TOKEN, "stopped")], {"effect": 3}),
        link.Held(3, 9, [TOKEN]),
        link.Progress(TOKEN, Payload(b'"half"')),
        link.Fed(TOKEN, 0),
        link.Fed(TOKEN, 64),
        link.WorkerDraining(),
        link.Lifecycle((link.HandlerInfo("effect", "charge", True, "ready"), link.HandlerInfo("orchestrator", "lead"))),
        link.Goodbye(),
        link.Pong(5),
    ],
)
def test_messages_of_a_worker_come_back_as_they_went(message: link.FromWorker) -> None:
    (sent,) = to_requests(message)
    assert from_request(worker_pb2.SessionRequest.FromString(sent.SerializeToString())) == message


@pytest.mark.parametrize(
    "message",
    [
        link.Welcome(orchestrator_id="o", epochs={1: 2, 3: 2**40}, orchestrators=("127.0.0.1:1",)),
        link.ShardEpoch(1, 2),
        link.Assignments([ASSIGNMENT]),
        link.Assignments([ASSIGNMENT], link.Ack([TOKEN], [Token(1, 1, 1)], {3: 2**50})),
        link.Assignments(
            [msgspec.structs.replace(ASSIGNMENT, info=link.TaskInfo("order", "sum", "reducer", "sum", fed=True))]
        ),
        link.Feed(TOKEN, [link.FedItem(7, Payload(b"[1]")), link.FedItem(0, Payload(b"\x00", "raw"))]),
        link.Feed(TOKEN, [], True),
        link.Ack([TOKEN], [Token(1, 1, 1)], {3: 2**50}),
        link.Cancel([TOKEN], "because"),
        link.Recall("compute", 3),
        link.Demand({"compute": 12}),
        link.Drain("away"),
        link.Ping(5),
    ],
)
def test_messages_of_an_orchestrator_come_back_as_they_went(message: link.ToWorker) -> None:
    (sent,) = to_responses(message, shares_tasks=True)
    assert from_response(worker_pb2.SessionResponse.FromString(sent.SerializeToString())) == message


def test_batches_are_cut_at_64_entries_and_at_a_mebibyte() -> None:
    small = link.Results([link.AttemptResult(TOKEN, "stopped")] * 130)
    assert [len(one.results.results) for one in to_requests(small)] == [64, 64, 2]

    big = Payload(b'"' + b"x" * (400 << 10) + b'"')
    large = link.Results([link.AttemptResult(TOKEN, "completed", big)] * 5)
    assert [len(one.results.results) for one in to_requests(large)] == [2, 2, 1]
    assert all(one.ByteSize() <= 1 << 20 for one in to_requests(large))

    assert list(to_requests(link.Results([]))) == []


def test_a_feed_is_cut_and_its_last_part_is_the_last() -> None:
    feed = link.Feed(TOKEN, [link.FedItem(index, Payload(b"1")) for index in range(130)], True)
    parts = [from_response(one) for one in to_responses(feed, shares_tasks=True)]
    assert [(len(part.items), part.is_last) for part in parts if isinstance(part, link.Feed)] == [
        (64, False),
        (64, False),
        (2, True),
    ]


def test_what_goes_along_with_a_batch_goes_once() -> None:
    results = link.Results([link.AttemptResult(TOKEN, "stopped")] * 130, {"effect": 3})
    assert [one.results.HasField("credits") for one in to_requests(results)] == [True, False, False]
    assignments = link.Assignments([ASSIGNMENT] * 130, link.Ack([TOKEN]))
    assert [one.assignments.HasField("ack") for one in to_responses(assignments, shares_tasks=True)] == [
        True,
        False,
        False,
    ]


def test_the_progress_of_the_attempt_before_is_left_out_where_it_would_make_the_message_too_large() -> None:
    large = msgspec.structs.replace(ASSIGNMENT, input=Payload(b"x" * (6 << 20)), progress=Payload(b"y" * (2 << 20)))
    (response,) = to_responses(link.Assignments([large]), shares_tasks=True)
    assert response.ByteSize() < 7 << 20
    assert not response.assignments.assignments[0].HasField("progress")


def test_what_assignments_have_in_common_goes_once_to_those_who_share_it() -> None:
    other = msgspec.structs.replace(ASSIGNMENT, info=link.TaskInfo("order", "ship", "compute", "ship"))
    message = link.Assignments([ASSIGNMENT, other, ASSIGNMENT])
    (shared,) = to_responses(message, shares_tasks=True)
    (plain,) = to_responses(message, shares_tasks=False)
    assert [one.shared for one in shared.assignments.assignments] == [1, 2, 1]
    assert [one.handler for one in plain.assignments.assignments] == ["charge", "ship", "charge"]
    assert not plain.assignments.tasks
    assert from_response(shared) == from_response(plain) == message


def test_an_assignment_of_a_task_that_was_not_told_is_refused() -> None:
    (response,) = to_responses(link.Assignments([ASSIGNMENT]), shares_tasks=True)
    response.assignments.assignments[0].shared = 2
    with pytest.raises(ProtocolViolation, match="task 2 of 1"):
        from_response(response)


def test_acks_are_cut_and_lose_no_token() -> None:
    tokens = [Token(1, 1, offset) for offset in range(3000)]
    parts = [from_response(one) for one in to_responses(link.Ack(tokens, tokens[:1500], {1: 9}), shares_tasks=True)]
    assert [token for part in parts if isinstance(part, link.Ack) for token in part.tokens] == tokens
    assert [token for part in parts if isinstance(part, link.Ack) for token in part.discarded] == tokens[:1500]


@pytest.mark.parametrize("payload", [Payload(b'"' + b"x" * (2 << 20) + b'"'), Payload(b"x" * (9 << 20), "raw")])
def test_a_result_that_is_too_large_becomes_a_failure_before_it_is_sent(payload: Payload) -> None:
    (sent,) = to_requests(link.Results([link.AttemptResult(TOKEN, "completed", payload, None, 1, 2)]))
    message = from_request(sent)
    assert isinstance(message, link.Results)
    (result,) = message.results
    assert result.status == "failed"
    assert result.error is not None
    assert result.error.code == "OXF-1001"
    assert not result.error.retryable


@pytest.mark.parametrize("data", [b"{", b"", b'"\xff"', b"[" * 100_000])
def test_a_result_that_is_no_json_fails_its_attempt_and_not_the_stream(data: bytes) -> None:
    result = worker_pb2.AttemptResult(
        token=common_pb2.Token(shard=1), status="completed", result=common_pb2.Payload(data=data)
    )
    message = from_request(worker_pb2.SessionRequest(results=worker_pb2.Results(results=[result])))
    assert isinstance(message, link.Results)
    assert message.results[0].status == "failed"
    assert message.results[0].error is not None
    assert "JSON" in message.results[0].error.message


def _results(**fields: Any) -> worker_pb2.SessionRequest:
    return worker_pb2.SessionRequest(results=worker_pb2.Results(results=[worker_pb2.AttemptResult(**fields)]))


def _hello(**fields: Any) -> worker_pb2.SessionRequest:
    return worker_pb2.SessionRequest(
        hello=worker_pb2.Hello(**{"worker_id": "w", "incarnation": "i", "protocol_version": 1, **fields})
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        (worker_pb2.SessionRequest(), "message"),
        (_results(status="completed"), "results.token"),
        (_results(token=common_pb2.Token(), status="done"), "results.status"),
        (_results(token=common_pb2.Token(), status="stopped", started_at=-1), "results.started_at"),
        (_results(token=common_pb2.Token(), status="stopped", finished_at=-1), "results.finished_at"),
        (worker_pb2.SessionRequest(progress=worker_pb2.Progress()), "progress.token"),
        (worker_pb2.SessionRequest(credits=worker_pb2.Credits(granted={"boss": 1})), "credits.granted"),
        (worker_pb2.SessionRequest(credits=worker_pb2.Credits(granted={"effect": 2**31})), "credits.granted"),
        (_hello(worker_id=""), "hello.worker_id"),
        (_hello(worker_id="x" * 256), "hello.worker_id"),
        (_hello(incarnation="a\nb"), "hello.incarnation"),
        (_hello(slots={"boss": 1}), "hello.slots"),
        (_hello(handlers=[worker_pb2.HandlerInfo(role="effect")]), "hello.handlers.name"),
        (_hello(handlers=[worker_pb2.HandlerInfo(role="boss", name="x")]), "hello.handlers.role"),
        (_hello(handlers=[worker_pb2.HandlerInfo(role="effect", name="x", state="odd")]), "hello.handlers.state"),
        (_hello(labels={str(n): "" for n in range(65)}), "hello.labels"),
    ],
)
def test_what_is_wrong_is_refused_and_its_field_named(message: worker_pb2.SessionRequest, field: str) -> None:
    with pytest.raises(ProtocolViolation) as caught:
        from_request(message)
    assert caught.value.context["field"] == field
