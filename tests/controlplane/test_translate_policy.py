"""What a workload accepts, from whom: what the recordings of istiod do not show."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proxyless.controlplane.translate import ProxyNode, World
from proxyless.controlplane.translate.rbac_values import expand_trust_domains
from proxyless.protos import CLUSTER, LISTENER

from .helpers import GATEWAY, NODE, as_json, served, service, world

GRANTS = """
proxyless:
  principalsNamedByHost: {on}
  workloads:
  - {{serviceAccount: billing, services: [billing.myapp.com]}}
  - {{serviceAccount: payments, services: [payments], labels: {{app: payments}}}}
"""
ONLY_BILLING = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: payments-to-billing, namespace: default}
spec:
  selector: {matchLabels: {app: payments}}
  rules: [{from: [{source: {principals: ["billing.myapp.com"]}}]}]
"""
PAYMENTS = replace(NODE, ips=("127.0.0.1",), labels=(), service_account="payments", service="payments", port=9001)


def chains(of: World, node: ProxyNode, port: int | None) -> list[dict[str, Any]]:
    listener = as_json(served(of, LISTENER, node)["virtualInbound"])
    return [c for c in listener["filterChains"] if c.get("filterChainMatch", {}).get("destinationPort") == port]


def http_filters(chain: dict[str, Any]) -> dict[str, Any]:
    (manager,) = chain["filters"]
    return {f["name"]: f["typedConfig"] for f in manager["typedConfig"]["httpFilters"]}


def rules(of: World, node: ProxyNode, port: int) -> dict[str, Any]:
    policies: dict[str, Any] = http_filters(chains(of, node, port)[0])["envoy.filters.http.rbac"]["rules"]["policies"]
    return policies


def principals(policy: dict[str, Any]) -> list[str]:
    (either,) = policy["principals"][0]["andIds"]["ids"]
    return [p["authenticated"]["principalName"]["exact"] for p in either["orIds"]["ids"]]


def test_a_principal_that_is_the_host_of_a_service_stands_for_who_may_serve_it() -> None:
    of = world(ONLY_BILLING, mesh=GRANTS.format(on="true"))
    (policy,) = rules(of, PAYMENTS, 9001).values()
    assert principals(policy) == ["spiffe://cluster.local/ns/default/sa/billing", "spiffe://billing.myapp.com"]


def test_the_widening_can_be_turned_off() -> None:
    of = world(ONLY_BILLING, mesh=GRANTS.format(on="false"))
    (policy,) = rules(of, PAYMENTS, 9001).values()
    assert principals(policy) == ["spiffe://billing.myapp.com"]


def test_the_widening_is_for_exact_hosts_of_known_services_only() -> None:
    policy = ONLY_BILLING.replace("billing.myapp.com", "*.myapp.com")
    of = world(policy.replace('"*.myapp.com"', '"other.myapp.com"'), mesh=GRANTS.format(on="true"))
    assert principals(*rules(of, PAYMENTS, 9001).values()) == ["spiffe://other.myapp.com"]


def test_labels_of_the_operators_list_decide_which_policies_select_a_workload() -> None:
    """The node said no label, and cannot escape the policy by that."""
    assert [*rules(world(ONLY_BILLING, mesh=GRANTS.format(on="true")), PAYMENTS, 9001)] == [
        "ns[default]-policy[payments-to-billing]-rule[0]"
    ]


def test_a_workload_that_registers_serves_its_own_port() -> None:
    of = world(mesh=GRANTS.format(on="true"))
    found = chains(of, PAYMENTS, 9001)
    assert [chain["filterChainMatch"]["transportProtocol"] for chain in found] == ["tls", "raw_buffer"]
    assert "inbound|9001||" in served(of, CLUSTER, PAYMENTS)


def test_a_node_that_names_a_service_it_may_not_serve_has_no_port_of_its_own() -> None:
    of = world(mesh=GRANTS.format(on="true"))
    assert chains(of, replace(PAYMENTS, service_account="billing"), 9001) == []


def test_a_port_that_nobody_declared_follows_the_workloads_mode() -> None:
    strict = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: default}
spec: {mtls: {mode: STRICT}}
"""
    found = chains(world(strict, mesh=GRANTS.format(on="true")), PAYMENTS, None)
    assert {chain["filterChainMatch"]["transportProtocol"] for chain in found} == {"tls"}
    assert all("transportSocket" in chain for chain in found)


def test_only_peers_of_the_trust_domain_and_its_aliases_get_through_the_handshake() -> None:
    of = world(service("web", address="10.9.9.9"), mesh="{trustDomain: a.example, trustDomainAliases: [b.example]}")
    context = chains(of, NODE, 8080)[0]["transportSocket"]["typedConfig"]
    assert context["requireClientCertificate"] is True
    validation = context["commonTlsContext"]["combinedValidationContext"]["defaultValidationContext"]
    assert validation["matchSubjectAltNames"] == [{"prefix": "spiffe://a.example/"}, {"prefix": "spiffe://b.example/"}]


def test_a_custom_policy_denies_what_it_matches() -> None:
    policy = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: ask, namespace: default}
spec: {action: CUSTOM, provider: {name: somebody}, rules: [{to: [{operation: {paths: [/admin*]}}]}]}
"""
    of = world(service("web", address="10.9.9.9"), policy)
    found = http_filters(chains(of, NODE, 8080)[0])["envoy.filters.http.rbac"]["rules"]
    assert found["action"] == "DENY"
    assert [*found["policies"]] == [
        "istio-ext-authz-somebody-ns[default]-policy[ask]-rule[0]-deny-due-to-bad-CUSTOM-action"
    ]


def test_tokens_whose_keys_are_not_known_are_all_refused() -> None:
    policy = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {name: jwt, namespace: default}
spec: {jwtRules: [{issuer: https://issuer.example.com, jwksUri: "https://issuer.example.com/keys"}]}
"""
    of = world(service("web", address="10.9.9.9"), policy)
    filters = http_filters(chains(of, NODE, 8080)[0])
    provider = filters["envoy.filters.http.jwt_authn"]["providers"]["origins-0"]
    assert '"kid":"nobody"' in provider["localJwks"]["inlineString"]
    assert next(iter(filters)) == "envoy.filters.http.jwt_authn", "tokens are looked at before policies"


def test_a_policy_that_selects_a_gateway_is_enforced_there() -> None:
    gateway = """
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: public, namespace: default}
spec:
  selector: {istio: ingressgateway}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ["*"]}]
"""
    policy = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: closed, namespace: default}
spec: {selector: {matchLabels: {istio: ingressgateway}}}
"""
    listener = as_json(served(world(gateway, policy), LISTENER, GATEWAY)["0.0.0.0_80"])
    (chain,) = listener["filterChains"]
    assert [*http_filters(chain)["envoy.filters.http.rbac"]["rules"]["policies"]] == [
        "ns[default]-policy[closed]-rule[0]"
    ]


def test_a_policy_with_a_target_reference_selects_no_workload() -> None:
    policy = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: waypoint, namespace: default}
spec: {targetRefs: [{kind: Service, name: web}], rules: [{}]}
"""
    of = world(service("web", address="10.9.9.9"), policy)
    assert "envoy.filters.http.rbac" not in http_filters(chains(of, NODE, 8080)[0])


@pytest.mark.parametrize(
    ("principal", "expanded"),
    [
        ("cluster.local/ns/a/sa/b", ["new/ns/a/sa/b", "old/ns/a/sa/b"]),
        ("old/ns/a/sa/b", ["new/ns/a/sa/b", "old/ns/a/sa/b"]),
        ("foreign/ns/a/sa/b", ["foreign/ns/a/sa/b"]),
        ("*", ["*"]),
        ("*/ns/a/sa/b", ["*/ns/a/sa/b"]),
        ("old/*", ["old/*"]),
    ],
)
def test_principals_hold_under_every_name_of_the_trust_domain(principal: str, expanded: list[str]) -> None:
    assert expand_trust_domains(principal, ("new", "old")) == expanded


@pytest.mark.parametrize(("action", "kept"), [("DENY", 1), ("ALLOW", 0)])
def test_a_condition_that_cannot_be_evaluated_never_lets_more_through(action: str, kept: int) -> None:
    """DENY loses the condition and denies more, ALLOW loses the rule and allows less (as istiod)."""
    rule = '{to: [{operation: {paths: ["/a"]}}], when: [{key: experimental.envoy.filters.a, values: ["x"]}]}'
    text = ONLY_BILLING.replace('{from: [{source: {principals: ["billing.myapp.com"]}}]}', rule)
    of = world(text.replace("spec:\n", f"spec:\n  action: {action}\n"), mesh=GRANTS.format(on="true"))
    (config,) = [http_filters(chain)["envoy.filters.http.rbac"] for chain in chains(of, PAYMENTS, 9001)[:1]]
    assert len(config["rules"].get("policies", {})) == kept
