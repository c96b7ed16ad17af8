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

from onexflow.registry.etcd.access import AUTHENTICATE, EtcdError, Login
from onexflow.registry.etcd.client import CHANNEL_OPTIONS, LEASE_GRANT, LEASE_KEEP_ALIVE, Endpoints
from onexflow.registry.etcd.url import EtcdSettings
from onexflow.registry.etcd.v1 import etcd_pb2 as pb
from onexflow.telemetry import metrics, names

_log = structlog.get_logger("onexflow.registry")


class _NoAnswer(Exception):
    """etcd did not renew or grant; try again."""


class LeaseKeeper:
    """Takes a lease and keeps it. `on_lease(id)` and `on_failure(error)` are called on the keeper's thread."""

    def __init__(
        self, settings: EtcdSettings, on_lease: Callable[[int], None], on_failure: Callable[[Exception], None]
    ) -> None:
        self.lease = 0
        #: When etcd last answered, and when an answer last came after a gap in which other leases may have ended.
        self.answered_at = time.monotonic()
        self.gap_ended_at = float("-inf")
        #: When the last request went out that etcd has granted: the lease lasts at least from then.
        self.held_since = float("-inf")
        self._settings = settings
        self._renewals = metrics.histogram(names.REGISTRY_RENEWAL)
        self._on_lease = on_lease
        self._on_failure = on_failure
        self._beat_at = time.monotonic()
        self._endpoints = Endpoints(settings.endpoints)
        self._login = Login(settings.access)
        self._channels: dict[str, grpc.Channel] = {}
        self._stamps: dict[str, tuple[int, ...]] = {}
        self._stop = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="onexflow-lease", daemon=True)

    @property
    def failures(self) -> dict[str, EtcdError]:
        """What each endpoint failed with last; not those that answered."""
        return dict(self._endpoints.failures)

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
                self._on_failure(error)
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
            self._hold_lease(endpoint)
        except (grpc.RpcError, OSError) as error:
            failure = _failure(error)
            self._failed(endpoint, failure)
            self._on_failure(failure)
            raise _NoAnswer from error
        except EtcdError as error:  # the login that was refused a moment ago
            self._on_failure(error)
            raise _NoAnswer from error
        self._endpoints.answered(endpoint)
        now = time.monotonic()
        if now - self.answered_at > self.gap:
            self.gap_ended_at = now
        self.answered_at = now

    def _hold_lease(self, endpoint: str) -> None:
        """Renew the lease, or take one; once more when etcd no longer knew our token."""
        self._log_in(endpoint)
        metadata = self._login.metadata
        try:
            self._renew_or_grant(endpoint)
        except grpc.RpcError as error:
            if not _failure(error).unknown_token or not self._login.forget(metadata):
                raise
            self._log_in(endpoint)
            self._renew_or_grant(endpoint)

    def _log_in(self, endpoint: str) -> None:
        if not self._login.due:
            return
        method: Any = self._channel(endpoint).unary_unary(
            AUTHENTICATE,
            request_serializer=pb.AuthenticateRequest.SerializeToString,
            response_deserializer=pb.AuthenticateResponse.FromString,
        )
        try:
            answer = method(self._login.request(), timeout=self._settings.login_timeout)
        except grpc.RpcError as error:
            failure = _failure(error)
            self._endpoints.failed(endpoint, failure)
            self._login.failed(failure)
        else:
            self._login.succeeded(answer)

    def _renew_or_grant(self, endpoint: str) -> None:
        began = time.monotonic()
        if self.lease and self._renew(endpoint):
            self._renewals.record(time.monotonic() - began)
        else:
            began = time.monotonic()
            self._grant(endpoint)
        self.held_since = began

    def _renew(self, endpoint: str) -> bool:
        method: Any = self._channel(endpoint).stream_stream(
            LEASE_KEEP_ALIVE,
            request_serializer=pb.LeaseKeepAliveRequest.SerializeToString,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )
        request = pb.LeaseKeepAliveRequest(id=self.lease)
        call = method(iter([request]), timeout=self._settings.try_timeout, metadata=self._login.metadata)
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
        answer = method(request, timeout=self._settings.try_timeout, metadata=self._login.metadata)
        if self.lease:
            _log.warning("lease.lost", lease=self.lease, new=answer.id)
        self.lease = answer.id
        self._on_lease(answer.id)

    def _failed(self, endpoint: str, error: EtcdError) -> None:
        """The endpoint did not do what it was asked. If the files of TLS were replaced since, they serve the next try."""
        self._endpoints.failed(endpoint, error)
        if error.transient and self._stamps.get(endpoint) != self._settings.access.stamp():
            channel = self._channels.pop(endpoint, None)
            if channel is not None:
                channel.close()

    def _channel(self, endpoint: str) -> grpc.Channel:
        channel = self._channels.get(endpoint)
        if channel is None:
            self._stamps[endpoint] = self._settings.access.stamp()
            credentials = self._settings.access.credentials()
            if credentials is None:
                channel = grpc.insecure_channel(endpoint, options=CHANNEL_OPTIONS)
            else:
                channel = grpc.secure_channel(endpoint, credentials, options=CHANNEL_OPTIONS)
            self._channels[endpoint] = channel
        return channel


def _failure(error: grpc.RpcError | OSError) -> EtcdError:
    if isinstance(error, OSError):
        return EtcdError(grpc.StatusCode.UNAVAILABLE, f"cannot read {error.filename}: {error.strerror}")
    return EtcdError(error.code(), error.details() or "")
