"""Circuit breakers: how much may be in flight to one cluster. Limits hold for one process and are racy by design.

Source: Envoy cluster.v3.CircuitBreakers and Envoy's connection pools (recorded: `max_pending_requests: 0` refuses every
request that finds no ready connection). What is over a limit is refused at once, with flag UO, and never retried.
"""

from __future__ import annotations

from proxyless.core.learned import ClusterState
from proxyless.core.resources import CircuitBreakers

__all__ = ["may_connect", "may_request", "may_retry", "may_wait", "retry_limit"]


def may_connect(state: ClusterState, limits: CircuitBreakers, endpoint_connections: int) -> bool:
    """A new connection may be made. An endpoint that has none always gets one: otherwise its requests could never run."""
    return state.connections < limits.max_connections or endpoint_connections == 0


def may_wait(state: ClusterState, limits: CircuitBreakers) -> bool:
    """A request that found no ready connection may wait for one. One that waits for a connection being made counts too."""
    return state.pending < limits.max_pending_requests


def may_request(state: ClusterState, limits: CircuitBreakers) -> bool:
    """Another attempt may run."""
    return state.requests < limits.max_requests


def may_retry(state: ClusterState, limits: CircuitBreakers) -> bool:
    """Another call may be in a retry."""
    return state.retries < retry_limit(state, limits)


def retry_limit(state: ClusterState, limits: CircuitBreakers) -> int:
    """Concurrent retries allowed now. A budget replaces `max_retries`: percent of what is active and pending, at least
    `min_retry_concurrency`."""
    percent = limits.retry_budget_percent
    if percent is None:
        return limits.max_retries
    return max(limits.min_retry_concurrency, int(percent * (state.requests + state.pending) / 100))
