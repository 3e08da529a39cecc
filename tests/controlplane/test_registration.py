"""Who is an endpoint, for how long, and in what state."""

from __future__ import annotations

from typing import Any

import pytest

from proxyless.controlplane.registration import MAX_STREAMS_PER_IDENTITY, RegistrationServicer, RegistrationTable
from proxyless.controlplane.registry import DRAINING, HEALTHY, UNHEALTHY
from proxyless.protos import message
from proxyless.spiffe import SpiffeId

PAYMENTS = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/payments")
BILLING = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/billing")
HOST = "payments.default.svc.cluster.local"
KEY = (PAYMENTS, HOST, "127.0.0.1", 9001)


class Changes:
    """A table that knows how often it said that it changed."""

    def __init__(self) -> None:
        self.count = 0
        self.table = RegistrationTable(self.may_serve, self.changed)
        self.servicer = RegistrationServicer(self.table)

    def may_serve(self, identity: SpiffeId, host: str) -> bool:
        return (identity, host) == (PAYMENTS, HOST)

    def changed(self) -> None:
        self.count += 1

    def apply(self, owner: object, key: Any, identity: SpiffeId = PAYMENTS, **fields: Any) -> tuple[Any, str]:
        workload = message("proxyless.registration.v1.Workload")(**{"service": "payments", "port": 9001, **fields})
        return self.servicer._apply(owner, key, workload, identity)

    def healths(self) -> list[str]:
        return [workload.health for workload in self.table.workloads()]


def test_workers_of_one_process_group_are_one_endpoint() -> None:
    changes = Changes()
    for worker in ("a", "b", "c"):
        changes.table.put(worker, None, KEY, HEALTHY, {})
    assert len(changes.table.workloads()) == 1
    assert changes.count == 1


@pytest.mark.parametrize(
    ("words", "health"),
    [
        ((UNHEALTHY,), UNHEALTHY),
        ((UNHEALTHY, HEALTHY), HEALTHY),
        ((HEALTHY, DRAINING), HEALTHY),
        ((DRAINING, DRAINING), DRAINING),
        ((DRAINING, UNHEALTHY), UNHEALTHY),
    ],
)
def test_one_ready_worker_is_enough_and_all_must_drain(words: tuple[str, ...], health: str) -> None:
    changes = Changes()
    for number, word in enumerate(words):
        changes.table.put(number, None, KEY, word, {})
    assert changes.healths() == [health]


def test_an_endpoint_is_gone_with_its_last_stream() -> None:
    changes = Changes()
    changes.table.put("a", None, KEY, HEALTHY, {})
    changes.table.put("b", None, KEY, HEALTHY, {})
    changes.table.remove("a", KEY)
    assert changes.healths() == [HEALTHY]
    changes.table.remove("b", KEY)
    assert changes.healths() == []


def test_a_later_message_replaces_what_the_stream_said() -> None:
    changes = Changes()
    key, _ = changes.apply("a", None, readiness=2, labels={"version": "v1"})
    key, _ = changes.apply("a", key, readiness=2, labels={"version": "v2"}, port=9002)
    (workload,) = changes.table.workloads()
    assert (workload.port, workload.labels) == (9002, {"version": "v2"})


def test_nobody_becomes_payments_by_saying_so(caplog: pytest.LogCaptureFixture) -> None:
    changes = Changes()
    key, reason = changes.apply("a", None, identity=BILLING)
    assert key is None
    assert "does not let spiffe://cluster.local/ns/default/sa/billing serve" in reason
    assert changes.table.workloads() == ()
    assert str(BILLING) in caplog.text
    assert HOST in caplog.text


def test_a_refused_message_takes_the_endpoint_away() -> None:
    changes = Changes()
    key, _ = changes.apply("a", None, readiness=2)
    changes.apply("a", key, service="billing")
    assert changes.table.workloads() == ()


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"address": "payments.example.com"}, "not an IP address"),
        ({"port": 0}, "outside of 1 to 65535"),
        ({"port": 70000}, "outside of 1 to 65535"),
        ({"service": ""}, "service is missing"),
        ({"service": "x" * 300}, "too long"),
        ({"labels": {str(number): "x" for number in range(65)}}, "more than 64 labels"),
        ({"labels": {"app": "x" * 300}}, "longer than 253"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(fields: dict[str, Any], reason: str) -> None:
    key, said = Changes().apply("a", None, **fields)
    assert key is None
    assert reason in said


def test_without_an_address_it_is_the_loopback() -> None:
    key, _ = Changes().apply("a", None)
    assert key[2] == "127.0.0.1"


def test_one_identity_cannot_open_streams_without_end() -> None:
    changes = Changes()
    for number in range(MAX_STREAMS_PER_IDENTITY):
        changes.table.put(number, None, (PAYMENTS, HOST, "127.0.0.1", 1000 + number), HEALTHY, {})
    key, reason = changes.apply("one more", None)
    assert key is None
    assert "registration streams already" in reason


def test_an_identity_without_namespace_and_account_cannot_register() -> None:
    key, reason = Changes().apply("a", None, identity=SpiffeId.parse("spiffe://cluster.local/payments"))
    assert key is None
    assert "not of the form" in reason


def test_a_message_that_changes_nothing_pushes_nothing() -> None:
    changes = Changes()
    key, _ = changes.apply("a", None, readiness=2)
    changes.apply("a", key, readiness=2)
    assert changes.count == 1
