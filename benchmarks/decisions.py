"""`python -m benchmarks.decisions`: what the decisions of one request cost, without a network.

In microseconds, and in two measures of the same run, because machines differ: calls of an empty Python function with three
arguments (some 20 to 40 ns each), and what httpx2 takes to build one request. The configuration of the first cases is that of
`benchmarks/mesh`, translated by the control plane and received over xDS; the larger ones are made here.
"""

from __future__ import annotations

import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from random import Random

import httpx2
import yaml

from benchmarks.__main__ import ROOT
from proxyless.core.actions import Attempt, Deliver
from proxyless.core.balancing import pick
from proxyless.core.call import OutboundCall
from proxyless.core.inbound import ConnectionInfo, admit, select_chain
from proxyless.core.learned import Learned
from proxyless.core.matchers import PathMatcher, StringMatcher
from proxyless.core.rbac import AuthenticatedRule, Policy, Rbac, UrlPathRule
from proxyless.core.request import Address, Outcome, OutcomeKind, Peer, Request
from proxyless.core.resources import (
    Cluster,
    ClusterType,
    Health,
    LbEndpoint,
    LoadAssignment,
    LocalityEndpoints,
    RetryPolicy,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
    WeightedCluster,
)
from proxyless.core.retry import compile_rule
from proxyless.core.routing import RouteTable, select_route
from proxyless.core.snapshot import Resources, Snapshot, compile_snapshot
from proxyless.engine.h1 import request_head
from proxyless.spiffe import SpiffeId
from proxyless.testing import LocalMesh

ROUNDS, CALLS = 7, 4_000
HEADERS = [
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"user-agent", b"benchmark/1"),
    (b"x-request-id", b"1"),
]
OK = Outcome(kind=OutcomeKind.RESPONSE, status=200, headers=[(b"content-length", b"2")], bytes_seen=True)


def outbound(snapshot: Snapshot) -> Callable[[], None]:
    """Listener, route, cluster, endpoint, limits, and what the answer means to retries and outlier detection."""
    learned, rng = Learned(), Random(1)
    destination = Address("echo", 80)

    def decide() -> None:
        request = Request("GET", "/echo", HEADERS, authority="echo", destination=destination)
        call = OutboundCall(snapshot, request, learned, now=1.0, rng=rng)
        attempt = call.next(1.0)
        assert isinstance(attempt, Attempt), call.record.details
        attempt.begin(1.0)
        assert isinstance(call.on_outcome(OK, 1.0), Deliver)
        call.on_body_end(None, 1.0)

    return decide


def inbound(snapshot: Snapshot, port: int) -> Callable[[], None]:
    """Path, route and RBAC of a request on a connection whose filter chain is known."""
    local = Address("127.0.0.1", port)
    listener = next(each for each in snapshot.listeners.values() if each.direction == "INBOUND")
    chain = select_chain(listener, ConnectionInfo(destination=local, transport="tls", alpn=("istio",)))
    assert chain is not None
    caller = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/caller")
    peer = Peer(identity=caller, uri_sans=(str(caller),), tls=True, address=Address("127.0.0.1", 1), local=local)

    def decide() -> None:
        request = Request("GET", "/echo", HEADERS, authority="echo", destination=local)
        assert admit(chain, request, peer).allowed

    return decide


def last_of_ten() -> Callable[[], None]:
    """Routing: the last of ten prefix routes."""
    return _routing([_virtual_host("echo", ["*"])], "echo")


def among_a_thousand() -> Callable[[], None]:
    """Routing: the last route of one among 1,000 virtual hosts of ten routes."""
    return _routing(
        [_virtual_host(f"s{n}", [f"s{n}.example", f"s{n}.example:80"]) for n in range(1000)], "s500.example"
    )


def _routing(hosts: Sequence[VirtualHost], authority: str) -> Callable[[], None]:
    table, rng = RouteTable(RouteConfiguration(name="80", virtual_hosts=tuple(hosts))), Random(1)
    request = Request("GET", "/p9/x", HEADERS, authority=authority, destination=Address(authority, 80))

    def decide() -> None:
        assert select_route(table, request, rng) is not None

    return decide


def _virtual_host(name: str, domains: Sequence[str]) -> VirtualHost:
    action = RouteAction(clusters=(WeightedCluster(name="c", weight=1),), total_weight=1)
    routes = tuple(Route(match=RouteMatch(path=PathMatcher("prefix", f"/p{n}")), action=action) for n in range(10))
    return VirtualHost(name=name, domains=tuple(domains), routes=routes)


def pick_among_ten_thousand() -> Callable[[], None]:
    """Balancing: one of 10,000 equal endpoints, round robin."""
    endpoints = tuple(LbEndpoint(address=Address(f"10.0.{n >> 8}.{n & 255}", 80)) for n in range(10_000))
    assignment = LoadAssignment(name="c", localities=(LocalityEndpoints(endpoints=endpoints),))
    cluster = Cluster(name="c", type=ClusterType.STATIC, assignment=assignment)
    upstream = compile_snapshot(Resources(clusters={"c": cluster}), None, 1).upstreams["c"]
    state, rng = Learned().cluster("c"), Random(1)

    def decide() -> None:
        assert pick(upstream, state, rng) is not None

    return decide


def no_retry() -> Callable[[], None]:
    """The decision that a success is not repeated."""
    rule = compile_rule(RetryPolicy(retry_on=frozenset(("5xx", "connect-failure", "reset")), num_retries=3))
    assert rule is not None

    def decide() -> None:
        assert not rule.repeats_response(OK)

    return decide


def hundred_rules() -> Callable[[], None]:
    """RBAC: 100 rules of principal and path, of which none matches."""
    policies = tuple(
        Policy(
            f"p{n:03}",
            (UrlPathRule(StringMatcher("prefix", f"/p{n}/")),),
            (AuthenticatedRule(StringMatcher("exact", f"spiffe://cluster.local/ns/default/sa/a{n}")),),
        )
        for n in range(100)
    )
    rbac, request = Rbac("DENY", policies), Request("GET", "/echo", HEADERS, authority="echo")
    name = "spiffe://cluster.local/ns/default/sa/caller"
    peer = Peer(identity=SpiffeId.parse(name), uri_sans=(name,), tls=True)

    def decide() -> None:
        assert rbac.evaluate(request, peer).allowed

    return decide


def empty(one: object, two: object, three: object) -> None:
    """The unit."""


def unit() -> None:
    """A hundred of them."""
    for _ in range(10):
        empty(1, 2, 3)
        empty(1, 2, 3)
        empty(1, 2, 3)
        empty(1, 2, 3)
        empty(1, 2, 3)
        empty(1, 2, 3)
        empty(1, 2, 3)
        empty(1, 2, 3)
        empty(1, 2, 3)
        empty(1, 2, 3)


def head() -> None:
    """The bytes of a request."""
    request_head("GET", b"/echo", "echo", HEADERS, 0)


def peer() -> None:
    httpx2.Request("GET", "http://echo/echo", headers={"x-request-id": "1"})


def cost(work: Callable[[], None]) -> float:
    """Microseconds for one call."""
    started = time.perf_counter()
    for _ in range(CALLS):
        work()
    return (time.perf_counter() - started) / CALLS * 1e6


def main() -> int:
    manifests = (ROOT / "benchmarks" / "mesh" / "policy.yaml").read_text()
    settings = yaml.safe_load((ROOT / "benchmarks" / "mesh" / "mesh.yaml").read_text())
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,  # who accepts connections may be called
        LocalMesh(manifests, workloads={}, settings=settings) as local,
    ):
        port = listener.getsockname()[1]
        served = local.mesh("echo", service="echo", port=port)
        served.serve()  # there is no server here that would say so
        caller = local.mesh("caller")
        _wait_until(lambda: caller.snapshot is not None and _has_endpoint(caller.snapshot))
        assert served.snapshot is not None
        assert caller.snapshot is not None
        cases = {
            "outbound call, whole": outbound(caller.snapshot),
            "inbound admission": inbound(served.snapshot, port),
            "last of ten prefix routes": last_of_ten(),
            "one of 1,000 virtual hosts": among_a_thousand(),
            "pick of 10,000 endpoints": pick_among_ten_thousand(),
            "no retry after a success": no_retry(),
            "100 rules, none matches": hundred_rules(),
            "head of a request": head,
            "httpx2.Request": peer,
        }
    rounds = []
    for _ in range(ROUNDS + 1):
        measured = {name: cost(work) for name, work in cases.items()}
        measured["empty call"] = cost(unit) / 100
        rounds.append(measured)
    print(f"{'':<28}{'µs':>8}{'empty calls':>13}{'of httpx2.Request':>19}")
    for name in (*cases, "empty call"):
        micros, calls, share = (
            statistics.median(each[name] / each.get(other, 1.0) for each in rounds[1:])
            for other in ("", "empty call", "httpx2.Request")
        )
        print(f"{name:<28}{micros:>8.3f}{calls:>13.0f}{share:>19.3f}")
    return 0


def _has_endpoint(snapshot: Snapshot) -> bool:
    upstream = snapshot.upstreams.get("outbound|80||echo.default.svc.cluster.local")
    return upstream is not None and any(each.health is not Health.UNHEALTHY for each in upstream.endpoints)


def _wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("the echo service has no endpoint")
        time.sleep(0.01)


if __name__ == "__main__":
    os.chdir(ROOT)
    sys.exit(main())
