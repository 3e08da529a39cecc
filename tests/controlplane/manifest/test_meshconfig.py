"""Mesh settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxyless.controlplane.manifest.meshconfig import (
    MeshConfig,
    MeshResult,
    WorkloadGrant,
    load_mesh_file,
    load_mesh_text,
)

FULL = """
trustDomain: mesh.example
trustDomainAliases: [old.example]
rootNamespace: infra
enableAutoMtls: false
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
connectTimeout: 2s
defaultHttpRetryPolicy: {attempts: 3, retryOn: 5xx}
defaultTrafficPolicy: {outlierDetection: {consecutive5xxErrors: 3}}
pathNormalization: {normalization: MERGE_SLASHES}
meshMTLS: {minProtocolVersion: TLSV1_3}
extensionProviders:
- name: authz
  envoyExtAuthzHttp: {service: authz.example, port: 8000}
proxyless:
  defaultNamespace: shop
  workloads:
  - {serviceAccount: billing, services: [billing], labels: {app: billing}}
  - {namespace: bank, serviceAccount: pay}
  addressMap: {"203.0.113.1:443": "127.0.0.1:18443", "[2001:db8::1]:80": "[::1]:8080"}
  gatewayPorts: {80: 8080}
  principalsNamedByHost: false
"""


def config_of(text: str) -> MeshConfig:
    result = load_mesh_text(text, "mesh.yaml")
    assert result.config is not None, "\n".join(map(str, result.messages))
    return result.config


def error_paths(result: MeshResult) -> list[str]:
    return [message.path for message in result.messages if message.severity == "error"]


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n"])
def test_no_settings_are_istios_defaults(text: str) -> None:
    config = config_of(text)
    assert config == MeshConfig()
    assert (config.trust_domain, config.root_namespace, config.connect_timeout) == ("cluster.local", "istio-system", 10)
    assert config.enable_auto_mtls
    assert not config.registry_only
    assert config.normalization == "BASE"
    assert config.proxyless.principals_named_by_host
    assert config.proxyless.default_namespace == "default"


def test_every_field_that_matters_is_typed() -> None:
    config = config_of(FULL)
    assert config.registry_only
    assert (config.normalization, config.min_protocol_version) == ("MERGE_SLASHES", "TLSV1_3")
    assert config.default_http_retry_policy is not None
    assert config.default_http_retry_policy.retry_on == "5xx"
    assert config.extension_providers[0].envoy_ext_authz_http is not None
    assert config.proxyless.gateway_ports == {80: 8080}
    assert config.proxyless.address_map["203.0.113.1:443"] == "127.0.0.1:18443"


def test_a_grant_without_a_namespace_gets_the_default_one() -> None:
    assert config_of(FULL).proxyless.workloads == (
        WorkloadGrant(namespace="shop", service_account="billing", services=("billing",), labels={"app": "billing"}),
        WorkloadGrant(namespace="bank", service_account="pay"),
    )


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("trustDomian: a", "trustDomian"),
        ("trustDomain: spiffe://a", "trustDomain"),
        ("rootNamespace: A/B", "rootNamespace"),
        ("enableAutoMtls: 'yes'", "enableAutoMtls"),
        ("connectTimeout: 10", "connectTimeout"),
        ("connectTimeout: 2h", "connectTimeout"),
        ("outboundTrafficPolicy: {mode: REGISTRY}", "outboundTrafficPolicy.mode"),
        ("defaultHttpRetryPolicy: {attempts: 1, retryOn: 5XX}", "defaultHttpRetryPolicy.retryOn"),
        ("extensionProviders: [{name: a, envoyExtAuthzHttp: {service: b}}]", "extensionProviders[0].envoyExtAuthzHttp.port"),
        ("proxyless: {workload: []}", "proxyless.workload"),
        ("proxyless: {workloads: [{services: [a]}]}", "proxyless.workloads[0].serviceAccount"),
        ("proxyless: {workloads: [{serviceAccount: a, services: ['*']}]}", "proxyless.workloads[0].services[0]"),
        ("proxyless: {workloads: [{serviceAccount: a}, {serviceAccount: a}]}", "proxyless.workloads[1]"),
        ("proxyless: {addressMap: {a.b: '127.0.0.1:80'}}", 'proxyless.addressMap["a.b"]'),
        ("proxyless: {addressMap: {'a.b:1': '127.0.0.1:99999'}}", 'proxyless.addressMap["a.b:1"]'),
        ("proxyless: {addressMap: {'a.b:1': '127.0.0.1:\u00b2'}}", 'proxyless.addressMap["a.b:1"]'),
        ("proxyless: {addressMap: {'a.b:1': '127.0.0.1:0000801234'}}", 'proxyless.addressMap["a.b:1"]'),
        ("proxyless: {gatewayPorts: {80: 0}}", 'proxyless.gatewayPorts["80"]'),
        ("proxyless: {gatewayPorts: {http: 80}}", "proxyless.gatewayPorts.http"),
        ("trustDomain: a\ntrustDomain: b", "trustDomain"),
        ("apiVersion: v1\nkind: ConfigMap\ndata: {mesh: ''}", ""),
        ("- a", ""),
        ("a: [", ""),
        ("trustDomain: a\n---\ntrustDomain: b", ""),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused_at_their_field(text: str, path: str) -> None:
    result = load_mesh_text(text, "mesh.yaml")
    assert error_paths(result) == [path]
    assert result.config is None


def test_settings_for_envoy_are_accepted_and_named() -> None:
    result = load_mesh_text("ingressService: x\ndefaultConfig: {a: b}\naccessLogFile: /dev/stdout\n", "mesh.yaml")
    assert result.config is not None
    assert [(m.code, m.path, m.place.line) for m in result.messages] == [
        ("unsupported", "ingressService", 1),
        ("unsupported", "defaultConfig", 2),
        ("unsupported", "accessLogFile", 3),
    ]


def test_a_missing_file_is_the_defaults_and_an_unreadable_one_an_error(tmp_path: Path) -> None:
    assert load_mesh_file(tmp_path / "mesh.yaml").config == MeshConfig()
    assert load_mesh_file(tmp_path).config is None
