"""The same YAML, translated by us and by a real istiod (recorded): what it means must not differ.

Compared are names, clusters, endpoints, routes in their order with matches and actions, filter chains by what selects them,
and policies. Left out is what may differ legitimately (the README of the recordings lists it): statistics, tracing, metadata
exchange, access logs, listener filters, where secrets come from.
"""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from proxyless import protos
from proxyless.controlplane.configuration import load_configuration
from proxyless.controlplane.manifest.meshconfig import load_mesh_file
from proxyless.controlplane.translate import World, parse_node, translate
from proxyless.controlplane.views import build_world

ROOT = Path(os.environ.get("PROXYLESS_CONFORMANCE", "../shared/conformance")) / "istiod"
TYPES = {"lds": protos.LISTENER, "rds": protos.ROUTE, "cds": protos.CLUSTER, "eds": protos.ENDPOINT}
SCENARIOS = [
    "actions",
    "authz-allow-nothing",
    "authz-sources",
    "authz-templates-jwt",
    "canary-split",
    "delegate-scope",
    "gateway-hosts",
    "lb-hash",
    "lb-simple",
    "match-kinds",
    "mesh-config",
    "outlier",
    "peer-disable",
    "peer-ports",
    "peer-strict",
    "pool",
    "registry-only",
    "retries-timeouts",
    "seed-bound",
    "service-entries",
    "subset-overrides",
    "tcp-tls-routes",
    "tls-modes",
    "workload-entries",
]
IGNORED_KEYS = {
    "accessLog",
    "altStatName",
    "cleanupInterval",
    "decorator",
    "dnsJitter",
    "initialFetchTimeout",
    "listenerFilters",
    "maxConnectionsToAcceptPerSocketEvent",
    "requestIdExtension",
    "runtimeKey",
    "sdsConfig",
    "statPrefix",
    "tlsMaximumProtocolVersion",
    "tracing",
    "transportSocketConnectTimeout",
    "typedDnsResolverConfig",
    "upstreamBindConfig",
}
IGNORED_FILTERS = {
    "envoy.filters.http.grpc_stats",
    "envoy.filters.network.mongo_proxy",  # statistics of MongoDB
    "istio.alpn",
    "istio.metadata_exchange",
    "istio.stats",
}
EMPTY_IS_ABSENT = {"commonHttpProtocolOptions", "commonLbConfig", "filterChainMatch", "filters", "httpProtocolOptions", "tlsParams"}  # fmt: skip

pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason=f"no recordings in {ROOT}")


def recorded(scenario: str, node: str, kind: str) -> dict[str, Any]:
    path = ROOT / scenario / "expected" / node / f"{kind}.json"
    content = path.read_bytes() if path.exists() else gzip.decompress(path.with_suffix(".json.gz").read_bytes())
    resources: dict[str, Any] = json.loads(content)["resources"]
    return resources


def world_of(scenario: str) -> World:
    folder = ROOT / scenario
    configuration = load_configuration(folder / "config").require()
    settings = folder / "mesh.yaml"
    if settings.exists():
        mesh = load_mesh_file(settings).config
        assert mesh is not None
        configuration = replace(configuration, mesh=mesh)
    narrow = replace(configuration.mesh.proxyless, principals_named_by_host=False)
    return build_world(replace(configuration, mesh=replace(configuration.mesh, proxyless=narrow)), (), "1")


def nodes() -> Iterator[Any]:
    for scenario in SCENARIOS:
        path = ROOT / scenario / "node.json"
        for entry in json.loads(path.read_text()) if path.exists() else ():
            if entry["kind"] in ("sidecar", "router"):
                yield pytest.param(scenario, entry, id=f"{scenario}-{entry['name']}")


def meaning(value: Any, key: str = "") -> Any:
    """What is compared: without what may differ, and without order where it has none."""
    if isinstance(value, dict):
        if "shadowRulesStatPrefix" in value and "shadowRules" not in value:
            value = {name: item for name, item in value.items() if name != "shadowRulesStatPrefix"}
        if "alpn_override" in value:  # for Istio's ALPN filter
            value = {name: item for name, item in value.items() if name != "alpn_override"}
        result = {name: meaning(item, name) for name, item in value.items() if name not in IGNORED_KEYS}
        return {name: item for name, item in result.items() if item not in ({}, []) or name not in EMPTY_IS_ABSENT}
    if isinstance(value, list):
        items = [
            meaning(item) for item in value if not (isinstance(item, dict) and item.get("name") in IGNORED_FILTERS)
        ]
        if key == "domains":
            return sorted(items)
        if key == "filterChains":
            return sorted((without_names(item) for item in items), key=lambda item: json.dumps(item, sort_keys=True))
        return items
    return value


def without_names(chain: dict[str, Any]) -> dict[str, Any]:
    """Chains are chosen by their match; their names and origin are for people."""
    return {name: item for name, item in chain.items() if name not in ("name", "metadata")}


def without_unused_labels(clusters: dict[str, Any], assignments: dict[str, Any]) -> None:
    """The label of an endpoint that says it takes mutual TLS, where no cluster looks at it."""
    for name, assignment in assignments.items():
        if "transportSocketMatches" not in clusters.get(name, {}):
            for locality in assignment.get("endpoints", []):
                for endpoint in locality["lbEndpoints"]:
                    endpoint["metadata"]["filterMetadata"].pop("envoy.transport_socket_match", None)


@pytest.mark.parametrize(("scenario", "entry"), list(nodes()) if ROOT.is_dir() else [])
def test_our_resources_mean_what_istiods_mean(scenario: str, entry: dict[str, Any]) -> None:
    message = protos.message("envoy.config.core.v3.Node")()
    json_format.ParseDict(entry["node"], message, ignore_unknown_fields=True)
    ours = translate(world_of(scenario), parse_node(message))
    got = {
        kind: {
            name: json_format.MessageToDict(
                protos.message(protos.type_name(url)).FromString(raw), descriptor_pool=protos.pool()
            )
            for name, raw in ours[url].items()
        }
        for kind, url in TYPES.items()
    }
    expected = {kind: recorded(scenario, entry["name"], kind) for kind in TYPES}
    without_unused_labels(expected["cds"], expected["eds"])
    without_unused_labels(got["cds"], got["eds"])
    for kind in TYPES:
        assert sorted(got[kind]) == sorted(expected[kind]), kind
        for name, resource in expected[kind].items():
            assert meaning(got[kind][name]) == meaning(resource), f"{kind} {name}"
