"""Every target of `scripts/fuzz`, few rounds; and that it finds what there is to be found."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest

from fuzz import stored
from fuzz.calls import Calls
from fuzz.values import CANARY, Maker
from onexflow.codec import rows
from onexflow.engine.orchestrator import Orchestrator
from support.methods import METHODS


def _many(rounds: Callable[..., int]) -> int:
    return rounds(300, 3_000)


async def test_calls(rounds: Callable[..., int]) -> None:
    played = Calls(seed=7)
    await played.run(_many(rounds))
    assert played.findings == []
    assert played.canaries > 1
    assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND"} < set(played.codes), "it must come further than the first question"


@pytest.mark.parametrize("target", [stored.definitions, stored.rows])
def test_what_is_stored(target: Any, rounds: Callable[..., int]) -> None:
    findings, kinds = target(7, 3 * _many(rounds))
    assert findings == []
    assert min(kinds.values()) > 10, "some of it must be right"


async def test_a_fault_of_ours_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any, **__: Any) -> Any:
        raise KeyError("nobody thought of that")

    monkeypatch.setattr(Orchestrator, "list_nodes", broken)
    played = Calls(seed=7, methods=[METHODS["/onexflow.v1.AdminService/ListNodes"]])
    await played.run(60)
    assert any("AdminService.ListNodes" in finding and "INTERNAL" in finding for finding in played.findings)


def test_a_decoder_that_lets_pythons_own_errors_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "UNREADABLE", (msgspec.DecodeError,))
    assert any("UnicodeDecodeError" in finding for finding in stored.rows(7, 1000)[0])


def test_the_same_seed_makes_the_same_input() -> None:
    first, second = Maker(Random(3)), Maker(Random(3))
    kinds = [method.input_type for method in METHODS.values()]
    said = [
        [maker.message(kinds[number % len(kinds)]).SerializeToString(deterministic=True) for number in range(200)]
        for maker in (first, second)
    ]
    assert said[0] == said[1]
    assert CANARY.encode() not in b"".join(said[0])
