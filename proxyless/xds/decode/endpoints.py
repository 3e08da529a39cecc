"""config.endpoint.v3.ClusterLoadAssignment -> `LoadAssignment`."""

from __future__ import annotations

from typing import Any

from proxyless.core.resources import Health, LbEndpoint, LoadAssignment, LocalityEndpoints
from proxyless.xds.decode.errors import FieldError, at, each
from proxyless.xds.decode.values import address, metadata_text, present_or

__all__ = ["load_assignment"]

_UINT32_MAX = 2**32 - 1
_MAX_PRIORITY = 128  # as Envoy's validation rule
_HEALTH = (
    Health.UNKNOWN,
    Health.HEALTHY,
    Health.UNHEALTHY,
    Health.DRAINING,
    Health.TIMEOUT,
    Health.DEGRADED,
)


def load_assignment(message: Any) -> LoadAssignment:
    if not message.cluster_name:
        raise FieldError("cluster_name", "is empty")
    localities = each("endpoints", _locality, message.endpoints)
    for priority in {locality.priority for locality in localities}:
        total = sum(locality.weight for locality in localities if locality.priority == priority)
        if total > _UINT32_MAX:
            raise FieldError("endpoints", f"locality weights of priority {priority} add up to more than uint32")
    return LoadAssignment(name=message.cluster_name, localities=localities)


def _locality(message: Any) -> LocalityEndpoints:
    if message.priority > _MAX_PRIORITY:
        raise FieldError("priority", f"{message.priority} is more than {_MAX_PRIORITY}")
    if message.WhichOneof("lb_config") is not None:
        raise FieldError("lb_config", "endpoints by LEDS are not supported")
    endpoints = each("lb_endpoints", _endpoint, message.lb_endpoints)
    if sum(endpoint.weight for endpoint in endpoints) > _UINT32_MAX:
        raise FieldError("lb_endpoints", "weights add up to more than uint32")
    return LocalityEndpoints(
        region=message.locality.region,
        zone=message.locality.zone,
        sub_zone=message.locality.sub_zone,
        priority=message.priority,
        weight=present_or(message, "load_balancing_weight", 1),
        endpoints=endpoints,
    )


def _endpoint(message: Any) -> LbEndpoint:
    if message.WhichOneof("host_identifier") != "endpoint":
        raise FieldError("endpoint", "is required")
    weight = present_or(message, "load_balancing_weight", 1)
    if weight < 1:
        raise FieldError("load_balancing_weight", "must be at least 1")
    if message.health_status >= len(_HEALTH):
        raise FieldError("health_status", f"unknown status {message.health_status}")
    return LbEndpoint(
        address=at("endpoint.address", address, message.endpoint.address),
        weight=weight,
        health=_HEALTH[message.health_status],
        hostname=message.endpoint.hostname,
        socket_match=metadata_text(message.metadata, "envoy.transport_socket_match"),
        workload=metadata_text(message.metadata, "istio").get("workload", ""),
    )
