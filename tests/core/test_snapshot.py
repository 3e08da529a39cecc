from __future__ import annotations

import pytest

from proxyless.core.request import Address, Request
from proxyless.core.resources import (
    Cluster,
    ClusterType,
    DownstreamTls,
    FilterChain,
    FilterChainMatch,
    HttpConnectionManager,
    LbEndpoint,
    Listener,
    LoadAssignment,
    RouteConfiguration,
    TcpProxy,
    TransportSocketMatch,
    UpstreamTls,
    WeightedCluster,
)
from proxyless.core.snapshot import HttpTarget, Missing, Resources, Snapshot, compile_snapshot
from proxyless.values import replace
from tests.core.outbound import address, assignment, cluster, forward, listener, request, route, routes

MESH = UpstreamTls(sni="outbound_.80_._.svc", alpn=("istio-peer-exchange", "istio"))


def eds(name: str, **fields: object) -> Cluster:
    return Cluster(name=name, type=ClusterType.EDS, **fields)  # type: ignore[arg-type]  # keywords of a dataclass


def proxy(name: str) -> TcpProxy:
    return TcpProxy(clusters=(WeightedCluster(name=name, weight=1),))


def sidecar(port: int, *chains: FilterChain, default: FilterChain | None = None, **fields: object) -> Listener:
    fields.setdefault("address", Address("0.0.0.0", port))
    fields.setdefault("direction", "OUTBOUND")
    return Listener(
        name=f"{fields['address']}",
        filter_chains=chains,
        default_filter_chain=default,
        **fields,  # type: ignore[arg-type]  # keywords of a dataclass
    )


def http(rds: str) -> FilterChain:
    sniffed = FilterChainMatch(transport_protocol="raw_buffer", application_protocols=("http/1.1", "h2c"))
    return FilterChain(match=sniffed, filter=HttpConnectionManager(rds=rds))


def call_to(host: str, port: int, scheme: str = "http", sni: str = "") -> Request:
    return request("/", host, destination=Address(host, port), scheme=scheme, sni=sni)


def target_name(shot: Snapshot, what: Request) -> str | None:
    target = shot.target(what)
    if isinstance(target, HttpTarget):
        return f"routes {target.table.configuration.name}"
    return target.clusters[0].name if target is not None else None


# ------------------------------------------------------------------------------------------------------------- upstreams


def test_endpoints_come_from_the_load_assignment_that_the_cluster_names() -> None:
    resources = Resources(
        clusters={"c": eds("c", eds_name="service")},
        assignments={"service": assignment("service", [LbEndpoint(address=address(1), weight=3)], priority=1)},
    )
    (endpoint,) = compile_snapshot(resources, None, 1).upstreams["c"].endpoints
    assert (endpoint.address, endpoint.weight, endpoint.priority) == (address(1), 3, 1)


def test_the_first_matching_transport_socket_decides_for_each_endpoint() -> None:
    matches = (
        TransportSocketMatch(name="tlsMode-istio", match={"tlsMode": "istio"}, tls=MESH),
        TransportSocketMatch(name="tlsMode-disabled", match={}, tls=None),
    )
    endpoints = [
        LbEndpoint(address=address(1), socket_match={"tlsMode": "istio", "other": "x"}),
        LbEndpoint(address=address(2)),
    ]
    shot = compile_snapshot(Resources(clusters={"c": cluster("c", endpoints, tls_matches=matches, tls=MESH)}), None, 1)
    first, second = shot.upstreams["c"].endpoints
    assert first.tls is not None
    assert first.tls.sni == MESH.sni
    assert second.tls is None


def test_without_a_matching_transport_socket_the_clusters_own_is_used() -> None:
    matches = (TransportSocketMatch(name="istio", match={"tlsMode": "istio"}, tls=None),)
    own = UpstreamTls(sni="x")
    shot = compile_snapshot(Resources(clusters={"c": cluster("c", 1, tls_matches=matches, tls=own)}), None, 1)
    assert shot.upstreams["c"].endpoints[0].tls is own


@pytest.mark.parametrize(
    ("alpn", "http2", "offered"),
    [
        (("istio-peer-exchange", "istio"), False, ("istio-http/1.1", "istio", "http/1.1")),
        (("istio",), True, ("istio-h2", "istio", "h2")),
        (("http/1.1",), False, ("http/1.1",)),
        ((), False, ()),
    ],
)
def test_http_offers_istios_protocol_names_where_the_cluster_speaks_istio(
    alpn: tuple[str, ...], http2: bool, offered: tuple[str, ...]
) -> None:
    shot = compile_snapshot(
        Resources(clusters={"c": cluster("c", 2, tls=UpstreamTls(alpn=alpn), http2=http2)}), None, 1
    )
    upstream = shot.upstreams["c"]
    first, second = upstream.endpoints
    assert first.tls is not None
    assert first.tls.alpn == offered
    assert first.tls is second.tls  # engines key their pools by it
    tunnelled = upstream.for_tcp.endpoints[0].tls
    assert tunnelled is not None
    assert tunnelled.alpn == alpn


def test_a_cluster_without_endpoints_is_an_upstream() -> None:
    shot = compile_snapshot(Resources(clusters={"c": eds("c")}, assignments={"c": LoadAssignment(name="c")}), None, 1)
    assert shot.upstreams["c"].endpoints == ()
    assert shot.missing == ()


# ------------------------------------------------------------------------------------------------------------ incremental


def example() -> Resources:
    return Resources(
        listeners={"l": sidecar(80, http("80"))},
        routes={"80": routes(route(forward("a"))), "81": replace(routes(route(forward("b"))), name="81")},
        clusters={"a": eds("a"), "b": eds("b")},
        assignments={name: assignment(name, [LbEndpoint(address=address(1))]) for name in "ab"},
    )


def test_what_did_not_change_is_the_same_object() -> None:
    before = example()
    first = compile_snapshot(before, None, 1)
    changed = {**before.assignments, "b": assignment("b", [LbEndpoint(address=address(2))])}
    second = compile_snapshot(replace(before, assignments=changed), first, 2)
    assert second.generation == 2
    assert second.upstreams["a"] is first.upstreams["a"]
    assert second.upstreams["b"] is not first.upstreams["b"]
    assert second.tables["80"] is first.tables["80"]


def test_equal_resources_of_another_delivery_count_as_unchanged() -> None:
    first = compile_snapshot(example(), None, 1)
    second = compile_snapshot(example(), first, 2)
    assert second.upstreams["a"] is first.upstreams["a"]
    assert second.tables["81"] is first.tables["81"]


def test_a_changed_cluster_is_compiled_again() -> None:
    before = example()
    first = compile_snapshot(before, None, 1)
    clusters = {**before.clusters, "a": eds("a", connect_timeout=1.0)}
    second = compile_snapshot(replace(before, clusters=clusters), first, 2)
    assert second.upstreams["a"].cluster.connect_timeout == 1.0


# ---------------------------------------------------------------------------------------------------------------- missing


def test_references_to_what_is_absent_are_listed() -> None:
    resources = Resources(
        listeners={"l": sidecar(80, http("80")), "m": sidecar(81, http("81"))},
        routes={"80": routes(route(forward("gone", "here"), "/a"), route(forward(("unused", 0), ("here", 1))))},
        clusters={"here": eds("here")},
    )
    assert compile_snapshot(resources, None, 1).missing == (
        Missing("cluster", "gone"),
        Missing("endpoints", "here"),
        Missing("route", "81"),
    )


def test_a_listener_whose_routes_have_not_arrived_does_not_let_requests_out() -> None:
    listeners = {"l": sidecar(80, http("80"), default=FilterChain(filter=proxy("PassthroughCluster")))}
    target = compile_snapshot(Resources(listeners=listeners), None, 1).target(call_to("svc", 80))
    assert isinstance(target, HttpTarget)
    assert target.table.virtual_host("svc") is None


# -------------------------------------------------------------------------------------------------------------- listeners


def both_shapes() -> Snapshot:
    passthrough = FilterChain(filter=proxy("PassthroughCluster"))
    tls_chain = FilterChain(match=FilterChainMatch(server_names=("ext.test", "*.wild.test")), filter=proxy("ext"))
    listeners = [
        sidecar(80, http("80"), default=passthrough),
        sidecar(443, tls_chain, default=passthrough),
        sidecar(9000, FilterChain(filter=proxy("tcp")), address=Address("10.96.0.1", 9000)),
        sidecar(9001, FilterChain(filter=proxy("tcp"))),
        sidecar(
            15001,
            FilterChain(match=FilterChainMatch(destination_port=15001), filter=proxy("BlackHoleCluster")),
            passthrough,
            use_original_dst=True,
        ),
        Listener(name="grpc.test:50051", api=HttpConnectionManager(rds="80")),
    ]
    clusters = {"tcp": eds("tcp", service="db.store.svc.cluster.local")}
    resources = Resources(
        listeners={each.name: each for each in listeners},
        routes={"80": routes(route(forward("a")))},
        clusters=clusters,
    )
    return compile_snapshot(resources, None, 1)


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        pytest.param(call_to("svc", 80), "routes 80", id="sidecar: http chain of the port"),
        pytest.param(call_to("svc", 80, "https"), "PassthroughCluster", id="TLS on an http port takes the default chain"),
        pytest.param(call_to("ext.test", 443, "https"), "ext", id="TLS by server name"),
        pytest.param(call_to("EXT.test", 443, "https"), "ext", id="server name without case"),
        pytest.param(call_to("a.b.wild.test", 443, "https"), "ext", id="TLS by wildcard"),
        pytest.param(call_to("10.0.0.9", 443, "https", sni="ext.test"), "ext", id="SNI counts before the host"),
        pytest.param(call_to("other.test", 443, "https"), "PassthroughCluster", id="TLS with an unknown name"),
        pytest.param(call_to("svc", 8765), "PassthroughCluster", id="no listener for the port"),
        pytest.param(call_to("10.96.0.1", 9000), "tcp", id="listener on an address"),
        pytest.param(call_to("db.store.svc.cluster.local", 9000), "tcp", id="the same by the service's name"),
        pytest.param(call_to("db.store", 9000), "tcp", id="the same by a shorter name"),
        pytest.param(call_to("other", 9000), "PassthroughCluster", id="another name on that port"),
        pytest.param(call_to("db.store", 9001), "tcp", id="TCP on every address takes its own service"),
        pytest.param(call_to("db.store", 9001, "https"), "tcp", id="TLS of the application too"),
        pytest.param(call_to("10.0.0.7", 9001), "tcp", id="and addresses, as Envoy does"),
        pytest.param(call_to("cafe", 9001), "PassthroughCluster", id="but no other name"),
        pytest.param(call_to("grpc.test", 50051), "routes 80", id="gRPC form: API listener by name"),
        pytest.param(call_to("other.test", 50051), "PassthroughCluster", id="gRPC form: another name"),
    ],
)  # fmt: skip
def test_listener_selection(what: Request, expected: str) -> None:
    assert target_name(both_shapes(), what) == expected


def test_without_any_listener_nothing_is_the_meshs() -> None:
    assert compile_snapshot(Resources(), None, 1).target(call_to("svc", 80)) is None


def test_a_gateway_routes_terminated_tls_by_server_name() -> None:
    terminated = FilterChain(
        match=FilterChainMatch(server_names=("shop.test",)),
        tls=DownstreamTls(require_client_certificate=False),
        filter=HttpConnectionManager(rds="https"),
    )
    resources = Resources(
        listeners={"l": sidecar(443, terminated)}, routes={"https": RouteConfiguration(name="https", virtual_hosts=())}
    )
    shot = compile_snapshot(resources, None, 1)
    assert target_name(shot, call_to("shop.test", 443, "https")) == "routes https"
    assert target_name(shot, call_to("shop.test", 443)) is None


def test_the_inbound_listener_is_the_one_with_original_destinations() -> None:
    listeners = {
        "a": sidecar(8080, direction="INBOUND", address=Address("0.0.0.0", 8080)),
        "v": sidecar(15006, direction="INBOUND", use_original_dst=True),
        "80": listener(routes(route(forward("c")))),
    }
    shot = compile_snapshot(Resources(listeners=listeners), None, 1)
    assert shot.inbound is listeners["v"]
    assert set(shot.outbound) == {80}
