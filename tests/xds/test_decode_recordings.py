"""Every resource that a real istiod was recorded to send is accepted, and what is not acted on is a short, known list."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from proxyless import protos
from proxyless.xds import decode

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("PROXYLESS_CONFORMANCE", ROOT.parent / "shared" / "conformance")) / "istiod"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no recordings in {FOLDER}")

DECODERS = {
    "lds": ("envoy.config.listener.v3.Listener", decode.decode_listener),
    "rds": ("envoy.config.route.v3.RouteConfiguration", decode.decode_route_configuration),
    "cds": ("envoy.config.cluster.v3.Cluster", decode.decode_cluster),
    "eds": ("envoy.config.endpoint.v3.ClusterLoadAssignment", decode.decode_load_assignment),
}
HCM = "filter_chains.filters[envoy.filters.network.http_connection_manager]"
NOT_ACTED_ON = {
    "common_lb_config.locality_weighted_lb_config",
    "least_request_lb_config",
    "lb_policy: MAGLEV",
    "lb_policy: RING_HASH",
    "maglev_lb_config",
    "ring_hash_lb_config",
    "round_robin_lb_config",
    "typed_extension_protocol_options[HttpProtocolOptions].upstream_http_protocol_options",
    "upstream_connection_options",
    "filter_chains.filters[envoy.filters.network.ext_authz]",
    f"{HCM}.http_filters[envoy.filters.http.ext_authz]",
    f"{HCM}.http_filters[envoy.filters.http.jwt_authn]",
    "filter_chains.filters[envoy.filters.network.mongo_proxy]",
    "filter_chains.transport_socket.typed_config.common_tls_context.tls_certificate_sds_secret_configs"
    "[kubernetes://shop-cert]: a secret without a source",
    "virtual_hosts.require_tls",
    "virtual_hosts.routes.request_headers_to_add.header[x-b]: substitution commands",
    "virtual_hosts.routes.route.hash_policy",
    "virtual_hosts.routes.route.request_mirror_policies",
    "virtual_hosts.routes.route.retry_policy.retry_priority",
    "virtual_hosts.routes.typed_per_filter_config[envoy.filters.http.cors]: cors.v3.CorsPolicy",
}


def _opened(path: Path) -> Any:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return json.load(file)


def _known(value: Any) -> Any:
    """Types without a public descriptor become a TypedStruct that names them: the decoder must know them by name."""
    if isinstance(value, list):
        return [_known(each) for each in value]
    if not isinstance(value, dict):
        return value
    url = value.get("@type", "")
    if url:
        try:
            protos.message(protos.type_name(url))
        except LookupError:
            return {"@type": protos.TYPE_PREFIX + "xds.type.v3.TypedStruct", "typeUrl": url}
    return {key: _known(each) for key, each in value.items()}


def _resources(scenario: Path) -> Iterator[tuple[str, str, bytes]]:
    for path in sorted(scenario.glob("expected*/*/*.json*")):
        kind = path.name.partition(".")[0]
        if kind not in DECODERS:
            continue
        for name, resource in _opened(path)["resources"].items():
            fields = {key: _known(value) for key, value in resource.items() if key != "@type"}
            message = protos.message(DECODERS[kind][0])()
            json_format.ParseDict(fields, message, descriptor_pool=protos.pool())
            yield kind, name, message.SerializeToString()


SCENARIOS = sorted(path for path in FOLDER.glob("*") if path.is_dir() and (path / "expected").is_dir())


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda path: path.name)
def test_every_recorded_resource_is_accepted(scenario: Path) -> None:
    reported: set[str] = set()
    for kind, name, raw in _resources(scenario):
        value, names = DECODERS[kind][1](raw)
        assert value.name == name
        reported.update(names)
    assert reported <= NOT_ACTED_ON
