"""The view takes events late, twice and after gaps, and holds what an outage took."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onexflow.registry.view import Kv, View


class Told:
    """A view and what it told."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, bytes | None]] = []
        self.actual: list[tuple[str, bytes | None]] = []
        self.view = View(
            lambda key, old, new: self.shown.append((key.decode(), new.value if new else None)),
            lambda key, old, new: self.actual.append((key.decode(), new.value if new else None)),
        )


@pytest.fixture
def told() -> Told:
    return Told()


def test_events_are_told_once_and_old_ones_never(told: Told) -> None:
    told.view.put(b"a", Kv(b"1", 1, 5))
    told.view.put(b"a", Kv(b"1", 1, 5))
    told.view.put(b"a", Kv(b"0", 1, 4))
    told.view.delete(b"a", 4)
    told.view.delete(b"a", 6)
    told.view.delete(b"a", 6)
    assert told.shown == [("a", b"1"), ("a", None)] == told.actual


def test_a_list_tells_the_difference(told: Told) -> None:
    told.view.reset({b"a": Kv(b"1", 1, 2), b"b": Kv(b"1", 1, 3)}, 5)
    told.shown.clear()
    told.view.reset({b"b": Kv(b"2", 1, 7), b"c": Kv(b"1", 1, 8)}, 9)
    assert told.shown == [("a", None), ("b", b"2"), ("c", b"1")]
    told.view.put(b"a", Kv(b"1", 1, 6))  # an event that the list was ahead of
    assert told.shown[3:] == []
    assert told.view.revision == 9


def test_what_goes_missing_while_held_stays_shown(told: Told) -> None:
    told.view.reset({b"a": Kv(b"1", 1, 2), b"b": Kv(b"1", 2, 3)}, 5)
    told.shown.clear()
    told.view.hold()
    told.view.reset({}, 1)
    told.view.put(b"a", Kv(b"1", 9, 2))
    told.view.release()
    assert told.shown == [("a", b"1"), ("b", None)]
    assert set(told.view.shown) == {b"a"}


def test_an_ended_lease_is_ended_held_or_not(told: Told) -> None:
    told.view.reset({b"a": Kv(b"1", 1, 2), b"b": Kv(b"1", 2, 3)}, 5)
    told.shown.clear()
    told.view.hold()
    told.view.delete(b"a", 6)
    told.view.drop_lease(1)
    assert told.shown == [("a", None)]
    told.view.put(b"a", Kv(b"2", 1, 7))  # written by the dead before it died
    told.view.reset({b"a": Kv(b"2", 1, 7), b"b": Kv(b"1", 2, 3)}, 8)
    assert told.shown == [("a", None)]
    told.view.put(b"a", Kv(b"2", 3, 9))
    assert told.shown[1:] == [("a", b"2")]


_KEYS = st.sampled_from([b"a", b"b", b"c"])


@given(
    steps=st.lists(st.tuples(_KEYS, st.sampled_from(["put", "delete"]), st.integers(1, 3)), max_size=30),
    seed=st.randoms(use_true_random=False),
)
def test_any_mixture_of_watch_lists_and_repeats_ends_at_the_truth(steps, seed) -> None:
    """A model: the history of a store, of which the view sees each event at least once, in order, with lists between."""
    told = Told()
    truth: dict[bytes, Kv] = {}
    history: list[tuple[str, bytes, Kv | None, int]] = []
    mirror: dict[str, bytes] = {}
    for number, (key, what, lease) in enumerate(steps, start=2):
        if what == "put":
            truth[key] = Kv(b"%d" % number, lease, number)
            history.append(("put", key, truth[key], number))
        elif truth.pop(key, None) is not None:
            history.append(("delete", key, None, number))
        if seed.random() < 0.2:
            told.view.reset(dict(truth), number)
        if seed.random() < 0.1:
            told.view.hold()
        if seed.random() < 0.5:
            for kind, each, kv, revision in history[seed.randint(0, len(history)) :] if told.view.revision else history:
                if revision <= told.view.revision:
                    continue
                _apply(told.view, kind, each, kv, revision)
            for kind, each, kv, revision in history[-3:]:  # again
                _apply(told.view, kind, each, kv, revision)
            if history and history[-1][3] > told.view.revision:
                told.view.reset(dict(truth), number)
    told.view.reset(dict(truth), len(steps) + 2)
    told.view.release()
    for name, value in told.shown:
        mirror.pop(name, None)
        if value is not None:
            mirror[name] = value
    assert told.view.actual == truth == told.view.shown
    assert mirror == {key.decode(): kv.value for key, kv in truth.items()}


def _apply(view: View, kind: str, key: bytes, kv: Kv | None, revision: int) -> None:
    if kv is not None:
        view.put(key, kv)
    else:
        view.delete(key, revision)
    view.reached(revision)
