"""What is asked of the event bus, looked at before anything is done."""

from __future__ import annotations

from typing import Final

from onexflow.codec.payload import decode_value
from onexflow.core.errors import Coded, InvalidArgument
from onexflow.core.ids import RunKey
from onexflow.core.payload import Payload
from onexflow.core.queue_state import is_system_type
from onexflow.ports.events import Consume, Filter, Publish

MAX_NAME: Final = 255
MAX_KEY: Final = 1020  #: of idempotency and partition keys
MAX_NUMBER: Final = 1 << 62  #: of a sequence number, an offset, a time
MAX_WINDOW: Final = 10_000
MAX_NAMES: Final = 1000
MIN_ACK_TIMEOUT: Final = 0.1
#: Groups of an orchestrator, and bytes that they take in the message that lists them.
MAX_GROUPS: Final = 10_000
MAX_GROUP_BYTES: Final = 6 << 20
#: Topics that there are or were, and bytes of their list.
MAX_TOPICS: Final = 200_000
MAX_TOPIC_BYTES: Final = 6 << 20
#: Streams of a shard to which one event id was published.
MAX_STREAMS: Final = 256


def check_text(text: str, field: str, longest: int = MAX_NAME, *, needed: bool = False) -> None:
    """Text that can be stored."""
    if needed and not text:
        raise InvalidArgument(f"{field} is empty", field=field)
    if len(text) > longest:
        raise InvalidArgument(f"{field} has {len(text)} characters, the most are {longest}", field=field)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{field} has a lone surrogate, which UTF-8 cannot express", field=field) from None


def check_names(namespace: str, name: str, *, needed: bool = True) -> None:
    check_text(namespace, "namespace", needed=True)
    check_text(name, "name", needed=needed)


def check_key(key: RunKey) -> None:
    check_text(key.namespace, "namespace", needed=True)
    check_text(key.workflow_type, "workflow_type", needed=True)


def check_consume(request: Consume) -> None:
    where = request.filter
    check_names(where.namespace, request.group, needed=request.projection)
    for field, texts in (("topics", where.topics), ("event_types", where.event_types)):
        if len(texts) > MAX_NAMES:
            raise InvalidArgument(f"{field} has {len(texts)} entries, the most are {MAX_NAMES}", field=field)
        for text in texts:
            check_text(text, field, needed=True)
    if not 1 <= request.window <= MAX_WINDOW:
        raise InvalidArgument(f"window must be between 1 and {MAX_WINDOW:,}", field="window")
    if not (request.ack_timeout >= 0 and request.max_deliveries >= 0):
        raise InvalidArgument("ack_timeout and max_deliveries must not be negative", field="ack_timeout")
    if 0 < request.ack_timeout < MIN_ACK_TIMEOUT:  # what comes again all the time is all that anybody gets
        raise InvalidArgument(f"ack_timeout must be 0 or at least {MIN_ACK_TIMEOUT} seconds", field="ack_timeout")
    for offset in request.positions.values():
        if not 0 <= offset < MAX_NUMBER:
            raise InvalidArgument(f"{offset} is no offset", field="positions")


def size_of_group(name: str, where: Filter) -> int:
    """About how many bytes it takes on the wire, without its positions."""
    texts = (name, *where.topics, *where.event_types)
    return 64 + 4 * (sum(map(len, texts)) + len(texts))


def size_of_topic(name: str) -> int:
    """About how many bytes it takes on the wire."""
    return 24 + 4 * len(name)


def check_publish(request: Publish, payload_limit: int) -> None:
    event = request.event
    check_key(event.key)
    check_text(event.type, "event_type", needed=True)
    for field in ("correlation_id", "causation_id", "source"):
        check_text(getattr(event, field), field)
    check_text(event.idempotency_key, "idempotency_key", MAX_KEY)
    check_text(request.topic, "target_topic")
    check_text(request.partition_key, "partition_key", MAX_KEY)
    if len(event.correlation_chain) > MAX_NAME:
        raise InvalidArgument(f"the correlation chain is longer than {MAX_NAME}", field="correlation_chain")
    for link in event.correlation_chain:
        check_text(link, "correlation_chain")
    if is_system_type(event.key.workflow_type) or request.topic.startswith("$"):
        raise InvalidArgument("names that begin with $ are the engine's own", field="workflow_type")
    for field in ("sequence", "timestamp"):
        if not 0 <= getattr(event, field) < MAX_NUMBER:
            raise InvalidArgument(f"{field} must not be negative, nor beyond {MAX_NUMBER:,}", field=field)
    _check_payload(event.payload, "payload", payload_limit)
    _check_payload(event.metadata, "metadata", payload_limit)


def _check_payload(payload: Payload, field: str, limit: int) -> None:
    if len(payload.data) > limit:
        raise InvalidArgument(f"the {field} has {len(payload.data):,} bytes, the limit is {limit:,}", field=field)
    try:
        decode_value(payload)
    except Coded as error:
        raise InvalidArgument(f"{field}: {error}", field=field) from error
