"""The lease of this process, kept by a thread of its own with blocking stubs.

A thread, because a loop that is busy for a moment must not cost the membership; and a beat, because a loop that hangs
must (PROTOCOL rule 17). Each renewal is a short stream with one request and a deadline: nothing to go half-open.
Losing the lease stops nobody: a new one is taken as soon as etcd answers, and the registry writes everything again.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from typing import Any

import grpc
import structlog
from tenacity import Retrying, retry_if_exception_type, stop_when_event_set, wait_random_exponential

from onexflow.registry.etcd.client import CHANNEL_OPTIONS, LEASE_GRANT, LEASE_KEEP_ALIVE, TRANSIENT, Endpoints
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.registry.etcd.v1 import etcd_pb2 as pb

_log = structlog.get_logger("onexflow.registry")


class _NoAnswer(Exception):
    """etcd did not renew or grant; try again."""


class LeaseKeeper:
    """Takes a lease and keeps it. `on_lease(id)` and `on_failure(reason)` are called on the keeper's thread."""

    def __init__(
        self, settings: EtcdSettings, on_lease: Callable[[int], None], on_failure: Callable[[str], None]
    ) -> None:
        self.lease = 0
        #: When etcd last answered, and when an answer last came after a gap in which other leases may have ended.
        self.answered_at = time.monotonic()
        self.gap_ended_at = float("-inf")
        self._settings = settings
        self._on_lease = on_lease
        self._on_failure = on_failure
        self._beat_at = time.monotonic()
        self._endpoints = Endpoints(settings.endpoints)
        self._channels: dict[str, grpc.Channel] = {}
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onexflow-lease", daemon=True)

    @property
    def gap(self) -> float:
        """So long without a renewal means that a lease may have ended: it is renewed at a third of its time."""
        return 2 * self._settings.ttl / 3

    def start(self) -> None:
        self.beat()
        self._thread.start()

    def beat(self) -> None:
        self._beat_at = time.monotonic()

    def check(self) -> None:
        """Look at the lease now: there are signs that it is gone."""
        self._wake.set()

    def stop(self) -> None:
        """End the thread and wait for its end. Legal before start."""
        self._stop.set()
        self._wake.set()
        for channel in tuple(self._channels.values()):
            channel.close()
        if self._thread.is_alive():
            self._thread.join(self._settings.try_timeout + 1.0)

    def _run(self) -> None:
        retrying = Retrying(
            retry=retry_if_exception_type(_NoAnswer),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            stop=stop_when_event_set(self._stop),
            sleep=self._pause,
            reraise=True,
        )
        while not self._stop.is_set():
            try:
                retrying(self._keep)
            except _NoAnswer:
                return
            except Exception as error:  # noqa: BLE001 - the membership must not end with a bug in one renewal
                if self._stop.is_set():  # the channels were closed under a call
                    return
                _log.exception("lease.failed")
                self._on_failure(str(error))
            self._pause(self._settings.ttl / 3)

    def _pause(self, seconds: float) -> None:
        if not self._stop.is_set():
            self._wake.wait(seconds)
            self._wake.clear()

    def _keep(self) -> None:
        while time.monotonic() - self._beat_at > self._settings.beat_limit:
            if self._stop.wait(self._settings.beat_limit / 8):
                return
        if self._stop.is_set():
            return
        endpoint = self._endpoints.current
        try:
            if not (self.lease and self._renew(endpoint)):
                self._grant(endpoint)
        except grpc.RpcError as error:
            code, detail = error.code(), error.details()
            if code in TRANSIENT:
                self._endpoints.rotate(endpoint)
            self._on_failure(f"{code.name}: {detail}")
            raise _NoAnswer from error
        now = time.monotonic()
        if now - self.answered_at > self.gap:
            self.gap_ended_at = now
        self.answered_at = now

    def _renew(self, endpoint: str) -> bool:
        method: Any = self._channel(endpoint).stream_stream(
            LEASE_KEEP_ALIVE,
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )
        call = method(iter([pb.LeaseKeepAliveRequest(id=self.lease)]), timeout=self._settings.try_timeout)
        answer = next(iter(call), None)
        call.cancel()
        return answer is not None and answer.ttl > 0

    def _grant(self, endpoint: str) -> None:
        method: Any = self._channel(endpoint).unary_unary(
            LEASE_GRANT,
            request_serializer=pb.LeaseGrantRequest.SerializeToString,
            response_deserializer=pb.LeaseGrantResponse.FromString,
        )
        # An id of our own: a grant whose answer was lost is an unused lease, which ends by itself.
        request = pb.LeaseGrantRequest(ttl=max(1, round(self._settings.ttl)), id=secrets.randbits(62) + 1)
        answer = method(request, timeout=self._settings.try_timeout)
        if self.lease:
            _log.warning("lease.lost", lease=self.lease, new=answer.id)
        self.lease = answer.id
        self._on_lease(answer.id)

    def _channel(self, endpoint: str) -> grpc.Channel:
        channel = self._channels.get(endpoint)
        if channel is None:
            channel = self._channels[endpoint] = grpc.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
        return channel
