"""How the binaries set up the process they run in."""

from __future__ import annotations

import os

import pytest

from onexflow.app.tuning import leave_forks_alone, poll_directly


def test_grpc_polls_directly_unless_the_user_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPC_EXPERIMENTS", raising=False)
    poll_directly()
    assert os.environ["GRPC_EXPERIMENTS"] == "-event_engine_client,-event_engine_listener"
    monkeypatch.setenv("GRPC_EXPERIMENTS", "tcp_rcv_lowat")
    poll_directly()
    assert os.environ["GRPC_EXPERIMENTS"] == "tcp_rcv_lowat"


def test_forks_are_left_alone_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRPC_ENABLE_FORK_SUPPORT", raising=False)
    leave_forks_alone()
    assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "0"
    monkeypatch.setenv("GRPC_ENABLE_FORK_SUPPORT", "1")
    leave_forks_alone()
    assert os.environ["GRPC_ENABLE_FORK_SUPPORT"] == "1"
