"""config.cluster.v3.Cluster -> `Cluster`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from proxyless.core.resources import (
    CircuitBreakers,
    Cluster,
    ClusterType,
    LbPolicy,
    LoadAssignment,
    OutlierDetection,
    TransportSocketMatch,
)
from proxyless.xds.decode.endpoints import load_assignment
from proxyless.xds.decode.errors import FieldError, at, each
from proxyless.xds.decode.tls import upstream_tls
from proxyless.xds.decode.values import duration, is_ip_literal, present_or, short_type, struct_text, unwrap

__all__ = ["cluster"]

_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_POLICIES = "envoy.extensions.load_balancing_policies."
_TYPES = (
    ClusterType.STATIC,
    ClusterType.STRICT_DNS,
    ClusterType.LOGICAL_DNS,
    ClusterType.EDS,
    ClusterType.ORIGINAL_DST,
)
_LB_POLICIES = {
    0: LbPolicy.ROUND_ROBIN,
    1: LbPolicy.LEAST_REQUEST,
    2: LbPolicy.RING_HASH,
    3: LbPolicy.RANDOM,
    5: LbPolicy.MAGLEV,
    6: LbPolicy.CLUSTER_PROVIDED,
}
_LB_EXTENSIONS = {
    _POLICIES + "round_robin.v3.RoundRobin": LbPolicy.ROUND_ROBIN,
    _POLICIES + "least_request.v3.LeastRequest": LbPolicy.LEAST_REQUEST,
    _POLICIES + "random.v3.Random": LbPolicy.RANDOM,
    _POLICIES + "ring_hash.v3.RingHash": LbPolicy.RING_HASH,
    _POLICIES + "maglev.v3.Maglev": LbPolicy.MAGLEV,
    _POLICIES + "cluster_provided.v3.ClusterProvided": LbPolicy.CLUSTER_PROVIDED,
}
_WRR_LOCALITY = _POLICIES + "wrr_locality.v3.WrrLocality"
_MAX_POLICY_DEPTH = 16
_DEFAULT_PRIORITY = 0


def cluster(message: Any) -> Cluster:
    if not message.name:
        raise FieldError("name", "is empty")
    if message.HasField("lb_subset_config"):
        raise FieldError("lb_subset_config", "subset load balancing is not supported")
    kind = _type(message)
    options = _http_options(message)
    istio = _Istio.of(message.metadata)
    tls = (
        at("transport_socket", upstream_tls, message.transport_socket) if message.HasField("transport_socket") else None
    )
    return Cluster(
        name=message.name,
        type=kind,
        lb_policy=_lb_policy(message),
        eds_name=_eds_name(message) if kind is ClusterType.EDS else "",
        assignment=_assignment(message, kind),
        connect_timeout=_connect_timeout(message),
        idle_timeout=options.idle_timeout,
        max_requests_per_connection=options.max_requests,
        max_connection_duration=options.max_duration,
        breakers=at("circuit_breakers", _breakers, message.circuit_breakers),
        outlier=at("outlier_detection", _outlier, message.outlier_detection)
        if message.HasField("outlier_detection")
        else None,
        tls=tls,
        tls_matches=each("transport_socket_matches", _socket_match, message.transport_socket_matches),
        http2=options.http2,
        panic_threshold=_panic_threshold(message),
        service=istio.service,
        service_namespace=istio.namespace,
        subset=istio.subset,
        external=istio.external,
    )


def _type(message: Any) -> ClusterType:
    if message.WhichOneof("cluster_discovery_type") == "cluster_type":
        name, _ = unwrap(message.cluster_type.typed_config)
        raise FieldError("cluster_type", f"{short_type(name) or message.cluster_type.name!r} is not supported")
    if message.type >= len(_TYPES):
        raise FieldError("type", f"unknown type {message.type}")
    return _TYPES[message.type]


def _eds_name(message: Any) -> str:
    source = message.eds_cluster_config.eds_config
    if source.WhichOneof("config_source_specifier") not in ("ads", "self"):
        raise FieldError("eds_cluster_config.eds_config", "must be ads or self")
    return message.eds_cluster_config.service_name or str(message.name)


def _assignment(message: Any, kind: ClusterType) -> LoadAssignment | None:
    if kind in (ClusterType.EDS, ClusterType.ORIGINAL_DST):
        if message.HasField("load_assignment"):
            raise FieldError("load_assignment", f"excludes type {kind}")
        return None
    if not message.HasField("load_assignment"):  # Istio's BlackHoleCluster
        return LoadAssignment(name=message.name)
    found = at("load_assignment", load_assignment, message.load_assignment)
    endpoints = [endpoint for locality in found.localities for endpoint in locality.endpoints]
    if kind is ClusterType.LOGICAL_DNS and len(endpoints) != 1:
        raise FieldError("load_assignment", "LOGICAL_DNS needs exactly one endpoint")
    if kind is ClusterType.STATIC:
        for endpoint in endpoints:
            if not (endpoint.address.host.startswith("/") or is_ip_literal(endpoint.address.host)):
                raise FieldError("load_assignment", f"{endpoint.address.host!r} is no IP address, but type is STATIC")
    return found


def _connect_timeout(message: Any) -> float:
    if not message.HasField("connect_timeout"):
        return 5.0
    seconds = at("connect_timeout", duration, message.connect_timeout)
    if seconds <= 0:
        raise FieldError("connect_timeout", "must be greater than 0")
    return seconds


def _panic_threshold(message: Any) -> float:
    if not message.common_lb_config.HasField("healthy_panic_threshold"):
        return 50.0
    return at("common_lb_config.healthy_panic_threshold", _percent, message.common_lb_config.healthy_panic_threshold)


def _percent(value: Any) -> float:
    number = float(value.value)
    if not 0 <= number <= 100:
        raise ValueError(f"{number:g} is not within [0, 100]")
    return number


def _socket_match(message: Any) -> TransportSocketMatch:
    return TransportSocketMatch(
        name=message.name,
        match=struct_text(message.match),
        tls=at("transport_socket", upstream_tls, message.transport_socket),
    )


# --------------------------------------------------------------------------------------------------------- load balancing


def _lb_policy(message: Any) -> LbPolicy:
    if message.load_balancing_policy.policies:
        return at("load_balancing_policy", lambda value: _first_policy(value, 0), message.load_balancing_policy)
    if message.lb_policy not in _LB_POLICIES:
        raise FieldError("lb_policy", f"policy {message.lb_policy} is not supported")
    return _LB_POLICIES[message.lb_policy]


def _first_policy(message: Any, depth: int) -> LbPolicy:
    """The first that we know, as gRFC A52 says."""
    if depth > _MAX_POLICY_DEPTH:
        raise ValueError("load balancing policies are nested too deeply")
    for policy in message.policies:
        name, config = unwrap(policy.typed_extension_config.typed_config)
        if name in _LB_EXTENSIONS:
            return _LB_EXTENSIONS[name]
        if name == _WRR_LOCALITY and config is not None:
            return _first_policy(config.endpoint_picking_policy, depth + 1)
    raise FieldError("policies", "none of them is supported")


# ------------------------------------------------------------------------------------------------------- limits, outliers


def _breakers(message: Any) -> CircuitBreakers:
    """Of the DEFAULT priority; the first such entry counts."""
    for threshold in message.thresholds:
        if threshold.priority != _DEFAULT_PRIORITY:
            continue
        percent, concurrency = None, 3
        if threshold.HasField("retry_budget"):
            budget = threshold.retry_budget
            percent = at("thresholds.retry_budget.budget_percent", _percent, budget.budget_percent)
            percent = percent if budget.HasField("budget_percent") else 20.0
            concurrency = present_or(budget, "min_retry_concurrency", 3)
        return CircuitBreakers(
            max_connections=present_or(threshold, "max_connections", 1024),
            max_pending_requests=present_or(threshold, "max_pending_requests", 1024),
            max_requests=present_or(threshold, "max_requests", 1024),
            max_retries=present_or(threshold, "max_retries", 3),
            retry_budget_percent=percent,
            min_retry_concurrency=concurrency,
        )
    return CircuitBreakers()


def _outlier(message: Any) -> OutlierDetection:
    base = _positive(message, "base_ejection_time", 30.0)
    longest = _positive(message, "max_ejection_time", max(300.0, base))
    if longest < base:
        raise FieldError("max_ejection_time", "must not be less than base_ejection_time")
    return OutlierDetection(
        interval=_positive(message, "interval", 10.0),
        base_ejection_time=base,
        max_ejection_time=longest,
        max_ejection_percent=_share(message, "max_ejection_percent", 10),
        consecutive_5xx=present_or(message, "consecutive_5xx", 5),
        enforcing_consecutive_5xx=_share(message, "enforcing_consecutive_5xx", 100),
        consecutive_gateway_failure=present_or(message, "consecutive_gateway_failure", 5),
        enforcing_consecutive_gateway_failure=_share(message, "enforcing_consecutive_gateway_failure", 0),
        split_external_local_origin_errors=message.split_external_local_origin_errors,
        consecutive_local_origin_failure=present_or(message, "consecutive_local_origin_failure", 5),
        enforcing_consecutive_local_origin_failure=_share(message, "enforcing_consecutive_local_origin_failure", 100),
        enforcing_success_rate=_share(message, "enforcing_success_rate", 100),
        always_eject_one_host=bool(present_or(message, "always_eject_one_host", False)),
    )


def _positive(message: Any, field: str, default: float) -> float:
    if not message.HasField(field):
        return default
    seconds = at(field, duration, getattr(message, field))
    if seconds <= 0:
        raise FieldError(field, "must be greater than 0")
    return seconds


def _share(message: Any, field: str, default: int) -> int:
    value = int(present_or(message, field, default))
    if value > 100:
        raise FieldError(field, f"{value} is more than 100")
    return value


# ------------------------------------------------------------------------------------------------------------------- HTTP


class _HttpOptions(NamedTuple):
    http2: bool = False
    idle_timeout: float = 3600.0
    max_requests: int = 0
    max_duration: float | None = None


def _http_options(message: Any) -> _HttpOptions:
    """`typed_extension_protocol_options`, else the deprecated fields of the cluster."""
    if _HTTP_OPTIONS not in message.typed_extension_protocol_options:
        return _common_http(message.common_http_protocol_options, message.HasField("http2_protocol_options"))
    path = f"typed_extension_protocol_options[{_HTTP_OPTIONS}]"
    name, config = unwrap(message.typed_extension_protocol_options[_HTTP_OPTIONS])
    if name != _HTTP_OPTIONS or config is None:
        raise FieldError(path, f"unexpected type {name!r}")
    http2 = False
    match config.WhichOneof("upstream_protocol_options"):
        case "explicit_http_config":
            explicit = config.explicit_http_config.WhichOneof("protocol_config")
            if explicit == "http3_protocol_options":
                raise FieldError(f"{path}.explicit_http_config", "HTTP/3 is not supported")
            http2 = explicit == "http2_protocol_options"
        case None:
            raise FieldError(path, "upstream_protocol_options is required")
    return at(path, lambda value: _common_http(value, http2), config.common_http_protocol_options)


def _common_http(message: Any, http2: bool) -> _HttpOptions:
    return _HttpOptions(
        http2=http2,
        idle_timeout=at("idle_timeout", duration, message.idle_timeout) if message.HasField("idle_timeout") else 3600.0,
        max_requests=present_or(message, "max_requests_per_connection", 0),
        max_duration=_positive(message, "max_connection_duration", 0.0) or None,
    )


class _Istio(NamedTuple):
    """`filter_metadata.istio` of a cluster: who it leads to, for metrics."""

    service: str = ""
    namespace: str = ""
    subset: str = ""
    external: bool = False

    @classmethod
    def of(cls, metadata: Any) -> _Istio:
        if "istio" not in metadata.filter_metadata:
            return cls()
        fields = metadata.filter_metadata["istio"].fields
        services = list(_structs(fields["services"])) if "services" in fields else []
        first = struct_text(services[0]) if services else {}
        return cls(
            service=first.get("host", ""),
            namespace=first.get("namespace", ""),
            subset=fields["subset"].string_value if "subset" in fields else "",
            external=fields["external"].bool_value if "external" in fields else False,
        )


def _structs(value: Any) -> Iterator[Any]:
    if value.WhichOneof("kind") == "list_value":
        for item in value.list_value.values:
            if item.WhichOneof("kind") == "struct_value":
                yield item.struct_value
