"""Which set fields of a resource nobody acts on, by path: the other half of decoding. Silence would be a defect.

`HANDLED` names, for each message, the fields that the decoders read. `IRRELEVANT` names fields that need no action in a library,
each with the reason. Every other set field is reported. Paths have no indices: a name is reported once for each resource.
A message that is in neither table is a leaf (a duration, an address): who handles the field handles all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from proxyless import protos
from proxyless.xds.decode.filters import HARMLESS_FILTERS
from proxyless.xds.decode.headers import has_command
from proxyless.xds.decode.tls import is_known_secret
from proxyless.xds.decode.values import short_type, unwrap

__all__ = ["unsupported_fields"]

_LISTENER = "envoy.config.listener.v3."
_ROUTE = "envoy.config.route.v3."
_CLUSTER = "envoy.config.cluster.v3."
_ENDPOINT = "envoy.config.endpoint.v3."
_CORE = "envoy.config.core.v3."
_TLS = "envoy.extensions.transport_sockets.tls.v3."
_HCM = "envoy.extensions.filters.network.http_connection_manager.v3."
_TCP = "envoy.extensions.filters.network.tcp_proxy.v3."
_HTTP = "envoy.extensions.filters.http."
_NETWORK = "envoy.extensions.filters.network."
_HEADERS = "request_headers_to_add request_headers_to_remove response_headers_to_add response_headers_to_remove "


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


HANDLED: Mapping[str, frozenset[str]] = {
    _LISTENER + "Listener": _names(
        "name address filter_chains default_filter_chain use_original_dst traffic_direction api_listener"
    ),
    _LISTENER + "ApiListener": _names("api_listener"),
    _LISTENER + "FilterChain": _names("filter_chain_match filters transport_socket name"),
    _LISTENER + "FilterChainMatch": _names(
        "destination_port prefix_ranges server_names transport_protocol application_protocols source_type"
        " source_prefix_ranges source_ports"
    ),
    _LISTENER + "Filter": _names("name typed_config"),
    _HCM + "HttpConnectionManager": _names(
        "rds route_config http_filters use_remote_address xff_num_trusted_hops normalize_path merge_slashes"
        " path_with_escaped_slashes_action"
    ),
    _HCM + "HttpFilter": _names("name typed_config is_optional disabled"),
    _HCM + "Rds": _names("route_config_name"),
    _TCP + "TcpProxy": _names("cluster weighted_clusters"),
    _TCP + "TcpProxy.WeightedCluster": _names("clusters"),
    _TCP + "TcpProxy.WeightedCluster.ClusterWeight": _names("name weight"),
    _HTTP + "rbac.v3.RBAC": _names("rules shadow_rules shadow_rules_stat_prefix"),
    _HTTP + "rbac.v3.RBACPerRoute": _names("rbac"),
    _NETWORK + "rbac.v3.RBAC": _names("rules shadow_rules shadow_rules_stat_prefix"),
    _HTTP + "fault.v3.HTTPFault": _names("delay abort"),
    "envoy.extensions.filters.common.fault.v3.FaultDelay": _names("fixed_delay percentage"),
    _HTTP + "fault.v3.FaultAbort": _names("http_status grpc_status percentage"),
    _ROUTE + "FilterConfig": _names("config is_optional disabled"),
    _ROUTE + "RouteConfiguration": _names(
        _HEADERS + "name virtual_hosts most_specific_header_mutations_wins max_direct_response_body_size_bytes"
        " ignore_port_in_host_matching typed_per_filter_config"
    ),
    _ROUTE + "VirtualHost": _names(
        _HEADERS + "name domains routes include_request_attempt_count retry_policy typed_per_filter_config"
    ),
    _ROUTE + "Route": _names(
        _HEADERS + "name match route redirect direct_response non_forwarding_action metadata typed_per_filter_config"
    ),
    _ROUTE + "RouteMatch": _names(
        "prefix path safe_regex path_separated_prefix path_match_policy case_sensitive runtime_fraction headers"
        " query_parameters grpc"
    ),
    _ROUTE + "RouteAction": _names(
        "cluster cluster_header weighted_clusters prefix_rewrite regex_rewrite host_rewrite_literal auto_host_rewrite"
        " append_x_forwarded_host timeout retry_policy max_stream_duration"
    ),
    _ROUTE + "RouteAction.MaxStreamDuration": _names("max_stream_duration"),
    _ROUTE + "WeightedCluster": _names("clusters"),
    _ROUTE + "WeightedCluster.ClusterWeight": _names(_HEADERS + "name weight"),
    _ROUTE + "RetryPolicy": _names(
        "retry_on num_retries per_try_timeout retry_host_predicate host_selection_retry_max_attempts"
        " retriable_status_codes retry_back_off"
    ),
    _CORE + "HeaderValueOption": _names("header append append_action keep_empty_value"),
    _CORE + "HeaderValue": _names("key value"),
    _CLUSTER + "Cluster": _names(
        "transport_socket_matches name type eds_cluster_config connect_timeout lb_policy load_assignment circuit_breakers"
        " common_http_protocol_options http2_protocol_options typed_extension_protocol_options outlier_detection"
        " common_lb_config transport_socket metadata load_balancing_policy"
    ),
    _CLUSTER + "Cluster.CommonLbConfig": _names("healthy_panic_threshold"),
    _CLUSTER + "Cluster.TransportSocketMatch": _names("name match transport_socket"),
    _CLUSTER + "CircuitBreakers": _names("thresholds"),
    _CLUSTER + "CircuitBreakers.Thresholds": _names(
        "priority max_connections max_pending_requests max_requests max_retries retry_budget"
    ),
    _CLUSTER + "OutlierDetection": _names(
        "consecutive_5xx interval base_ejection_time max_ejection_percent enforcing_consecutive_5xx"
        " consecutive_gateway_failure enforcing_consecutive_gateway_failure split_external_local_origin_errors"
        " consecutive_local_origin_failure enforcing_consecutive_local_origin_failure max_ejection_time"
        " always_eject_one_host"
    ),
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": _names(
        "common_http_protocol_options explicit_http_config use_downstream_protocol_config auto_config"
    ),
    _CORE + "HttpProtocolOptions": _names("idle_timeout max_requests_per_connection max_connection_duration"),
    _CORE + "TransportSocket": _names("name typed_config"),
    _TLS + "UpstreamTlsContext": _names("common_tls_context sni"),
    _TLS + "DownstreamTlsContext": _names("common_tls_context require_client_certificate"),
    _TLS + "CommonTlsContext": _names(
        "tls_certificates tls_certificate_sds_secret_configs tls_certificate_provider_instance"
        " tls_certificate_certificate_provider_instance validation_context validation_context_sds_secret_config"
        " combined_validation_context validation_context_certificate_provider_instance alpn_protocols tls_params"
    ),
    _TLS + "CommonTlsContext.CombinedCertificateValidationContext": _names(
        "default_validation_context validation_context_sds_secret_config"
        " validation_context_certificate_provider_instance"
    ),
    _TLS + "CertificateValidationContext": _names(
        "trusted_ca ca_certificate_provider_instance system_root_certs match_typed_subject_alt_names"
        " match_subject_alt_names"
    ),
    _TLS + "TlsParameters": _names("tls_minimum_protocol_version"),
    _TLS + "SdsSecretConfig": _names("name"),
    _ENDPOINT + "ClusterLoadAssignment": _names("cluster_name endpoints"),
    _ENDPOINT + "LocalityLbEndpoints": _names("locality lb_endpoints load_balancing_weight priority"),
    _ENDPOINT + "LbEndpoint": _names("endpoint health_status metadata load_balancing_weight"),
    _ENDPOINT + "Endpoint": _names("address hostname"),
}

_STATISTICS = "names and settings of Envoy's own statistics"
_LOGS = "access log, tracing and request ids belong to the application's telemetry"
_SOCKETS = "sockets are the server's or the kernel's, there is no listener of our own"
_DNS = "names are resolved by the operating system"
_DISCOVERY = "there is one xDS stream; certificates come from the Workload API"
_HEADER_POLICY = "the verified peer is in the request scope; identity never comes from a header"
_GRPC_DEADLINE = "the caller's own gRPC deadline bounds the call"
_OLD_LIMIT = "bounds memory inside of Envoy"

IRRELEVANT: Mapping[str, Mapping[str, str]] = {
    _LISTENER + "Listener": {
        "stat_prefix": _STATISTICS,
        "metadata": _STATISTICS,
        "access_log": _LOGS,
        "additional_addresses": _SOCKETS,
        "bind_to_port": _SOCKETS,
        "connection_balance_config": _SOCKETS,
        "continue_on_listener_filters_timeout": _SOCKETS,
        "drain_type": _SOCKETS,
        "enable_reuse_port": _SOCKETS,
        "freebind": _SOCKETS,
        "ignore_global_conn_limit": _SOCKETS,
        "listener_filters": "TLS is told from plain text by the first byte of a connection",
        "listener_filters_timeout": _SOCKETS,
        "max_connections_to_accept_per_socket_event": _SOCKETS,
        "per_connection_buffer_limit_bytes": _OLD_LIMIT,
        "reuse_port": _SOCKETS,
        "socket_options": _SOCKETS,
        "tcp_backlog_size": _SOCKETS,
        "tcp_fast_open_queue_length": _SOCKETS,
        "transparent": _SOCKETS,
    },
    _LISTENER + "FilterChain": {
        "metadata": _STATISTICS,
        "transport_socket_connect_timeout": "the server bounds its handshakes",
    },
    _HCM + "HttpConnectionManager": {
        "access_log": _LOGS,
        "access_log_options": _LOGS,
        "add_user_agent": _HEADER_POLICY,
        "codec_type": "the server speaks what it speaks",
        "forward_client_cert_details": _HEADER_POLICY,
        "set_current_client_cert_details": _HEADER_POLICY,
        "generate_request_id": _LOGS,
        "http2_protocol_options": _OLD_LIMIT,
        "http_protocol_options": "the server parses HTTP/1.1",
        "preserve_external_request_id": _LOGS,
        "proxy_100_continue": "the server answers Expect itself",
        "request_id_extension": _LOGS,
        "server_header_transformation": "the server header is the application's",
        "server_name": "the server header is the application's",
        "stat_prefix": _STATISTICS,
        "tracing": _LOGS,
        "upgrade_configs": "the server passes upgrades through",
    },
    _HCM + "Rds": {"config_source": _DISCOVERY},
    _TCP + "TcpProxy": {"stat_prefix": _STATISTICS, "access_log": _LOGS, "access_log_options": _LOGS},
    _HTTP + "rbac.v3.RBAC": {"rules_stat_prefix": _STATISTICS, "track_per_rule_stats": _STATISTICS},
    _NETWORK + "rbac.v3.RBAC": {
        "stat_prefix": _STATISTICS,
        "enforcement_type": "decided once for each connection; a repeated decision would be the same",
    },
    _HTTP + "fault.v3.HTTPFault": {"disable_downstream_cluster_stats": _STATISTICS, "filter_metadata": _STATISTICS},
    _ROUTE + "RouteConfiguration": {
        "metadata": _STATISTICS,
        "validate_clusters": "a route to an absent cluster answers 503, whatever this says",
    },
    _ROUTE + "VirtualHost": {"metadata": _STATISTICS, "virtual_clusters": _STATISTICS},
    _ROUTE + "Route": {"decorator": _LOGS, "tracing": _LOGS, "stat_prefix": _STATISTICS},
    _ROUTE + "RouteMatch": {},
    _ROUTE + "RouteAction": {"max_grpc_timeout": _GRPC_DEADLINE, "grpc_timeout_offset": _GRPC_DEADLINE},
    _ROUTE + "RouteAction.MaxStreamDuration": {
        "grpc_timeout_header_max": _GRPC_DEADLINE,
        "grpc_timeout_header_offset": _GRPC_DEADLINE,
    },
    _ROUTE + "WeightedCluster": {
        "runtime_key_prefix": "there is no runtime",
        "total_weight": "obsolete; the sum of the weights counts",
    },
    _CLUSTER + "Cluster": {
        "alt_stat_name": _STATISTICS,
        "track_cluster_stats": _STATISTICS,
        "track_timeout_budgets": _STATISTICS,
        "cleanup_interval": "original destinations are not kept",
        "dns_failure_refresh_rate": _DNS,
        "dns_jitter": _DNS,
        "dns_lookup_family": _DNS,
        "dns_refresh_rate": _DNS,
        "dns_resolution_config": _DNS,
        "dns_resolvers": _DNS,
        "respect_dns_ttl": _DNS,
        "typed_dns_resolver_config": _DNS,
        "use_tcp_for_dns_lookups": _DNS,
        "filters": "Istio's peer labels; ours come from EDS metadata and identities",
        "http_protocol_options": "HTTP/1.1 is the default",
        "per_connection_buffer_limit_bytes": _OLD_LIMIT,
        "upstream_bind_config": "a source address only matters to a proxy that intercepts",
        "wait_for_warm_on_init": "a snapshot is published when it is whole",
    },
    _CLUSTER + "Cluster.CommonLbConfig": {"update_merge_window": "updates are applied as they come"},
    _CLUSTER + "CircuitBreakers.Thresholds": {"track_remaining": _STATISTICS},
    _CLUSTER + "OutlierDetection": {"successful_active_health_check_uneject_host": "there are no active health checks"},
    _TLS + "UpstreamTlsContext": {
        "allow_renegotiation": "there is no renegotiation",
        "max_session_keys": "sessions are not resumed",
        "enforce_rsa_key_usage": "certificates are checked by the SVID rules",
    },
    _TLS + "DownstreamTlsContext": {
        "disable_stateful_session_resumption": "sessions are not resumed",
        "disable_stateless_session_resumption": "sessions are not resumed",
        "session_timeout": "sessions are not resumed",
        "prefer_client_ciphers": "one list of modern ciphers is used",
    },
    _TLS + "TlsParameters": {
        "cipher_suites": "one list of modern ciphers is used",
        "ecdh_curves": "OpenSSL's own order is used",
        "signature_algorithms": "OpenSSL's own order is used",
    },
    _TLS + "CertificateValidationContext": {"watched_directory": "files are looked at when a context is made"},
    _TLS + "SdsSecretConfig": {"sds_config": _DISCOVERY},
    _ENDPOINT + "LocalityLbEndpoints": {"metadata": _STATISTICS, "proximity": "not used by Envoy either"},
    _ENDPOINT + "Endpoint": {"health_check_config": "there are no active health checks"},
}


def _is_default_duration(value: Any) -> bool:
    return bool(value.seconds == 0 and value.nanos == 0)


def _is_zero_share(value: Any) -> bool:
    return bool(value.value == 0)


_TLS_1_3 = 4

# Values that ask for what is done anyway.
NEUTRAL: Mapping[tuple[str, str], Callable[[Any], bool]] = {
    (_HCM + "HttpConnectionManager", "stream_idle_timeout"): _is_default_duration,
    (_CLUSTER + "OutlierDetection", "enforcing_success_rate"): _is_zero_share,
    (_CLUSTER + "OutlierDetection", "enforcing_local_origin_success_rate"): _is_zero_share,
    (_CLUSTER + "OutlierDetection", "enforcing_failure_percentage"): _is_zero_share,
    (_CLUSTER + "OutlierDetection", "enforcing_failure_percentage_local_origin"): _is_zero_share,
    (_TLS + "TlsParameters", "tls_maximum_protocol_version"): lambda value: value in (0, _TLS_1_3),
    (_ROUTE + "VirtualHost", "require_tls"): lambda value: value == 0,
    (_ROUTE + "RouteAction", "priority"): lambda value: value == 0,
}

# Read only where it says; a listener-wide fault would have to hold for every route.
_AS_HTTP_FILTER = {_HTTP + "fault.v3.HTTPFault": frozenset({"disable_downstream_cluster_stats"})}
_UNACTED_LB_POLICIES = {2: "RING_HASH", 5: "MAGLEV"}


def unsupported_fields(message: Any) -> tuple[str, ...]:
    """Sorted paths of the set fields of a decoded resource that nobody acts on."""
    return tuple(sorted(set(_walk(message, ""))))


def _walk(message: Any, path: str) -> Iterator[str]:
    name = message.DESCRIPTOR.full_name
    handled = HANDLED.get(name)
    if handled is None:
        return
    irrelevant = IRRELEVANT.get(name, {})
    if name == _CORE + "HeaderValue" and has_command(message.value):
        yield f"{path}[{message.key}]: substitution commands"
    if name == _TLS + "SdsSecretConfig" and not is_known_secret(message.name):
        yield f"{path}[{message.name}]: a secret without a source"
    for field, value in message.ListFields():
        inner = f"{path}.{field.name}" if path else field.name
        if field.name in handled:
            yield from _walk_value(field, value, inner, name)
        elif field.name not in irrelevant:
            neutral = NEUTRAL.get((name, field.name))
            if neutral is None or not neutral(value):
                yield inner


def _walk_value(field: Any, value: Any, path: str, parent: str) -> Iterator[str]:
    if field.message_type is None:
        if path == "lb_policy" and value in _UNACTED_LB_POLICIES:
            yield f"{path}: {_UNACTED_LB_POLICIES[value]}"
        return
    if protos.is_map(value):
        if field.message_type.fields_by_name["value"].message_type is not None:
            for key in sorted(value):
                yield from _open(value[key], f"{path}[{_short_key(key)}]", parent)
    elif hasattr(value, "DESCRIPTOR"):
        yield from _open(value, path, parent)
    else:
        for item in value:
            yield from _open(item, path, parent)


def _open(message: Any, path: str, parent: str) -> Iterator[str]:
    """Filters and extensions are known by their type; one that no table names is reported by it."""
    if message.DESCRIPTOR.full_name in (_LISTENER + "Filter", _HCM + "HttpFilter"):
        kind, config = unwrap(message.typed_config)
        if kind in HARMLESS_FILTERS:
            return
        path = f"{path}[{message.name}]"
        if kind in _AS_HTTP_FILTER and config is not None:
            yield from (
                f"{path}.{field.name}" for field, _ in config.ListFields() if field.name not in _AS_HTTP_FILTER[kind]
            )
        elif kind in HANDLED:
            yield from _walk(config, path)
        else:
            yield path
    elif message.DESCRIPTOR.full_name == "google.protobuf.Any":
        kind, config = unwrap(message)
        if config is not None and kind in HANDLED:
            yield from _walk(config, path)
        elif parent not in (_CORE + "TransportSocket", _ROUTE + "FilterConfig") and kind not in HARMLESS_FILTERS:
            yield f"{path}: {short_type(kind)}"
    else:
        yield from _walk(message, path)


def _short_key(key: str) -> str:
    return key.rpartition(".")[2] if key.startswith("envoy.extensions.") else key
