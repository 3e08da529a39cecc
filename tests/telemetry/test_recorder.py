"""What an event loop served is written down a moment later, and never too late for who looks."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref

import pytest
from prometheus_client import CollectorRegistry, Counter, generate_latest

from proxyless.telemetry import recorder
from proxyless.telemetry.labels import Service
from proxyless.telemetry.recorder import Telemetry


def counted(telemetry: Telemetry) -> None:
    telemetry.metrics.outbound("", "", Service("a", "a", "b"), "http", 200, None, "-", 0.1, 0, 0)


def test_reading_the_metrics_settles_what_has_ended() -> None:
    registry = CollectorRegistry()
    telemetry = Telemetry(registry=registry)

    async def go() -> tuple[bool, bytes]:
        done: list[None] = []
        telemetry.soon(asyncio.get_running_loop(), lambda: (counted(telemetry), done.append(None)))
        return bool(done), generate_latest(registry)

    before, text = asyncio.run(go())
    assert not before
    assert b"istio_requests_total{" in text


def test_the_next_turn_of_the_loop_settles() -> None:
    telemetry, done = Telemetry(registry=CollectorRegistry()), []

    async def go() -> list[str]:
        telemetry.soon(asyncio.get_running_loop(), lambda: done.append("counted"))
        await asyncio.sleep(0)
        return list(done)

    assert asyncio.run(go()) == ["counted"]


def test_a_loop_that_is_over_takes_no_record_with_it() -> None:
    telemetry, done = Telemetry(registry=CollectorRegistry()), []
    loop = asyncio.new_event_loop()
    telemetry.soon(loop, lambda: done.append("before"))
    loop.close()
    telemetry.soon(loop, lambda: done.append("after"))
    assert done == ["before", "after"]


def test_records_of_a_loop_that_stands_still_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "MAX_UNSETTLED", 10)
    telemetry, done = Telemetry(registry=CollectorRegistry()), []
    loop = asyncio.new_event_loop()
    for number in range(25):
        telemetry.soon(loop, lambda number=number: done.append(number))
    loop.close()
    assert done == list(range(22))


def test_a_record_that_fails_is_logged_and_the_next_is_written(caplog: pytest.LogCaptureFixture) -> None:
    telemetry, done = Telemetry(registry=CollectorRegistry()), []

    def broken() -> None:
        raise RuntimeError("boom")

    async def go() -> None:
        loop = asyncio.get_running_loop()
        telemetry.soon(loop, broken)
        telemetry.soon(loop, lambda: done.append("counted"))

    with caplog.at_level(logging.ERROR):
        asyncio.run(go())
        telemetry.close()
    assert done == ["counted"]
    assert "a request could not be recorded" in caplog.text


def test_a_registry_keeps_no_mesh_alive_and_stays_readable() -> None:
    registry = CollectorRegistry()
    Counter("other", "Not ours.", registry=registry)
    gone = weakref.ref(Telemetry(registry=registry))
    gc.collect()
    assert gone() is None
    assert b"other_total" in generate_latest(registry)
