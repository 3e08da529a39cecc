"""Clusters, endpoints and what they are called with: what the recordings of istiod do not show."""

from __future__ import annotations

from typing import Any

import pytest

from proxyless.controlplane.registry import DRAINING, HEALTHY, UNHEALTHY, RegisteredWorkload
from proxyless.controlplane.translate import missing_resource
from proxyless.protos import CLUSTER, ENDPOINT, message
from proxyless.spiffe import SpiffeId

from .helpers import GATEWAY, NODE, as_json, served, service, world

PAYMENTS = "outbound|80||payments.default.svc.cluster.local"
GRANTS = "proxyless: {workloads: [{serviceAccount: payments, services: [payments]}]}"
ID = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/payments")


def registered(port: int = 9001, health: str = HEALTHY) -> RegisteredWorkload:
    host = "payments.default.svc.cluster.local"
    return RegisteredWorkload(identity=ID, service=host, address="127.0.0.1", port=port, health=health)


def endpoints(assignment: Any) -> list[dict[str, Any]]:
    return [e for locality in as_json(assignment).get("endpoints", []) for e in locality["lbEndpoints"]]


def mutual_tls(cluster: Any) -> dict[str, Any]:
    """The TLS context for endpoints that take mutual TLS."""
    matches = {match["name"]: match for match in as_json(cluster)["transportSocketMatches"]}
    context: dict[str, Any] = matches["tlsMode-istio"]["transportSocket"]["typedConfig"]
    return context


def expected_ids(context: dict[str, Any]) -> list[str]:
    validation = context["commonTlsContext"]["combinedValidationContext"]["defaultValidationContext"]
    return [san["exact"] for san in validation.get("matchSubjectAltNames", [])]


def test_a_service_of_the_operators_list_expects_its_identities_before_any_endpoint_is_there() -> None:
    """Else the first callers would accept anybody's certificate."""
    cluster = served(world(mesh=GRANTS), CLUSTER)[PAYMENTS]
    assert expected_ids(mutual_tls(cluster)) == [str(ID)]


def test_expected_identities_do_not_change_when_workloads_come_and_go() -> None:
    empty, full = world(mesh=GRANTS), world(mesh=GRANTS, registered=(registered(),))
    assert served(empty, CLUSTER) == served(full, CLUSTER)


def test_aliases_of_the_trust_domain_are_expected_too() -> None:
    of = world(service("api"), mesh="{trustDomain: new.example, trustDomainAliases: [old.example]}")
    ids = expected_ids(mutual_tls(served(of, CLUSTER)["outbound|80||api.default.svc.cluster.local"]))
    assert ids == ["spiffe://new.example/ns/default/sa/api", "spiffe://old.example/ns/default/sa/api"]


@pytest.mark.parametrize(("health", "status"), [(HEALTHY, "HEALTHY"), (UNHEALTHY, "UNHEALTHY"), (DRAINING, "DRAINING")])
def test_the_health_of_a_registered_workload_is_told(health: str, status: str) -> None:
    of = world(mesh=GRANTS, registered=(registered(health=health),))
    (endpoint,) = endpoints(served(of, ENDPOINT)[PAYMENTS])
    assert endpoint["healthStatus"] == status
    assert endpoint["endpoint"]["address"]["socketAddress"] == {"address": "127.0.0.1", "portValue": 9001}
    assert endpoint["metadata"]["filterMetadata"]["envoy.transport_socket_match"] == {"tlsMode": "istio"}


def test_the_mesh_settings_say_where_an_address_really_is() -> None:
    entry = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: out, namespace: default}
spec:
  hosts: [auth.example.com]
  location: MESH_EXTERNAL
  resolution: DNS
  ports: [{number: 443, name: https, protocol: HTTPS}]
  endpoints: [{address: 203.0.113.1}, {address: 203.0.113.2}]
"""
    of = world(entry, mesh='proxyless: {addressMap: {"203.0.113.1:443": "127.0.0.1:18443"}}')
    cluster = as_json(served(of, CLUSTER)["outbound|443||auth.example.com"])
    (locality,) = cluster["loadAssignment"]["endpoints"]
    addresses = [e["endpoint"]["address"]["socketAddress"] for e in locality["lbEndpoints"]]
    assert addresses == [
        {"address": "127.0.0.1", "portValue": 18443},
        {"address": "203.0.113.2", "portValue": 443},
    ]
    assert "transportSocket" not in cluster, "callers bring their own TLS"


def test_a_gateway_has_the_clusters_of_the_mesh_and_no_inbound_ones() -> None:
    of = world(service("api", address="10.9.0.1"))
    assert {*served(of, CLUSTER, GATEWAY)} == {"outbound|80||api.default.svc.cluster.local", "BlackHoleCluster"}


def test_an_unknown_assignment_is_empty() -> None:
    raw = missing_resource(world(), NODE, ENDPOINT, "outbound|80||nobody")
    assert as_json(message("envoy.config.endpoint.v3.ClusterLoadAssignment").FromString(raw)) == {
        "clusterName": "outbound|80||nobody"
    }


def test_a_credential_in_a_rule_for_everybody_means_no_tls_as_in_istio() -> None:
    rule = """
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: api, namespace: default}
spec: {host: api, trafficPolicy: {tls: {mode: SIMPLE, credentialName: client}}}
"""
    name = "outbound|80||api.default.svc.cluster.local"
    of = world(service("api"), rule)
    assert "transportSocket" not in as_json(served(of, CLUSTER)[name])
    assert "transportSocket" in as_json(served(of, CLUSTER, GATEWAY)[name])
