"""VirtualServices as routes: what the recordings of istiod do not show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.controlplane.translate import missing_resource, translate
from proxyless.protos import CLUSTER, ENDPOINT, LISTENER, ROUTE, message

from .helpers import GATEWAY, NODE, as_json, routes_of, served, service, world

PAYMENTS = service("payments")


def virtual_service(spec: str, name: str = "rule", namespace: str = "default", created: str = "") -> str:
    stamp = f', creationTimestamp: "{created}"' if created else ""
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: {namespace}{stamp}}}
spec: {spec}
"""


def clusters(routes: list[dict[str, Any]]) -> list[str]:
    return [route["route"]["cluster"] for route in routes]


def test_a_host_that_is_no_service_is_routed() -> None:
    of = world(
        PAYMENTS, virtual_service("{hosts: [payments.myapp.com], http: [{route: [{destination: {host: payments}}]}]}")
    )
    assert clusters(routes_of(of, "80", "payments.myapp.com")) == ["outbound|80||payments.default.svc.cluster.local"]


def test_a_missing_subset_leads_to_a_cluster_that_does_not_exist() -> None:
    rule = virtual_service("{hosts: [payments], http: [{route: [{destination: {host: payments, subset: v9}}]}]}")
    of = world(PAYMENTS, rule)
    (cluster,) = clusters(routes_of(of, "80", "payments"))
    assert cluster == "outbound|80|v9|payments.default.svc.cluster.local"
    assert cluster not in served(of, CLUSTER)


def test_short_names_mean_the_namespace_of_the_rule() -> None:
    rule = virtual_service("{hosts: [x.example.com], http: [{route: [{destination: {host: cart}}]}]}", namespace="shop")
    of = world(PAYMENTS, rule)
    assert clusters(routes_of(of, "80", "x.example.com")) == ["outbound|80||cart.shop.svc.cluster.local"]


def test_of_two_rules_for_a_host_the_oldest_wins() -> None:
    spec = "{{hosts: [payments], http: [{{name: {0}, route: [{{destination: {{host: payments}}}}]}}]}}"
    of = world(
        PAYMENTS,
        virtual_service(spec.format("new"), name="a", created="2026-02-01T00:00:00Z"),
        virtual_service(spec.format("old"), name="b", created="2026-01-01T00:00:00Z"),
    )
    assert [route["name"] for route in routes_of(of, "80", "payments")] == ["old"]


def test_an_exact_host_wins_over_a_wildcard_and_a_longer_wildcard_over_a_shorter() -> None:
    spec = "{{hosts: ['{0}'], http: [{{name: {1}, route: [{{destination: {{host: payments}}}}]}}]}}"
    of = world(
        PAYMENTS,
        service("orders"),
        service("far", namespace="shop"),
        virtual_service(spec.format("*.cluster.local", "widest"), name="a"),
        virtual_service(spec.format("*.default.svc.cluster.local", "wide"), name="b"),
        virtual_service(spec.format("payments", "exact"), name="c"),
    )
    names = {host: routes_of(of, "80", host)[0]["name"] for host in ("payments", "orders", "far.shop")}
    assert names == {"payments": "exact", "orders": "wide", "far.shop": "widest"}


def test_routes_after_a_catch_all_are_dropped() -> None:
    rule = virtual_service(
        "{hosts: [payments], http: ["
        "{name: a, match: [{uri: {prefix: /a}}], route: [{destination: {host: payments}}]},"
        "{name: all, match: [{uri: {prefix: /}}], route: [{destination: {host: payments}}]},"
        "{name: never, route: [{destination: {host: payments}}]}]}"
    )
    assert [route["name"] for route in routes_of(world(PAYMENTS, rule), "80", "payments")] == ["a", "all"]


def test_a_rule_bound_to_a_gateway_only_does_not_touch_the_mesh() -> None:
    rule = virtual_service(
        "{hosts: [payments], gateways: [public], http: [{name: g, route: [{destination: {host: payments}}]}]}"
    )
    assert [route["name"] for route in routes_of(world(PAYMENTS, rule), "80", "payments")] == ["default"]


def test_source_labels_are_decided_here() -> None:
    rule = virtual_service(
        "{hosts: [payments], http: ["
        "{name: web, match: [{sourceLabels: {app: web}}], route: [{destination: {host: payments}}]},"
        "{name: rest, route: [{destination: {host: payments}}]}]}"
    )
    of = world(PAYMENTS, rule)
    assert [route["name"] for route in routes_of(of, "80", "payments")] == ["web"]
    other = replace(NODE, labels=(("app", "other"),))
    assert [route["name"] for route in routes_of(of, "80", "payments", other)] == ["rest"]


def test_retries_without_retry_on_do_not_repeat_503() -> None:
    rule = virtual_service(
        "{hosts: [payments], http: [{route: [{destination: {host: payments}}],"
        " retries: {attempts: 3, perTryTimeout: 2s}, timeout: 5s}]}"
    )
    (route,) = routes_of(world(PAYMENTS, rule), "80", "payments")
    policy = route["route"]["retryPolicy"]
    assert "retriableStatusCodes" not in policy
    assert policy["retryOn"].split(",") == [
        "connect-failure",
        "refused-stream",
        "unavailable",
        "cancelled",
        "retriable-status-codes",
    ]
    assert (policy["numRetries"], policy["perTryTimeout"], route["route"]["timeout"]) == (3, "2s", "5s")


def test_the_meshs_default_retry_policy_is_used_where_a_route_says_nothing() -> None:
    of = world(PAYMENTS, mesh='defaultHttpRetryPolicy: {attempts: 1, retryOn: "503,reset"}')
    policy = routes_of(of, "80", "payments")[0]["route"]["retryPolicy"]
    assert (policy["numRetries"], policy["retryOn"], policy["retriableStatusCodes"]) == (
        1,
        "reset,retriable-status-codes",
        [503],
    )


@pytest.mark.parametrize(("mode", "answer"), [("ALLOW_ANY", "PassthroughCluster"), ("REGISTRY_ONLY", 502)])
def test_unknown_hosts_pass_or_are_refused(mode: str, answer: object) -> None:
    of = world(PAYMENTS, mesh=f"outboundTrafficPolicy: {{mode: {mode}}}")
    (route,) = routes_of(of, "80", "*")
    assert (route.get("directResponse") or {}).get("status", route.get("route", {}).get("cluster")) == answer


def test_no_domain_belongs_to_two_virtual_hosts() -> None:
    shared = "\n  addresses: [10.96.0.1]"
    of = world(
        service("a").replace("spec:", "spec:" + shared, 1),
        service("b").replace("spec:", "spec:" + shared, 1),
        virtual_service("{hosts: [x.example.com], http: [{route: [{destination: {host: a}}]}]}"),
    )
    domains = [d for host in as_json(served(of, ROUTE)["80"])["virtualHosts"] for d in host["domains"]]
    assert len(domains) == len(set(domains))


def test_addresses_are_domains_and_ranges_are_not() -> None:
    of = world(service("a").replace("spec:", "spec:\n  addresses: [10.96.0.1, 10.97.0.0/16, 'fd00::1']", 1))
    (host, _) = as_json(served(of, ROUTE)["80"])["virtualHosts"]
    assert host["domains"][-2:] == ["10.96.0.1", "[fd00::1]"]


def test_an_unknown_route_configuration_holds_only_what_happens_to_unknown_hosts() -> None:
    of = world(PAYMENTS)
    kind = message("envoy.config.route.v3.RouteConfiguration")
    sidecar = as_json(kind.FromString(missing_resource(of, NODE, ROUTE, "8080")))
    gateway = as_json(kind.FromString(missing_resource(of, GATEWAY, ROUTE, "http.9")))
    assert [host["name"] for host in sidecar["virtualHosts"]] == ["allow_any"]
    assert [host.get("routes") for host in gateway["virtualHosts"]] == [None]


def test_a_virtual_service_that_is_not_exported_is_not_seen() -> None:
    rule = virtual_service(
        "{exportTo: ['.'], hosts: [x.example.com], http: [{route: [{destination: {host: cart}}]}]}", namespace="shop"
    )
    of = world(PAYMENTS, rule)
    with pytest.raises(AssertionError, match="no virtual host"):
        routes_of(of, "80", "x.example.com")
    node = replace(NODE, namespace="shop", dns_domain="shop.svc.cluster.local")
    assert clusters(routes_of(of, "80", "x.example.com", node)) == ["outbound|80||cart.shop.svc.cluster.local"]


DOCUMENTS = (
    PAYMENTS,
    service("orders", address="10.0.0.2"),
    virtual_service("{hosts: [payments], http: [{route: [{destination: {host: orders}}]}]}", name="a"),
    virtual_service("{hosts: [orders], http: [{route: [{destination: {host: payments}}]}]}", name="b"),
)


@given(st.permutations(DOCUMENTS))
def test_the_order_of_documents_does_not_matter(documents: list[str]) -> None:
    expected = translate(world(*DOCUMENTS), NODE)
    assert translate(world(*documents), NODE) == expected
    assert set(expected) == {LISTENER, ROUTE, CLUSTER, ENDPOINT}
