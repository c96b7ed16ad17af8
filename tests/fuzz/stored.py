"""Damaged bytes to what reads definitions and the log: only the errors that are promised may come out."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Final

import msgspec
import yaml

from onexflow.codec.definitions import load_definition
from onexflow.codec.rows import decode_row, decode_snapshot, encode_snapshot
from onexflow.core.compiler import compile_graph
from onexflow.core.errors import InvalidDefinition, StoreUnusable
from support.core_driver import Model, one_task

from .values import Maker

_RUNS: Final = Path(__file__).parent.parent / "fixtures" / "rows"


def definitions(seed: int, rounds: int) -> tuple[list[str], Counter[str]]:
    """Load and compile definitions that are right in parts, as JSON and as YAML; what was found, and what came of them."""
    maker, findings, kinds = Maker(Random(seed)), [], Counter[str]()
    for _ in range(rounds):
        made = maker.definition()
        is_json = maker.chance.random() < 0.5
        text = (json.dumps(made) if is_json else yaml.safe_dump(made)).encode()
        if maker.chance.random() < 0.3:
            text = maker.damaged(text)
        try:
            compile_graph(load_definition(text, "json" if is_json else "yaml"))
            kinds["taken"] += 1
        except InvalidDefinition:
            kinds["refused"] += 1
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            findings.append(f"definition {text!r}: {error!r}")
    return findings, kinds


def rows(seed: int, rounds: int) -> tuple[list[str], Counter[str]]:
    """Decode rows and snapshots of which some bytes were changed; what was found, and what came of them."""
    maker, findings, kinds = Maker(Random(seed)), [], Counter[str]()
    stored = [
        data
        for path in sorted(_RUNS.glob("*.run"))
        for data in msgspec.msgpack.decode(path.read_bytes(), type=list[bytes])
    ]
    snapshot = encode_snapshot(Model(one_task()).state)
    for _ in range(rounds):
        damaged = maker.damaged(maker.chance.choice(stored))
        try:
            decode_row(damaged)
            kinds["rows read"] += 1
        except StoreUnusable:
            kinds["rows refused"] += 1
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            findings.append(f"row {damaged!r}: {error!r}")
        damaged = maker.damaged(snapshot)
        try:
            kinds["snapshots left" if decode_snapshot(damaged) is None else "snapshots read"] += 1
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            findings.append(f"snapshot {damaged!r}: {error!r}")
    return findings, kinds
