"""When a token is asked for, and what is made of etcd's answers. No etcd: its words, as it says them."""

from __future__ import annotations

import grpc
import pytest

from onexflow.core.secret import Secret
from onexflow.registry.etcd.access import Access, EtcdError, Login, explain
from onexflow.registry.etcd.v1 import etcd_pb2 as pb

USER = Access(user="me", password=Secret("hunter2"))
WRONG = EtcdError(grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")


def logged_in(token: str = "t1") -> Login:
    login = Login(USER)
    login.succeeded(pb.AuthenticateResponse(token=token))
    return login


def test_without_a_user_nothing_is_asked_for() -> None:
    login = Login(Access())
    assert (login.due, login.metadata, login.forget(())) == (False, (), False)


def test_a_token_is_asked_for_once_and_again_when_it_was_not_accepted() -> None:
    login = Login(USER)
    due = [login.due]
    assert (login.request().name, login.request().password) == ("me", "hunter2")
    login.succeeded(pb.AuthenticateResponse(token="t1"))
    due.append(login.due)
    shown = login.metadata
    assert shown == (("token", "t1"),)
    assert login.forget(shown)
    due.append(login.due)
    assert due == [True, False, True]


def test_a_late_refusal_of_an_old_token_does_not_cost_the_new_one() -> None:
    login = logged_in("t1")
    old = login.metadata
    login.forget(old)
    login.succeeded(pb.AuthenticateResponse(token="t2"))
    assert login.forget(old)
    assert login.metadata == (("token", "t2"),)
    assert not login.due


def test_etcd_that_asks_for_nothing_is_not_asked_for_a_token_until_it_does() -> None:
    login = Login(USER)
    login.failed(EtcdError(grpc.StatusCode.FAILED_PRECONDITION, "etcdserver: authentication is not enabled"))
    due = [login.due]
    assert login.forget(())
    due.append(login.due)
    assert due == [False, True]


def test_a_refused_password_is_not_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time costs etcd a tenth of a second of a core, and there may be many processes."""
    now = 100.0
    monkeypatch.setattr("onexflow.registry.etcd.access.time.monotonic", lambda: now)
    login = Login(USER)
    with pytest.raises(EtcdError, match="authentication failed"):
        login.failed(WRONG)
    with pytest.raises(EtcdError, match="authentication failed"):
        _ = login.due
    now += 2.0
    assert login.due


@pytest.mark.parametrize(
    ("code", "detail", "unknown_token", "refusal"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, "etcdserver: invalid auth token", True, True),
        (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: user name is empty", True, True),
        (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: revision of auth store is old", True, True),
        (grpc.StatusCode.PERMISSION_DENIED, "etcdserver: permission denied", False, True),
        (WRONG.code, WRONG.detail, False, True),
        (grpc.StatusCode.UNAVAILABLE, "Custom verification check failed with error: UNAUTHENTICATED: …", False, False),
        (grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request", False, False),
    ],
)
def test_what_an_answer_means(code: grpc.StatusCode, detail: str, unknown_token: bool, refusal: bool) -> None:
    error = EtcdError(code, detail)
    assert (error.unknown_token, error.refusal) == (unknown_token, refusal)


def test_what_grpc_wraps_around_the_cause_is_left_out() -> None:
    error = EtcdError(
        grpc.StatusCode.UNAVAILABLE,
        "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: connect: Connection refused (111)",
    )
    assert str(error) == "UNAVAILABLE: ipv4:127.0.0.1:1: connect: Connection refused (111)"
    assert explain(error, Access(), "/p/") is None
    assert explain(ValueError("closed"), Access(), "/p/") is None
