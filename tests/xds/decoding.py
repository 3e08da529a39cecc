"""Resources as proto-JSON dicts, decoded by the product's decoder."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format

from proxyless import protos
from proxyless.core.resources import Cluster, Listener, LoadAssignment, RouteConfiguration
from proxyless.xds import decode

TYPE = "type.googleapis.com/"
HCM = TYPE + "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
TCP_PROXY = TYPE + "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
ROUTER = {"name": "router", "typed_config": {"@type": TYPE + "envoy.extensions.filters.http.router.v3.Router"}}
HTTP_RBAC = TYPE + "envoy.extensions.filters.http.rbac.v3.RBAC"
ANY_POLICY = {"permissions": [{"any": True}], "principals": [{"any": True}]}


def encoded(full_name: str, value: dict[str, Any]) -> bytes:
    message = protos.message(full_name)()
    json_format.ParseDict(value, message, descriptor_pool=protos.pool())
    return bytes(message.SerializeToString())


def routes(value: dict[str, Any]) -> RouteConfiguration:
    return routes_and_report(value)[0]


def routes_and_report(value: dict[str, Any]) -> tuple[RouteConfiguration, tuple[str, ...]]:
    raw = encoded("envoy.config.route.v3.RouteConfiguration", {"name": "rc", **value})
    return decode.decode_route_configuration(raw)


def route_of(route: dict[str, Any], **virtual_host: Any) -> dict[str, Any]:
    """A route configuration with one route."""
    route = {"match": {"prefix": "/"}, "route": {"cluster": "c"}, **route}
    if {"redirect", "direct_response", "non_forwarding_action"} & route.keys():
        del route["route"]
    return {"virtual_hosts": [{"name": "v", "domains": ["*"], "routes": [route], **virtual_host}]}


def listener(value: dict[str, Any]) -> Listener:
    return listener_and_report(value)[0]


def listener_and_report(value: dict[str, Any]) -> tuple[Listener, tuple[str, ...]]:
    base = {"name": "l", "address": {"socket_address": {"address": "127.0.0.1", "port_value": 15006}}}
    return decode.decode_listener(encoded("envoy.config.listener.v3.Listener", {**base, **value}))


def manager(*filters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A network filter: an HTTP connection manager with these HTTP filters and the router."""
    fields.setdefault("rds", {"route_config_name": "rc"})
    return {
        "name": "hcm",
        "typed_config": {"@type": HCM, "stat_prefix": "s", "http_filters": [*filters, ROUTER], **fields},
    }


def chain_of(*filters: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A listener with one filter chain."""
    return {"filter_chains": [{"name": "chain", "filters": list(filters), **fields}]}


def http_rbac(name: str = "rbac", **fields: Any) -> dict[str, Any]:
    return {"name": name, "typed_config": {"@type": HTTP_RBAC, **fields}}


def allow(permission: dict[str, Any] | None = None, principal: dict[str, Any] | None = None) -> dict[str, Any]:
    """A listener whose one RBAC filter has one policy."""
    anything = {"any": True}
    policy = {
        "permissions": [anything if permission is None else permission],
        "principals": [anything if principal is None else principal],
    }
    return chain_of(manager(http_rbac(rules={"policies": {"p": policy}})))


def cluster(value: dict[str, Any]) -> Cluster:
    return cluster_and_report(value)[0]


def cluster_and_report(value: dict[str, Any]) -> tuple[Cluster, tuple[str, ...]]:
    base = {"name": "c", "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}}
    if "type" in value or "cluster_type" in value:
        base = {"name": "c"}
    return decode.decode_cluster(encoded("envoy.config.cluster.v3.Cluster", {**base, **value}))


def assignment(value: dict[str, Any]) -> LoadAssignment:
    raw = encoded("envoy.config.endpoint.v3.ClusterLoadAssignment", {"cluster_name": "c", **value})
    return decode.decode_load_assignment(raw)[0]


def endpoint(host: str = "10.0.0.1", port: int = 80, **fields: Any) -> dict[str, Any]:
    return {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}, **fields}
