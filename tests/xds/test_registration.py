"""Registration of a workload against a real gRPC server on a Unix socket."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from proxyless import protos
from proxyless.xds import stream as stream_module
from proxyless.xds.registration import Readiness, Workload, WorkloadRegistration
from tests.xds.helpers import ScriptedServer, eventually, registration_server

WORKLOAD = Workload(service="payments.myapp.com", port=8080, address="10.1.0.9", labels={"version": "v1"})

Make = Callable[..., WorkloadRegistration]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    with registration_server(f"unix:{tmp_path}/xds.sock") as running:
        yield running


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(stream_module, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(stream_module, "LONGEST_WAIT", 0.05)
    made: list[WorkloadRegistration] = []

    def build(target: str, **options: Any) -> WorkloadRegistration:
        registration = WorkloadRegistration(target, WORKLOAD, **options)
        made.append(registration)
        registration.start()
        return registration

    yield build
    for registration in made:
        registration.close()


def answer(accepted: bool = True, reason: str = "") -> Any:
    return protos.message("proxyless.registration.v1.Registered")(accepted=accepted, reason=reason)


def test_the_first_message_says_everything(server: ScriptedServer, make: Make) -> None:
    registration = make(server.target)
    stream = server.stream()
    message = stream.request()
    assert protos.to_dict(message) == {
        "service": "payments.myapp.com",
        "port": 8080,
        "address": "10.1.0.9",
        "labels": {"version": "v1"},
        "readiness": "NOT_READY",
    }
    assert "not registered as payments.myapp.com" in str(registration.status)
    stream.send(answer())
    eventually(lambda: registration.status.registered)
    assert str(registration.status) == "registered as payments.myapp.com: NOT_READY"


def test_a_change_of_readiness_sends_the_whole_state_once(server: ScriptedServer, make: Make) -> None:
    registration = make(server.target)
    stream = server.stream()
    stream.request()
    stream.send(answer())
    eventually(lambda: registration.status.registered)
    for _ in range(3):
        registration.set_readiness(Readiness.READY)
    message = stream.request()
    assert (message.readiness, message.service) == (Readiness.READY, "payments.myapp.com")
    registration.set_readiness(Readiness.NOT_READY)
    assert stream.request().readiness == Readiness.NOT_READY
    assert stream.quiet()


def test_readiness_set_without_a_stream_is_what_the_next_stream_begins_with(tmp_path: Path, make: Make) -> None:
    registration = make(f"unix:{tmp_path}/later.sock")
    eventually(lambda: registration.status.stream.failures)
    registration.set_readiness(Readiness.READY)
    eventually(
        lambda failures=registration.status.stream.failures: (  # type: ignore[misc] # bound here
            registration.status.stream.failures > failures + 1
        )
    )
    with registration_server(f"unix:{tmp_path}/later.sock") as server:
        assert server.stream().request().readiness == Readiness.READY


def test_the_server_always_learns_the_last_state(server: ScriptedServer, make: Make) -> None:
    registration = make(server.target)
    stream = server.stream()
    seen: list[int] = []

    def answering() -> None:
        while (message := stream.request()) is not None:
            seen.append(message.readiness)
            stream.send(answer())

    thread = threading.Thread(target=answering)
    thread.start()
    for number in range(200):
        registration.set_readiness(Readiness.READY if number % 2 else Readiness.NOT_READY)
    eventually(lambda: seen and seen[-1] == Readiness.READY)
    registration.close()
    thread.join(5)


def test_a_lost_stream_is_opened_again_and_registers_anew(server: ScriptedServer, make: Make) -> None:
    registration = make(server.target, readiness=Readiness.READY)
    stream = server.stream()
    stream.request()
    stream.send(answer())
    eventually(lambda: registration.status.registered)
    stream.send(grpc.StatusCode.UNAVAILABLE)
    again = server.stream()
    assert again.request().readiness == Readiness.READY
    assert not registration.status.registered


def test_a_refusal_is_logged_with_its_reason_shown_and_tried_again(
    server: ScriptedServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    reason = "ns/default/sa/api may not serve payments.myapp.com"
    with caplog.at_level(logging.ERROR, logger="proxyless.registration"):
        registration = make(server.target)
        for _ in range(3):
            stream = server.stream()
            stream.request()
            stream.send(answer(False, reason))
        eventually(lambda: registration.status.refusal)
    assert str(registration.status) == f"registration as payments.myapp.com refused: {reason}"
    assert caplog.messages == [f"registration as payments.myapp.com was refused: {reason}"]
    stream = server.stream()
    stream.request()
    stream.send(answer())
    eventually(lambda: registration.status.registered)
    assert registration.status.refusal == ""


def test_drain_returns_when_the_server_has_taken_note(server: ScriptedServer, make: Make) -> None:
    registration = make(server.target, readiness=Readiness.READY)
    stream = server.stream()
    stream.request()
    stream.send(answer())
    eventually(lambda: registration.status.registered)
    result: list[bool] = []
    thread = threading.Thread(target=lambda: result.append(registration.drain(5)))
    thread.start()
    assert stream.request().readiness == Readiness.DRAINING
    assert not result
    stream.send(answer())
    thread.join(5)
    assert result == [True]


def test_drain_gives_up_after_its_time_and_at_once_without_a_registration(
    server: ScriptedServer, make: Make, tmp_path: Path
) -> None:
    registration = make(server.target)
    stream = server.stream()
    stream.request()
    stream.send(answer())
    eventually(lambda: registration.status.registered)
    assert not registration.drain(0.05)
    alone = make(f"unix:{tmp_path}/none.sock")
    began = time.monotonic()
    assert not alone.drain(5)
    assert time.monotonic() - began < 1


def test_close_ends_the_stream(server: ScriptedServer, make: Make) -> None:
    registration = make(server.target)
    stream = server.stream()
    stream.request()
    began = time.monotonic()
    registration.close()
    assert time.monotonic() - began < 0.5
    assert stream.ended.wait(2)


def test_rubbish_from_the_server_is_a_lost_stream(server: ScriptedServer, make: Make) -> None:
    registration = make(server.target)
    server.stream().send(b"\xff\xff")
    stream = server.stream()
    stream.request()
    stream.send(answer())
    eventually(lambda: registration.status.registered)
