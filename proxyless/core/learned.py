"""What was observed: ejections, counts, cursors. By cluster and address, apart from the snapshot, so that it survives pushes.

Threads: any. Fields are plain integers and dictionaries under the GIL; a counter may be read between two writes of another
thread, so limits are racy by design (as in Envoy). An endpoint is ejected once: `ClusterState.ejected` is a dictionary.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any, Protocol

from proxyless.core.request import Address

__all__ = ["ClusterState", "EndpointState", "Learned"]


class EndpointState:
    """What is known of one endpoint of one cluster.

    Attributes:
        active: requests that run on it now.
        consecutive_5xx, consecutive_gateway_failure, consecutive_local_origin_failure: since the last other result, the last
            detection, or the last return.
        ejected_until: the instant of its return; 0 when it is not ejected.
        ejections: how often it was ejected in all.
        multiplier: ejection time is base times this; falls by one for each quiet interval after `returned_at`.
    """

    __slots__ = (
        "active",
        "address",
        "consecutive_5xx",
        "consecutive_gateway_failure",
        "consecutive_local_origin_failure",
        "ejected_until",
        "ejections",
        "multiplier",
        "returned_at",
    )

    def __init__(self, address: Address) -> None:
        self.address = address
        self.active = 0
        self.consecutive_5xx = self.consecutive_gateway_failure = self.consecutive_local_origin_failure = 0
        self.ejected_until = 0.0
        self.ejections = self.multiplier = 0
        self.returned_at = 0.0


class ClusterState:
    """What is known of one cluster.

    Attributes:
        connections: open connections to all endpoints, those being made included (the engine counts).
        pending: requests that wait for a connection (the engine counts).
        requests: attempts that run now; retries: calls that are in a retry now.
        cursor: round-robin position; negative before the first pick.
        endpoints: state by address.
        ejected: the endpoints that are out now, by address.
        next_return: earliest `ejected_until` of `ejected`; infinite when nobody is out.
        version: grows with each ejection and return; what was derived from an older one is stale.
        view: the balancer's hosts for (upstream, version).
        ejections_refused: detections that `max_ejection_percent` made ineffective.
    """

    __slots__ = (
        "connections",
        "cursor",
        "ejected",
        "ejections_refused",
        "endpoints",
        "name",
        "next_return",
        "pending",
        "requests",
        "retries",
        "version",
        "view",
    )

    def __init__(self, name: str) -> None:
        self.name = name
        self.connections = self.pending = self.requests = self.retries = 0
        self.cursor = -1
        self.endpoints: dict[Address, EndpointState] = {}
        self.ejected: dict[Address, EndpointState] = {}
        self.next_return = inf
        self.version = self.ejections_refused = 0
        self.view: Any = None  # a private cache of `balancing`, which lies above this module

    def endpoint(self, address: Address) -> EndpointState:
        """State of an endpoint, made on first use."""
        state = self.endpoints.get(address)
        if state is None:
            state = self.endpoints.setdefault(address, EndpointState(address))
        return state


class _Upstream(Protocol):
    @property
    def addresses(self) -> frozenset[Address]: ...


class _Snapshot(Protocol):
    @property
    def upstreams(self) -> Mapping[str, _Upstream]: ...


class Learned:
    """All learned state of one process."""

    __slots__ = ("clusters",)

    def __init__(self) -> None:
        self.clusters: dict[str, ClusterState] = {}

    def cluster(self, name: str) -> ClusterState:
        """State of a cluster, made on first use. The same object as long as the cluster is configured or in use."""
        state = self.clusters.get(name)
        if state is None:
            state = self.clusters.setdefault(name, ClusterState(name))
        return state

    def prune(self, snapshot: _Snapshot) -> None:
        """Forget what `snapshot` no longer has and nobody uses; call it after publishing. Never touches state in use."""
        upstreams = snapshot.upstreams
        for name, state in list(self.clusters.items()):
            upstream = upstreams.get(name)
            if upstream is not None:
                _prune_endpoints(state, upstream.addresses)
            elif not (state.requests or state.connections or state.pending or state.retries):
                self.clusters.pop(name, None)


def _prune_endpoints(state: ClusterState, addresses: frozenset[Address]) -> None:
    for address in [address for address in list(state.endpoints) if address not in addresses]:
        endpoint = state.ejected.pop(address, None)
        if endpoint is not None:
            endpoint.ejected_until = (
                0.0  # nobody else would end it, should the endpoint return while a request holds this
            )
            state.version += 1
        endpoint = state.endpoints.get(address)
        if endpoint is not None and not endpoint.active:
            state.endpoints.pop(address, None)
