"""Findings over several resources."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxyless.controlplane.manifest.loader import load_text
from proxyless.controlplane.manifest.meshconfig import load_mesh_text
from proxyless.controlplane.manifest.messages import Message
from proxyless.controlplane.manifest.references import check_references
from proxyless.controlplane.manifest.validate import validate_paths

from .helpers import manifest

CART = "cart.shop.svc.cluster.local"
ENTRY = manifest(
    "ServiceEntry",
    f"""
    hosts: [{CART}]
    location: MESH_INTERNAL
    resolution: STATIC
    ports: [{{number: 80, name: http, protocol: HTTP}}]
    endpoints:
    - {{address: 10.0.0.1, labels: {{app: cart}}}}
    - {{address: 10.0.0.2, labels: {{app: cart}}}}
    """,
    "cart",
)
MESH = """
proxyless:
  workloads:
  - {namespace: shop, serviceAccount: billing, services: [billing.example]}
"""


def findings(*documents: str, mesh: str = "") -> list[Message]:
    loaded = load_text("---\n".join((ENTRY, *documents)), "f.yaml")
    assert loaded.errors == []
    return check_references(loaded.resources, load_mesh_text(mesh, "mesh.yaml").config)


def codes(*documents: str, mesh: str = "") -> list[tuple[str, str]]:
    return [(message.code, message.path) for message in findings(*documents, mesh=mesh)]


def http(body: str, name: str = "x", gateways: str = "[mesh]", hosts: str = "[cart]", metadata: str = "") -> str:
    return manifest(
        "VirtualService", f"hosts: {hosts}\ngateways: {gateways}\nhttp: [{{{body}}}]", name, metadata=metadata
    )


def test_references_that_hold_are_silent() -> None:
    rule = manifest("DestinationRule", "host: cart\nsubsets: [{name: v1}]")
    assert codes(rule, http("route: [{destination: {host: cart, subset: v1, port: {number: 80}}}]")) == []


@pytest.mark.parametrize(
    ("destination", "code", "field"),
    [
        ("{host: crat}", "host-not-found", ".host"),
        ("{host: cart.other}", "host-not-found", ".host"),
        ("{host: cart, port: {number: 81}}", "port-not-found", ".port.number"),
        ("{host: cart, subset: v9}", "subset-not-found", ".subset"),
    ],
)
def test_a_destination_that_is_not_there_is_a_warning_at_its_field(destination: str, code: str, field: str) -> None:
    (message,) = findings(http(f"route: [{{destination: {destination}}}]"))
    assert (message.severity, message.code) == ("warning", code)
    assert message.path == f"spec.http[0].route[0].destination{field}"
    assert message.place.line == 19
    assert "503 NC" in message.reason


def test_a_missing_subset_names_the_rule_where_it_could_be_added() -> None:
    (message,) = findings(
        manifest("DestinationRule", "host: cart"), http("route: [{destination: {host: cart, subset: v1}}]")
    )
    assert message.hint == "add it to DestinationRule shop/x"


def test_wildcard_services_cover_the_names_below_them() -> None:
    wide = manifest(
        "ServiceEntry",
        "hosts: ['*.vendor.test']\nresolution: NONE\nports: [{number: 443, name: t, protocol: TLS}]",
        "w",
    )
    assert codes(wide, http("route: [{destination: {host: api.vendor.test}}]")) == []


def test_a_gateway_that_is_not_there_or_has_other_hosts_is_a_warning() -> None:
    edge = manifest(
        "Gateway", "selector: {a: b}\nservers: [{hosts: [a.test], port: {number: 80, name: h, protocol: HTTP}}]", "edge"
    )
    routes = "route: [{destination: {host: cart}}]"
    assert codes(edge, http(routes, gateways="[edge]", hosts="[a.test]")) == []
    assert codes(edge, http(routes, gateways="[shop/edge]", hosts="[b.test]")) == [
        ("host-not-in-gateway", "spec.hosts[0]")
    ]
    assert codes(edge, http(routes, gateways="[other/edge]", hosts="[a.test]")) == [
        ("gateway-not-found", "spec.gateways[0]")
    ]


def test_retries_without_conditions_are_explained_unless_the_mesh_has_some() -> None:
    service = http("retries: {attempts: 3}, route: [{destination: {host: cart}}]")
    (message,) = findings(service)
    assert (message.severity, message.code, message.path) == ("notice", "retry-default", "spec.http[0].retries")
    assert codes(service, mesh="defaultHttpRetryPolicy: {attempts: 2, retryOn: 5xx}") == []


def test_an_outlier_rule_that_cannot_eject_with_the_endpoints_there_are_is_a_warning() -> None:
    rule = "host: cart\ntrafficPolicy: {{outlierDetection: {{consecutive5xxErrors: 2, maxEjectionPercent: {}}}}}"
    assert codes(manifest("DestinationRule", rule.format(50))) == []
    (message,) = findings(manifest("DestinationRule", rule.format(10)))
    assert message.code == "never-ejects"
    assert "fewer than 10 endpoints" in message.reason


def principals(value: str) -> str:
    return manifest("AuthorizationPolicy", f"rules: [{{from: [{{source: {{principals: ['{value}']}}}}]}}]")


def test_a_principal_that_is_the_host_of_a_known_service_is_said_to_be_read_as_its_identities() -> None:
    (message,) = findings(principals("billing.example"), mesh=MESH)
    assert (message.code, message.path) == ("principal-by-host", "spec.rules[0].from[0].source.principals[0]")
    assert "cluster.local/ns/shop/sa/billing" in message.reason
    assert "principalsNamedByHost: false" in message.hint


@pytest.mark.parametrize(
    ("value", "mesh"),
    [
        ("billing.example", MESH + "  principalsNamedByHost: false\n"),
        ("nobody.example", MESH),
        ("cart.shop.svc.cluster.local", MESH),
    ],
)
def test_a_principal_that_can_never_match_is_a_warning(value: str, mesh: str) -> None:
    (message,) = findings(principals(value), mesh=mesh)
    assert (message.severity, message.code) == ("warning", "principal")


@pytest.mark.parametrize("value", ["cluster.local/ns/shop/sa/billing", "*", "*/sa/billing", "cluster.local/*"])
def test_identities_and_wildcards_are_silent(value: str) -> None:
    assert codes(principals(value), mesh=MESH) == []


def test_a_selector_without_a_workload_is_a_warning_or_a_notice_when_one_may_register() -> None:
    policy = manifest("AuthorizationPolicy", "selector: {matchLabels: {app: pay}}")
    assert [(m.severity, m.code) for m in findings(policy)] == [("warning", "selects-nothing")]
    assert [(m.severity, m.code) for m in findings(policy, mesh=MESH)] == [("notice", "selects-nothing")]
    assert codes(manifest("AuthorizationPolicy", "selector: {matchLabels: {app: cart}}")) == []


def test_a_split_before_a_hash_is_a_warning() -> None:
    rule = manifest(
        "DestinationRule",
        "host: cart\ntrafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x}}}\nsubsets: [{name: a}, {name: b}]",
    )
    split = (
        "route: [{destination: {host: cart, subset: a}, weight: 1}, {destination: {host: cart, subset: b}, weight: 1}]"
    )
    assert codes(rule, http(split)) == [("split-of-hash", "spec.http[0].route")]


def test_routes_behind_those_of_an_older_resource_are_reported() -> None:
    edge = manifest(
        "Gateway", "selector: {a: b}\nservers: [{hosts: ['*'], port: {number: 80, name: h, protocol: HTTP}}]", "edge"
    )
    first = 'creationTimestamp: "2025-01-01T00:00:00Z"'
    second = 'creationTimestamp: "2025-01-02T00:00:00Z"'
    short = "match: [{uri: {prefix: /book}}], route: [{destination: {host: cart}}]"
    longer = "match: [{uri: {prefix: /bookmark}}], route: [{destination: {host: cart}}]"
    older = http(short, "a", "[edge]", "['*']", first)
    newer = http(longer, "b", "[edge]", "['*']", second)
    (message,) = findings(edge, newer, older)
    assert (message.code, message.subject.name, message.path) == ("unreachable", "b", "spec.http[0].match[0]")


def test_the_same_host_twice_in_the_mesh_is_reported_at_the_younger() -> None:
    routes = "route: [{destination: {host: cart}}]"
    (message,) = findings(http(routes, "b"), http(routes, "a", hosts=f"[{CART}]"))
    assert (message.code, message.subject.name) == ("competing", "b")


def test_a_second_peer_authentication_of_one_scope_is_reported() -> None:
    strict = "mtls: {mode: STRICT}"
    assert codes(manifest("PeerAuthentication", strict, "a"), manifest("PeerAuthentication", strict, "b")) == [
        ("competing", "spec")
    ]


def test_validate_takes_mesh_settings_from_the_directory_and_gives_everything_in_order(tmp_path: Path) -> None:
    (tmp_path / "mesh.yaml").write_text("trustDomian: a.b\n" + MESH)
    (tmp_path / "a.yaml").write_text(ENTRY + "---\n" + principals("billing.example") + "---\nkind: Deployment\n")
    result = validate_paths([tmp_path])
    assert [(message.code, Path(message.place.file).name) for message in result.messages] == [
        ("principal", "a.yaml"),
        ("not-a-manifest", "a.yaml"),
        ("unknown-field", "mesh.yaml"),
    ]
    (tmp_path / "mesh.yaml").write_text(MESH)
    assert "principal-by-host" in [message.code for message in validate_paths([tmp_path]).messages]
    assert "principal-by-host" in [
        m.code for m in validate_paths([tmp_path / "mesh.yaml", tmp_path / "a.yaml"]).messages
    ]
    assert validate_paths([tmp_path / "mesh.yaml"]).messages == ()


def test_validate_takes_explicit_mesh_settings_and_misses_them_when_they_are_not_there(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(principals("billing.example"))
    (tmp_path / "settings").write_text(MESH)
    assert [m.code for m in validate_paths([tmp_path / "a.yaml"], tmp_path / "settings").messages] == [
        "principal-by-host"
    ]
    missing = validate_paths([tmp_path / "a.yaml"], tmp_path / "none.yaml")
    assert [error.reason for error in missing.errors] == ["no such file"]
