from __future__ import annotations

import pytest

from proxyless.core.breakers import may_connect, may_request, may_retry, may_wait, retry_limit
from proxyless.core.learned import ClusterState
from proxyless.core.resources import UNLIMITED, CircuitBreakers


def state(**counters: int) -> ClusterState:
    made = ClusterState("c")
    for name, value in counters.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("connections", "of_the_endpoint", "allowed"),
    [
        pytest.param(1, 1, True, id="below the limit"),
        pytest.param(2, 1, False, id="at the limit"),
        pytest.param(2, 0, True, id="an endpoint without a connection always gets one"),
    ],
)
def test_max_connections(connections: int, of_the_endpoint: int, allowed: bool) -> None:
    limits = CircuitBreakers(max_connections=2)
    assert may_connect(state(connections=connections), limits, of_the_endpoint) is allowed


@pytest.mark.parametrize(("limit", "pending", "allowed"), [(0, 0, False), (1, 0, True), (1, 1, False)])
def test_max_pending_requests(limit: int, pending: int, allowed: bool) -> None:
    assert may_wait(state(pending=pending), CircuitBreakers(max_pending_requests=limit)) is allowed


@pytest.mark.parametrize(("limit", "requests", "allowed"), [(0, 0, False), (2, 1, True), (2, 2, False)])
def test_max_requests(limit: int, requests: int, allowed: bool) -> None:
    assert may_request(state(requests=requests), CircuitBreakers(max_requests=limit)) is allowed


def test_max_retries() -> None:
    limits = CircuitBreakers(max_retries=1)
    assert may_retry(state(retries=0), limits)
    assert not may_retry(state(retries=1), limits)
    assert may_retry(state(retries=10**6), CircuitBreakers(max_retries=UNLIMITED))


@pytest.mark.parametrize(
    ("percent", "requests", "pending", "limit"),
    [
        pytest.param(20.0, 5, 0, 3, id="the minimum holds"),
        pytest.param(20.0, 90, 10, 20, id="percent of active and pending"),
        pytest.param(0.0, 1000, 0, 3, id="zero percent leaves the minimum"),
    ],
)
def test_a_retry_budget_replaces_max_retries(percent: float, requests: int, pending: int, limit: int) -> None:
    limits = CircuitBreakers(max_retries=0, retry_budget_percent=percent)
    assert retry_limit(state(requests=requests, pending=pending), limits) == limit
