"""The pair in use: replaced as a whole, never expired, never inherited (M-30, M-34, M-41)."""

from __future__ import annotations

from typing import Any

import pytest

from proxyless.identity.rotation import Age, RotationWatch
from proxyless.identity.source import IdentityHolder, StaticSource

from .helpers import NOW, root

WEB = "spiffe://a.test/web"
A, B = root("a.test", now=NOW), root("b.test", now=NOW)
BUNDLES = {"a.test": A.bundle("a.test")}


class Clock:
    def __init__(self) -> None:
        self.time = NOW

    def __call__(self) -> float:
        return self.time


def test_an_expired_svid_is_never_given() -> None:
    clock = Clock()
    source = StaticSource(A.svid(WEB, now=NOW, until=100), BUNDLES.values(), now=clock)
    assert source.current is not None
    assert source.status == ""
    clock.time += 100
    assert source.current is None
    assert "not valid" in source.status
    clock.time -= 1
    assert source.current is not None


def test_a_change_raises_the_generation_and_an_equal_pair_does_not() -> None:
    holder, seen = IdentityHolder(Clock()), []
    end = holder.subscribe(lambda snapshot: seen.append(snapshot and snapshot.generation))
    svid = A.svid(WEB, now=NOW)
    assert holder.replace(svid, BUNDLES)
    assert not holder.replace(svid, dict(BUNDLES))
    assert holder.replace(svid, {**BUNDLES, "b.test": B.bundle("b.test")})
    assert holder.replace(A.svid(WEB, now=NOW), BUNDLES)
    assert holder.withdraw()
    assert not holder.withdraw()
    assert (seen, holder.generation, holder.current) == ([1, 2, 3, None], 4, None)
    end()
    holder.replace(svid, BUNDLES)
    assert len(seen) == 4


def test_an_svid_of_the_future_waits_while_the_old_one_serves_with_the_new_bundles() -> None:
    clock = Clock()
    holder = IdentityHolder(clock)
    old, new = A.svid(WEB, now=NOW), A.svid(WEB, now=NOW, since=50)
    both = {**BUNDLES, "b.test": B.bundle("b.test")}
    holder.replace(old, BUNDLES)
    holder.replace(new, both)
    assert holder.current is not None
    assert (holder.current.svid, set(holder.current.bundles)) == (old, {"a.test", "b.test"})
    assert not holder.promote()
    assert holder.waiting_until == NOW + 50
    clock.time += 50
    assert holder.promote()
    assert holder.current.svid == new


def test_a_first_svid_of_the_future_is_used_when_its_time_comes() -> None:
    clock = Clock()
    source = StaticSource(A.svid(WEB, now=NOW, since=50), BUNDLES.values(), now=clock)
    assert source.current is None
    clock.time += 50
    assert source.current is not None


def test_a_subscriber_that_fails_does_not_hurt_the_others(caplog: pytest.LogCaptureFixture) -> None:
    holder, seen = IdentityHolder(Clock()), []

    def fail(_: Any) -> None:
        raise RuntimeError("mine")

    holder.subscribe(fail)
    holder.subscribe(seen.append)
    holder.replace(A.svid(WEB, now=NOW), BUNDLES)
    assert len(seen) == 1
    assert "a subscriber of identity changes failed" in caplog.text


def test_a_snapshot_cannot_be_changed() -> None:
    source = StaticSource(A.svid(WEB, now=NOW), BUNDLES.values(), now=Clock())
    assert source.current is not None
    with pytest.raises(TypeError):
        source.current.bundles["b.test"] = B.bundle("b.test")  # type: ignore[index]  # that is the point
    with pytest.raises(AttributeError):
        source.current.svid = None  # type: ignore[misc,assignment]  # that is the point


def test_after_a_fork_nothing_of_the_parent_is_left() -> None:
    holder = IdentityHolder(Clock())
    holder.replace(A.svid(WEB, now=NOW), BUNDLES)
    holder.forget()
    assert (holder.current, holder.latest) == (None, None)
    assert holder.generation == 2


def test_each_age_of_an_svid_is_reported_once() -> None:
    watch = RotationWatch()
    assert (watch.step(NOW), watch.next_at()) == (None, float("inf"))
    svid = A.svid(WEB, now=NOW, since=0, until=1000)
    watch.watch(svid)
    assert watch.next_at() == NOW + 700
    steps = [watch.step(NOW + at) for at in (0, 699, 700, 701, 850, 999, 1000, 2000)]
    assert steps == [None, None, Age.OVERDUE, None, Age.CRITICAL, None, Age.EXPIRED, None]
    watch.watch(svid)
    assert watch.step(NOW + 2000) is None
    watch.watch(A.svid(WEB, now=NOW, since=0, until=1000))
    assert watch.step(NOW + 900) is Age.CRITICAL
