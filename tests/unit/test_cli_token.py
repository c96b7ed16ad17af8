"""`onexflow token`: what it prints fits into an access policy."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from onexflow.cli import main
from onexflow.config.policy import parse_policy
from support.security_kit import hashed


def test_a_token_and_its_hash_fit_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["token"]) == 0
    out, err = capsys.readouterr()
    token = out.strip()
    assert out == f"{token}\n"
    assert len(token) > 40
    policy = parse_policy(f'[[identity]]\nname = "a"\nroles = ["client"]\n{err}', Path("p"))
    found = policy.by_token(bytes.fromhex(hashed(token).removeprefix("sha256:")))
    assert found is not None
    assert found.name == "a"


def test_no_two_are_the_same_and_programs_can_read_it(capsys: pytest.CaptureFixture[str]) -> None:
    made = []
    for _ in range(2):
        assert main(["token", "-o", "json"]) == 0
        made.append(json.loads(capsys.readouterr().out))
    assert made[0]["token"] != made[1]["token"]
    assert [one["sha256"] for one in made] == [hashed(one["token"]) for one in made]
