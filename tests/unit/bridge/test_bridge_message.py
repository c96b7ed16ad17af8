"""An event as a NATS message: subjects that are always legal, ids that are the event's own."""

from __future__ import annotations

import re
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onexflow.bridge.jetstream import covers
from onexflow.bridge.message import event_tokens, message_id, message_of, subjects_of, token
from onexflow.codec.payload import encode_value
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.engine.event_records import event_id_of
from onexflow.ports.events import Delivery, EventRecord, Position

INSTANCE = UUID(int=7)
NAMES = st.text(min_size=1, max_size=255).filter(lambda text: text.isascii() or _is_storable(text))
LEGAL = re.compile(r"[A-Za-z0-9_~%-]+(\.[A-Za-z0-9_~%-]+)*")


def _is_storable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def delivery(
    type_: str = "task.completed", *, namespace: str = "default", workflow: str = "greet", sequence: int = 3, **fields: object
) -> Delivery:  # fmt: skip
    key = RunKey(namespace, workflow, INSTANCE)
    event = EventRecord(
        key=key, type=type_, sequence=sequence,
        **{"event_id": event_id_of(key, sequence), "timestamp": 1_000, "payload": encode_value({"a": 1}),
           "metadata": encode_value({}), **fields},
    )  # fmt: skip
    return Delivery(position=Position(2, 9), event=event, topic=workflow, partition=0, partition_key="p")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("greet", "greet"),
        ("a.b", "a%2Eb"),
        ("a b", "a%20b"),
        ("*", "%2A"),
        (">", "%3E"),
        ("$SYS", "%24SYS"),
        ("größe", "gr%C3%B6%C3%9Fe"),
        ("%41", "%2541"),
        ("\r\n", "%0D%0A"),
    ],
)
def test_names_become_one_token(name: str, expected: str) -> None:
    assert token(name) == expected


def test_the_dots_of_an_event_type_part_tokens_unless_one_would_be_empty() -> None:
    assert event_tokens("workflow.completed") == "workflow.completed"
    assert event_tokens("a.b c.*") == "a.b%20c.%2A"
    for type_ in (".", "a.", ".a", "a..b"):
        assert event_tokens(type_) == token(type_)
        assert "." not in event_tokens(type_)


@given(NAMES, NAMES, NAMES, NAMES)
def test_every_subject_is_legal_short_and_one_of_its_clusters(
    cluster: str, namespace: str, workflow: str, type_: str
) -> None:
    message = message_of(delivery(type_, namespace=namespace, workflow=workflow), cluster, "s")
    assert LEGAL.fullmatch(message.subject)
    assert len(message.subject) < 1000
    prefix = subjects_of(cluster).removesuffix(">")
    assert message.subject.startswith(prefix)
    assert message.subject.count(".") >= 4
    for text in message.headers.values():
        assert text.isascii()
        assert text.isprintable()
        assert text == text.strip()


@given(NAMES, NAMES)
def test_different_names_have_different_tokens_also_when_they_are_cut(first: str, second: str) -> None:
    assert (token(first) == token(second)) == (first == second)
    assert (event_tokens(first) == event_tokens(second)) == (first == second)


def test_long_names_that_differ_at_their_end_stay_different() -> None:
    assert len(token("x" * 255)) == 150
    assert token("x" * 254 + "a") != token("x" * 254 + "b")


def test_the_id_is_the_events_own_and_the_same_at_every_reading() -> None:
    one = message_id(delivery(), "local")
    assert one == message_id(delivery(), "local")
    assert one.startswith(f"local/default/greet/{INSTANCE}/3/")
    others = [
        message_id(delivery(), "other"),
        message_id(delivery(namespace="n"), "local"),
        message_id(delivery(workflow="w"), "local"),
        message_id(delivery(sequence=4), "local"),
        message_id(delivery(event_id=UUID(int=1)), "local"),  # published under the run's name, before the run
        message_id(delivery(timestamp=2_000), "local"),  # of another store under the same name
    ]
    assert len({one, *others}) == 7


def test_slashes_in_names_do_not_make_two_events_one() -> None:
    first = message_id(delivery(namespace="a/b", workflow="c"), "local")
    assert first != message_id(delivery(namespace="a", workflow="b/c"), "local")


def test_the_body_is_the_event_and_payloads_go_through_byte_by_byte() -> None:
    message = message_of(delivery(payload=Payload(b'{"big": 123456789012345678901234567890, "f": 1.0}')), "local", "s")
    assert b'"payload":{"big": 123456789012345678901234567890, "f": 1.0}' in message.body
    body = msgspec.json.decode(message.body)
    assert (body["namespace"], body["workflow_type"], body["sequence"], body["type"]) == (
        "default",
        "greet",
        3,
        "task.completed",
    )
    assert body["timestamp"] == "1970-01-01T00:00:00.000001Z"
    assert body["position"] == "2:9"


def test_a_payload_that_is_no_json_goes_out_as_base64() -> None:
    message = message_of(delivery(payload=Payload(b"\x00\xff", "bytes")), "local", "s")
    assert msgspec.json.decode(message.body)["payload"] == {"encoding": "bytes", "base64": "AP8="}


def test_the_size_is_that_of_headers_and_body() -> None:
    message = message_of(delivery(), "local", "s")
    wire = "NATS/1.0\r\n" + "".join(f"{name}: {text}\r\n" for name, text in message.headers.items()) + "\r\n"
    assert message.size == len(wire) + len(message.body)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (">", True),
        ("onexflow.>", True),
        ("onexflow.local.>", True),
        ("onexflow.*.>", True),
        ("*.local.>", True),
        ("onexflow.other.>", False),
        ("onexflow.local.default.>", False),
        ("onexflow.local", False),
        ("onexflow.local.*", False),
        ("onexflow.*", False),
    ],
)
def test_which_streams_take_all_subjects_of_a_cluster(pattern: str, expected: bool) -> None:
    assert covers(pattern, "onexflow.local.>") is expected
