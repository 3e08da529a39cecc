"""Routes: virtual host by Host, then the first route that matches, then one of its clusters.

A table is compiled once for each route configuration. `select_route` returns a `RouteDecision` made at compile time; nothing is
built per request (a `cluster_header` is the exception). Sources: Envoy route.v3 and `config_impl.cc`; recordings of Envoy 1.40.

- Host: exact, then `*.suffix` (longest), then `prefix.*` (longest), then `*`. A wildcard stands for at least one character. Case
  does not matter. The port belongs to the name unless `ignore_port_in_host` cuts it off.
- One random value serves the runtime fraction and the weighted split of a request.
- Header mutations apply as weighted cluster, route, virtual host, route configuration; `most_specific_wins` turns that round.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate

from proxyless.core.request import Request
from proxyless.core.resources import (
    NO_MUTATIONS,
    HeaderMutations,
    Route,
    RouteAction,
    RouteConfiguration,
    VirtualHost,
    WeightedCluster,
)
from proxyless.core.rng import Rng

__all__ = ["HostIndex", "RouteDecision", "RouteTable", "select_route"]

_RANDOM_RANGE = 2**53  # what a float of [0, 1) can tell apart

Mutations = tuple[HeaderMutations, ...]


class RouteDecision:
    """Where a request goes and which names decided it.

    Attributes:
        cluster: empty for a redirect, a direct response or a missing `cluster_header`.
        request_headers, response_headers: mutations in the order to apply; empty ones left out.
        memo: for the caller's own compiled form of the route (retry rules); filled on first use.
    """

    __slots__ = (
        "cluster",
        "include_attempt_count",
        "memo",
        "request_headers",
        "response_headers",
        "route",
        "virtual_host",
    )

    def __init__(
        self,
        virtual_host: VirtualHost,
        route: Route,
        cluster: str,
        request_headers: Mutations,
        response_headers: Mutations,
    ) -> None:
        self.virtual_host = virtual_host.name
        self.include_attempt_count = virtual_host.include_attempt_count
        self.route, self.cluster = route, cluster
        self.request_headers, self.response_headers = request_headers, response_headers
        self.memo: object | None = None


class HostIndex:
    """Finds what a host belongs to. `entries`: (domains, value); the first of equal domains counts."""

    __slots__ = ("any", "exact", "prefixes", "suffixes")

    def __init__(self, entries: Iterable[tuple[Sequence[str], _VirtualHostTable]]) -> None:
        self.exact: dict[str, _VirtualHostTable] = {}
        self.any: _VirtualHostTable | None = None
        suffixes: dict[int, dict[str, _VirtualHostTable]] = {}
        prefixes: dict[int, dict[str, _VirtualHostTable]] = {}
        for domains, value in entries:
            for domain in map(str.lower, domains):
                if domain == "*":
                    self.any = self.any or value
                elif domain.startswith("*"):
                    suffixes.setdefault(len(domain) - 1, {}).setdefault(domain[1:], value)
                elif domain.endswith("*"):
                    prefixes.setdefault(len(domain) - 1, {}).setdefault(domain[:-1], value)
                else:
                    self.exact.setdefault(domain, value)
        self.suffixes = sorted(suffixes.items(), reverse=True)
        self.prefixes = sorted(prefixes.items(), reverse=True)

    def find(self, host: str) -> _VirtualHostTable | None:
        """`host` is lower case."""
        found = self.exact.get(host)
        return found if found is not None else self._wildcard(host)

    def _wildcard(self, host: str) -> _VirtualHostTable | None:
        length = len(host)
        for size, values in self.suffixes:
            if size < length:
                found = values.get(host[length - size :])
                if found is not None:
                    return found
        for size, values in self.prefixes:
            if size < length:
                found = values.get(host[:size])
                if found is not None:
                    return found
        return self.any


class _RouteEntry:
    """One route, compiled. `decisions` by cumulative weight; `condition` is what must hold beside the path."""

    __slots__ = ("conditional", "cumulative", "decision", "decisions", "route")

    def __init__(self, table: RouteConfiguration, virtual_host: VirtualHost, route: Route) -> None:
        self.route = route
        match = route.match
        self.conditional = bool(match.headers or match.query or match.fraction is not None or match.grpc)
        action = route.action
        clusters = action.clusters if isinstance(action, RouteAction) else ()
        weighted = [cluster for cluster in clusters if cluster.weight > 0] or list(clusters[:1])
        self.decisions = tuple(_decision(table, virtual_host, route, cluster) for cluster in weighted)
        self.cumulative = tuple(accumulate(cluster.weight for cluster in weighted))
        self.decision: RouteDecision | None = None  # set when no draw is needed
        if len(self.decisions) == 1:
            self.decision = self.decisions[0]
        elif not self.decisions and not (isinstance(action, RouteAction) and action.cluster_header):
            self.decision = _decision(table, virtual_host, route, None)


def _decision(
    table: RouteConfiguration, virtual_host: VirtualHost, route: Route, cluster: WeightedCluster | None
) -> RouteDecision:
    request = [route.request_headers, virtual_host.request_headers, table.request_headers]
    response = [route.response_headers, virtual_host.response_headers, table.response_headers]
    if cluster is not None:
        request.insert(0, cluster.request_headers)
        response.insert(0, cluster.response_headers)
    if table.most_specific_wins:
        request.reverse()
        response.reverse()
    name = cluster.name if cluster is not None else ""
    return RouteDecision(virtual_host, route, name, tuple(filter(None, request)), tuple(filter(None, response)))


class _VirtualHostTable:
    """The routes of a virtual host in order: (prefix or None, path test or None, entry)."""

    __slots__ = ("routes", "source", "table")

    def __init__(self, table: RouteConfiguration, source: VirtualHost) -> None:
        self.table, self.source = table, source
        self.routes: list[tuple[str | None, Callable[[str], bool], _RouteEntry]] = []
        for route in source.routes:
            path = route.match.path
            plain = path.kind == "prefix" and path.case_sensitive and path.value.isascii()
            self.routes.append((path.value if plain else None, path.matches, _RouteEntry(table, source, route)))


class RouteTable:
    """A route configuration, compiled.

    Attributes:
        clusters: names of the clusters that its routes can choose, those of weight 0 left out.
    """

    __slots__ = ("clusters", "configuration", "hosts", "ignore_port")

    def __init__(self, configuration: RouteConfiguration) -> None:
        self.configuration = configuration
        self.ignore_port = configuration.ignore_port_in_host
        tables = [_VirtualHostTable(configuration, host) for host in configuration.virtual_hosts]
        self.hosts = HostIndex((table.source.domains, table) for table in tables)
        self.clusters = frozenset(
            decision.cluster
            for table in tables
            for _, _, entry in table.routes
            for decision in entry.decisions
            if decision.cluster
        )

    def virtual_host(self, authority: str) -> _VirtualHostTable | None:
        """The virtual host of a Host header; None: no domain fits."""
        if self.ignore_port:
            port = authority.rfind(":")
            if port >= 0 and "]" not in authority[port:]:
                authority = authority[:port]
        return self.hosts.find(authority.lower())


def select_route(table: RouteTable, request: Request, rng: Rng) -> RouteDecision | None:
    """The first route of the request's virtual host that matches; None: 404 NR. Draws at most one random number."""
    virtual_host = table.virtual_host(request.authority)
    if virtual_host is None:
        return None
    path = request.path
    value = -1
    for prefix, matches, entry in virtual_host.routes:
        if path.startswith(prefix) if prefix is not None else matches(path):
            if entry.conditional:
                if value < 0 and entry.route.match.fraction is not None:
                    value = int(rng.random() * _RANDOM_RANGE)
                if not _conditions_hold(entry.route, request, value):
                    continue
            return entry.decision or _choose(virtual_host, entry, request, value, rng)
    return None


def _conditions_hold(route: Route, request: Request, value: int) -> bool:
    match = route.match
    fraction = match.fraction
    if fraction is not None and value % fraction.denominator >= fraction.numerator:
        return False
    if match.grpc and not request.is_grpc:
        return False
    for header in match.headers:
        if not header.matches(request):
            return False
    return all(query.matches(request.query) for query in match.query)


def _choose(
    virtual_host: _VirtualHostTable, entry: _RouteEntry, request: Request, value: int, rng: Rng
) -> RouteDecision:
    """One of several clusters by weight, or the one that a request header names."""
    action = entry.route.action
    if not entry.decisions:
        values = request.values(action.cluster_header.lower()) if isinstance(action, RouteAction) else ()
        name = values[0] if values else ""
        cluster = WeightedCluster(name=name, weight=1, request_headers=NO_MUTATIONS, response_headers=NO_MUTATIONS)
        return _decision(virtual_host.table, virtual_host.source, entry.route, cluster)
    if value < 0:
        value = int(rng.random() * _RANDOM_RANGE)
    return entry.decisions[bisect_right(entry.cumulative, value % entry.cumulative[-1])]
