"""The one place that knows the NATS library: a connection to JetStream as a `publisher.Link`.

The library's own reconnecting is off: what was on a connection when it broke is known here, and sent again in order,
while the library would send what waited in its buffer after what it had lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from typing import Any, Final, NoReturn

import msgspec
import nats
import nats.errors
import nats.js.api
import nats.js.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from onexflow.bridge.message import Message
from onexflow.bridge.publisher import Ear, Refusal
from onexflow.codec.payload import UNREADABLE
from onexflow.core.errors import NatsUnavailable, NatsUnusable

log = structlog.get_logger("onexflow.bridge")

#: Seconds for opening a connection, and for one question to JetStream.
CONNECT_WITHIN: Final = 5.0
ASK_WITHIN: Final = 5.0
#: Seconds between two pings of a connection on which nothing comes; the second that is not answered ends it.
PING_EVERY: Final = 10
#: JetStream's own codes: the message is larger than the stream takes; there is no such stream; it is another one.
_TOO_LARGE: Final = 10054
_NO_STREAM: Final = frozenset({10059, 10060})
_DENIED: Final = re.compile(r"permissions violation for publish to \"([^\"]*)\"")


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """Where to, and as whom."""

    servers: tuple[str, ...]
    stream: str
    #: What the stream must take.
    subjects: str
    #: Make the stream when there is none.
    create: bool = False
    user: str = ""
    password: str = ""
    token: str = ""
    tls: ssl.SSLContext | None = None


class _Ack(msgspec.Struct):
    """What JetStream answers to a message."""

    error: _Error | None = None


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


_decode_ack: Final = msgspec.json.Decoder(_Ack).decode


class JetStream:
    """Opens links to a target."""

    def __init__(self, target: Target) -> None:
        self._target = target

    async def dial(self, ear: Ear) -> NatsLink:
        """A link to a stream that is there and takes the subjects. Raises NatsUnavailable (try again), NatsUnusable."""
        link = NatsLink(ear, self._target)
        try:
            await link.open()
        except BaseException:
            await link.close()
            raise
        return link


class NatsLink:
    """Implements `publisher.Link`."""

    def __init__(self, ear: Ear, target: Target) -> None:
        self._ear = ear
        self._target = target
        self._client = Client()
        self._inbox = ""
        self._open = True
        #: What the library has complained about last.
        self._error: Exception | None = None

    async def open(self) -> None:
        target = self._target
        options: dict[str, Any] = {
            "user": target.user or None,
            "password": target.password or None,
            "token": target.token or None,
            "tls": target.tls,
        }
        try:
            async with asyncio.timeout(CONNECT_WITHIN):
                await self._client.connect(
                    list(target.servers),
                    name="onex-bridge",
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # for each server of the list, and without waiting
                    reconnect_time_wait=0,
                    connect_timeout=max(1, round(CONNECT_WITHIN)),
                    ping_interval=PING_EVERY,
                    max_outstanding_pings=1,
                    pending_size=0,  # never wait for the other end in the middle of a send
                    error_cb=self._on_error,
                    closed_cb=self._on_closed,
                    **options,
                )
        except Exception as error:  # noqa: BLE001 - whatever speaks there need not speak NATS
            self._not_connected(error)
        if not self._client.is_connected:  # the server hung up in the middle of the greeting
            self._not_connected(self._error or nats.errors.ConnectionClosedError())
        await self._check_stream()
        self._inbox = self._client.new_inbox()
        await self._client.subscribe(f"{self._inbox}.*", cb=self._on_reply)

    @property
    def max_size(self) -> int:
        return self._client.max_payload

    async def send(self, number: int, message: Message) -> None:
        try:
            await self._client.publish(
                message.subject, message.body, reply=f"{self._inbox}.{number}", headers=message.headers
            )
        except (OSError, nats.errors.Error) as error:
            raise ConnectionError(_words(error)) from error

    async def close(self) -> None:
        if not self._open:
            return
        self._open = False
        # The library would first wait until everything that it holds is written, which the other end decides.
        transport = self._client._transport  # noqa: SLF001 - it has no other way
        for writer in (getattr(transport, "_io_writer", None), getattr(transport, "_bare_io_writer", None)):
            if writer is not None:
                writer.transport.abort()
        with contextlib.suppress(Exception):  # of a connection that never came about, or is broken
            async with asyncio.timeout(1.0):
                await self._client.close()

    # ---- what the library tells

    async def _on_reply(self, message: Msg) -> None:
        number = int(message.subject.rpartition(".")[2])
        if self._open:
            self._ear.answered(number, _refusal(message))

    async def _on_error(self, error: Exception) -> None:
        self._error = error
        denied = _DENIED.search(str(error))
        if denied is not None and self._open:
            self._ear.denied(denied[1], f"NATS does not permit publishing to {denied[1]}")

    async def _on_closed(self) -> None:
        if self._open:
            self._ear.lost(f"the connection was lost{f': {_words(self._error)}' if self._error else ''}")

    # ---- before the first message

    def _not_connected(self, error: Exception) -> NoReturn:
        shown = ", ".join(self._target.servers)
        if isinstance(error, nats.errors.NoServersError) and self._error is not None:
            error = self._error
        words = _words(error)
        if "authorization violation" in words.lower() or "authentication" in words.lower():
            hint = "Look at nats.user and nats.password, or nats.token."
            raise NatsUnusable(f"NATS at {shown} refuses these credentials", {"hint": hint}) from error
        if isinstance(error, ssl.SSLError):
            raise NatsUnusable(f"no TLS with NATS at {shown}: {words}", {"hint": "Look at nats.ca, nats.certificate and nats.key."}) from error  # fmt: skip
        raise NatsUnavailable(f"NATS at {shown} cannot be reached: {words}", {"servers": shown}) from error

    async def _check_stream(self) -> None:
        target = self._target
        name = target.stream
        manager = self._client.jsm(timeout=ASK_WITHIN)
        try:
            try:
                config = (await manager.stream_info(name)).config
            except nats.js.errors.NotFoundError as error:
                if not target.create:
                    hint = f"Make one that takes {target.subjects}, or say nats.create_stream (--nats-create-stream)."
                    raise NatsUnusable(f"NATS has no stream {name!r}", {"stream": name, "hint": hint}) from error
                config = (await manager.add_stream(_config_of(target))).config
                log.info("stream.created", stream=name, subjects=target.subjects)
        except nats.js.errors.ServiceUnavailableError as error:
            hint = "Start the server with JetStream (`nats-server -js`); a cluster needs a majority of its members."
            raise NatsUnavailable("NATS answers, but JetStream does not", {"hint": hint}) from error
        except (nats.js.errors.APIError, ValueError) as error:
            raise NatsUnusable(f"stream {name!r} cannot be used: {_words(error)}", {"stream": name}) from error
        except (OSError, nats.errors.Error) as error:
            reason = self._error if isinstance(error, nats.errors.TimeoutError) and self._error else error
            if "permissions violation" in str(reason):
                hint = "The user needs what docs/nats.md lists under Permissions."
                raise NatsUnusable(f"NATS: {_words(reason)}", {"stream": name, "hint": hint}) from error
            raise NatsUnavailable(f"JetStream does not answer: {_words(reason)}", {"stream": name}) from error
        if not any(covers(pattern, target.subjects) for pattern in config.subjects or ()):
            taken = ", ".join(config.subjects or ()) or "none"
            raise NatsUnusable(
                f"stream {name!r} takes the subjects {taken}, and not {target.subjects}",
                {"stream": name, "hint": f"Add {target.subjects} to its subjects, or name another stream."},
            )
        if config.no_ack:
            raise NatsUnusable(f"stream {name!r} acknowledges nothing (no_ack)", {"stream": name})
        if not config.duplicate_window:
            log.warning("stream.keeps_duplicates", stream=name, hint="give the stream a duplicate window")


def covers(pattern: str, wanted: str) -> bool:
    """Does everything that `wanted` (which ends with `>`) matches match the pattern?"""
    have, want = pattern.split("."), wanted.split(".")
    for place, part in enumerate(have):
        if part == ">":
            return place < len(want)
        if place >= len(want) or want[place] == ">" or part not in ("*", want[place]):
            return False
    return False


def _config_of(target: Target) -> nats.js.api.StreamConfig:
    """On disk, without a limit; if it is given one, what does not fit waits, rather than pushing out what nobody has read."""
    return nats.js.api.StreamConfig(
        name=target.stream,
        subjects=[target.subjects],
        storage=nats.js.api.StorageType.FILE,
        discard=nats.js.api.DiscardPolicy.NEW,
        duplicate_window=120.0,
    )


def _refusal(message: Msg) -> Refusal | None:
    """What the answer to a message says."""
    if (message.headers or {}).get("Status") == "503":
        return Refusal("no stream takes the subject", "gone")
    try:
        error = _decode_ack(message.data).error
    except UNREADABLE as unreadable:
        return Refusal(f"JetStream's answer cannot be read: {unreadable}")
    if error is None:
        return None
    reason = f"JetStream: {error.description} ({error.err_code})"
    if error.err_code == _TOO_LARGE:
        return Refusal(reason, "never")
    return Refusal(reason, "gone" if error.err_code in _NO_STREAM else "again")


def _words(error: Exception | None) -> str:
    """What went wrong, without the library's name in front."""
    text = " ".join(str(error).removeprefix("nats: ").split())
    return text.strip("'") or type(error).__name__
