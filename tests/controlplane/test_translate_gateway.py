"""Gateways: what the recordings of istiod do not show."""

from __future__ import annotations

from typing import Any

from proxyless.protos import LISTENER, ROUTE

from .helpers import GATEWAY, as_json, routes_of, served, service, world


def gateway(servers: str, name: str = "public", namespace: str = "default") -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {{name: {name}, namespace: {namespace}}}
spec: {{selector: {{istio: ingressgateway}}, servers: [{servers}]}}
"""


def virtual_service(host: str, name: str, namespace: str = "default", gateways: str = "default/public") -> str:
    return f"""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  hosts: ["{host}"]
  gateways: [{gateways}]
  http: [{{name: {name}, match: [{{uri: {{prefix: /{name}}}}}], route: [{{destination: {{host: api.default.svc.cluster.local}}}}]}}]
"""


HTTP = "{{port: {{number: {0}, name: http-{0}, protocol: HTTP}}, hosts: [{1}]}}"


def domains(of: Any, name: str) -> list[list[str]]:
    return [host["domains"] for host in as_json(served(of, ROUTE, GATEWAY)[name])["virtualHosts"]]


def test_the_gateway_listens_where_the_mesh_settings_say() -> None:
    of = world(gateway(HTTP.format(80, "api.myapp.com")), mesh="proxyless: {gatewayPorts: {80: 8080}}")
    listener = as_json(served(of, LISTENER, GATEWAY)["0.0.0.0_8080"])
    assert listener["address"]["socketAddress"]["portValue"] == 8080
    assert [*served(of, ROUTE, GATEWAY)] == ["http.8080"]


def test_without_rules_a_port_answers_404() -> None:
    of = world(gateway(HTTP.format(80, "api.myapp.com")))
    (host,) = as_json(served(of, ROUTE, GATEWAY)["http.80"])["virtualHosts"]
    assert (host["domains"], host.get("routes")) == (["*"], None)


def test_a_gateway_that_selects_other_workloads_is_not_ours() -> None:
    of = world(gateway(HTTP.format(80, "'*'")).replace("ingressgateway", "other"))
    assert served(of, LISTENER, GATEWAY) == {}


def test_the_narrower_of_server_and_rule_host_is_served() -> None:
    of = world(
        service("api"),
        gateway(HTTP.format(80, '"*.example.com", exact.org')),
        virtual_service("a.example.com", "a"),
        virtual_service("*.org", "b"),
        virtual_service("elsewhere.net", "c"),
    )
    assert domains(of, "http.80") == [["a.example.com"], ["exact.org"]]


def test_a_server_can_restrict_the_namespaces_that_bind_to_it() -> None:
    of = world(
        service("api"),
        gateway(HTTP.format(80, "shop/shop.example.com, ./own.example.com")),
        virtual_service("shop.example.com", "a", namespace="shop"),
        virtual_service("shop.example.com", "b"),
        virtual_service("own.example.com", "c"),
        virtual_service("own.example.com", "d", namespace="shop"),
    )
    assert [r["name"] for r in routes_of(of, "http.80", "shop.example.com", GATEWAY)] == ["a"]
    assert [r["name"] for r in routes_of(of, "http.80", "own.example.com", GATEWAY)] == ["c"]


def test_routes_of_several_rules_for_a_host_are_put_together_and_catch_alls_go_last() -> None:
    catch_all = virtual_service("x.example.com", "a").replace("match: [{uri: {prefix: /a}}], ", "")
    of = world(
        service("api"), gateway(HTTP.format(80, "x.example.com")), catch_all, virtual_service("x.example.com", "b")
    )
    assert [route["name"] for route in routes_of(of, "http.80", "x.example.com", GATEWAY)] == ["b", "a"]


def test_a_destination_without_port_takes_the_services_only_port() -> None:
    of = world(
        service("api", port=9080),
        gateway(HTTP.format(80, "x.example.com")),
        virtual_service("x.example.com", "a"),
    )
    (route,) = routes_of(of, "http.80", "x.example.com", GATEWAY)
    assert route["route"]["cluster"] == "outbound|9080||api.default.svc.cluster.local"


def test_two_gateways_on_one_port_share_its_routes() -> None:
    of = world(
        service("api"),
        gateway(HTTP.format(80, "a.example.com")),
        gateway(HTTP.format(80, "b.example.com"), name="second"),
        virtual_service("a.example.com", "a"),
        virtual_service("b.example.com", "b", gateways="second"),
    )
    assert domains(of, "http.80") == [["a.example.com"], ["b.example.com"]]


def test_an_older_way_to_name_a_gateway_is_understood() -> None:
    of = world(
        service("api"),
        gateway(HTTP.format(80, "a.example.com")),
        virtual_service("a.example.com", "a", namespace="shop", gateways="public.default.svc.cluster.local"),
    )
    assert domains(of, "http.80") == [["a.example.com"]]


def test_a_match_on_claims_never_holds() -> None:
    """Routes do not look at tokens yet; a route for administrators must not become one for everybody."""
    admins = virtual_service("x.example.com", "a").replace(
        "{uri: {prefix: /a}}", "{headers: {'@request.auth.claims.group': {exact: admin}}}"
    )
    of = world(service("api"), gateway(HTTP.format(80, "x.example.com")), admins, virtual_service("x.example.com", "b"))
    assert [route["name"] for route in routes_of(of, "http.80", "x.example.com", GATEWAY)] == ["b"]


def test_tls_that_would_have_to_be_opened_for_tcp_is_not_passed_on_unopened() -> None:
    server = "{{port: {{number: 443, name: tls, protocol: TLS}}, hosts: [x.example.com], tls: {0}}}"
    rule = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: x, namespace: default}
spec:
  hosts: [x.example.com]
  gateways: [default/public]
  tls: [{match: [{sniHosts: [x.example.com]}], route: [{destination: {host: api.default.svc.cluster.local}}]}]
"""
    opened = world(service("api"), gateway(server.format("{mode: SIMPLE, credentialName: x}")), rule)
    passed = world(service("api"), gateway(server.format("{mode: PASSTHROUGH}")), rule)
    assert served(opened, LISTENER, GATEWAY) == {}
    assert [*served(passed, LISTENER, GATEWAY)] == ["0.0.0.0_443"]
