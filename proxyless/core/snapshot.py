"""Every accepted resource, compiled and joined; immutable. A request reads one snapshot once and uses nothing else.

`compile_snapshot` is incremental: an upstream whose cluster and load assignment did not change, and the table of a route
configuration that did not change, are the objects of the previous snapshot. What points to something absent is listed in
`missing` and fails only the requests that need it (503 NC for a cluster), as Envoy does. An INBOUND listener with
`use_original_dst` (`virtualInbound`) is the inbound side; an outbound one (`virtualOutbound`) says where the rest goes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from proxyless.core.outbound import HttpTarget, ListenerCompiler, Missing, OutboundListener, Target, compile_outbound
from proxyless.core.request import Request
from proxyless.core.resources import Cluster, ClusterType, Listener, LoadAssignment, RouteConfiguration, TcpProxy
from proxyless.core.routing import RouteTable
from proxyless.core.upstreams import Endpoint, Upstream, compile_upstream
from proxyless.values import field, frozen

__all__ = [
    "Endpoint",
    "HttpTarget",
    "Missing",
    "OutboundListener",
    "Resources",
    "Snapshot",
    "Target",
    "Upstream",
    "compile_snapshot",
]


@frozen(kw_only=True)
class Resources:
    """What a control plane sent and we accepted, by resource name."""

    listeners: Mapping[str, Listener] = field(default_factory=dict)
    routes: Mapping[str, RouteConfiguration] = field(default_factory=dict)
    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    assignments: Mapping[str, LoadAssignment] = field(default_factory=dict)


@frozen(kw_only=True, eq=False)
class Snapshot:
    """The whole configuration at one moment.

    Attributes:
        generation: grows with each snapshot of a process.
        outbound: listeners by port.
        fallback: where a connection to a port without a listener goes (`virtualOutbound`): a TCP proxy to the pass-through
            or the black-hole cluster; None: not said, which means pass through.
        inbound: the listener that takes inbound connections, None when the workload has none.
        upstreams: by cluster name.
        missing: references to what is absent, sorted.
        resources: what it was made from, for dumps; `listeners` and `routes` are its parts.
        tables: compiled route configurations by name.
    """

    generation: int
    outbound: Mapping[int, OutboundListener]
    fallback: TcpProxy | None
    inbound: Listener | None
    upstreams: Mapping[str, Upstream]
    missing: tuple[Missing, ...]
    resources: Resources
    tables: Mapping[str, RouteTable]

    @property
    def listeners(self) -> Mapping[str, Listener]:
        return self.resources.listeners

    @property
    def routes(self) -> Mapping[str, RouteConfiguration]:
        return self.resources.routes

    def target(self, request: Request) -> Target | None:
        """What an outbound request meets by destination port, address and server name; None: it is not the mesh's."""
        listener = self.outbound.get(request.destination.port)
        if listener is not None:
            target = listener.target(request)
            if target is not None:
                return target
        return self.fallback


def compile_snapshot(resources: Resources, previous: Snapshot | None, generation: int) -> Snapshot:
    """Compile and join `resources`. Never raises for references that lead nowhere; `previous` only saves work."""
    upstreams, missing = _upstreams(resources, previous)
    tables = _tables(resources, previous)
    compiler = ListenerCompiler(tables, resources.clusters)
    outbound, fallback = compile_outbound(resources.listeners.values(), compiler)
    missing |= compiler.missing
    for table in (*tables.values(), *compiler.inline):
        missing.update(Missing("cluster", name) for name in table.clusters - upstreams.keys())
    for proxy in compiler.proxies:
        missing.update(Missing("cluster", each.name) for each in proxy.clusters if each.name not in upstreams)
    return Snapshot(
        generation=generation,
        outbound=outbound,
        fallback=fallback,
        inbound=_inbound(resources.listeners.values()),
        upstreams=upstreams,
        missing=tuple(sorted(missing)),
        resources=resources,
        tables=tables,
    )


def _upstreams(resources: Resources, previous: Snapshot | None) -> tuple[dict[str, Upstream], set[Missing]]:
    before = previous.upstreams if previous is not None else {}
    upstreams: dict[str, Upstream] = {}
    missing: set[Missing] = set()
    for name, cluster in resources.clusters.items():
        assignment = None
        if cluster.type is ClusterType.EDS:
            assignment = resources.assignments.get(cluster.eds_name or name)
            if assignment is None:
                missing.add(Missing("endpoints", cluster.eds_name or name))
        old = before.get(name)
        if old is not None and _same(old.cluster, cluster) and _same(old.assignment, assignment):
            upstreams[name] = old
        else:
            upstreams[name] = compile_upstream(cluster, assignment)
    return upstreams, missing


def _same(old: object, new: object) -> bool:
    return old is new or old == new


def _tables(resources: Resources, previous: Snapshot | None) -> dict[str, RouteTable]:
    before = previous.tables if previous is not None else {}
    tables: dict[str, RouteTable] = {}
    for name, configuration in resources.routes.items():
        old = before.get(name)
        same = old is not None and _same(old.configuration, configuration)
        tables[name] = old if old is not None and same else RouteTable(configuration)
    return tables


def _inbound(listeners: Iterable[Listener]) -> Listener | None:
    """The one with `use_original_dst`, else the first by name (gRPC form)."""
    candidates = sorted(
        (listener for listener in listeners if listener.direction == "INBOUND"),
        key=lambda listener: (not listener.use_original_dst, listener.name),
    )
    return candidates[0] if candidates else None
