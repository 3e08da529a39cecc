"""DestinationRule and its traffic policy (istio.networking.v1alpha3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from .common import (
    AnyDuration,
    Duration,
    Int32,
    Limit,
    PortNumber,
    PortSelector,
    Range,
    UInt32,
    UInt64,
    WorkloadSelector,
)

__all__ = [
    "ClientTLSSettings",
    "ConnectionKeepalive",
    "ConnectionPoolHTTP",
    "ConnectionPoolSettings",
    "ConnectionPoolTCP",
    "ConsistentHashLB",
    "DestinationRule",
    "HTTPCookie",
    "HTTPCookieAttribute",
    "LoadBalancerSettings",
    "LocalityDistribute",
    "LocalityFailover",
    "LocalityLoadBalancerSetting",
    "MagLev",
    "OutlierDetection",
    "PortTrafficPolicy",
    "ProxyProtocol",
    "RetryBudget",
    "RingHash",
    "Subset",
    "TcpKeepalive",
    "TrafficPolicy",
    "TunnelSettings",
    "WarmupConfiguration",
    "ZoneAwareLoadBalancerSetting",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class RingHash:
    """``minimum_ring_size`` absent or 0: 1024."""

    minimum_ring_size: UInt64 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MagLev:
    """``table_size`` absent: 65537; must be prime."""

    table_size: UInt64 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPCookieAttribute:
    name: str
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPCookie:
    """With a ``ttl`` (0 is a session cookie) the proxy makes the cookie when it is missing."""

    name: str
    path: str = ""
    ttl: AnyDuration | None = None
    attributes: tuple[HTTPCookieAttribute, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistentHashLB:
    """One hash key, one algorithm (ring hash when none); the last attribute is the deprecated ring size."""

    http_header_name: str | None = None
    http_cookie: HTTPCookie | None = None
    use_source_ip: bool | None = None
    http_query_parameter_name: str | None = None
    ring_hash: RingHash | None = None
    maglev: MagLev | None = None
    minimum_ring_size: UInt64 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityDistribute:
    from_: str = ""
    to: Mapping[str, UInt32] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityFailover:
    from_: str = ""
    to: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityLoadBalancerSetting:
    distribute: tuple[LocalityDistribute, ...] = ()
    failover: tuple[LocalityFailover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    enabled: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ZoneAwareLoadBalancerSetting:
    enabled: bool | None = None
    failover: tuple[LocalityFailover, ...] = ()
    failover_priority: tuple[str, ...] = ()
    min_cluster_size: Annotated[int, Range(1, 2**64 - 1)] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmupConfiguration:
    """Slow start; ``minimum_percent`` absent: 10, ``aggression`` absent: 1."""

    duration: Duration
    minimum_percent: Annotated[float, Range(0, 100)] | None = None
    aggression: Annotated[float, Range(0, float("inf"))] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancerSettings:
    """``simple`` and ``consistent_hash`` exclude each other; neither: LEAST_REQUEST."""

    simple: Literal["UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"] | None = None
    consistent_hash: ConsistentHashLB | None = None
    locality_lb_setting: LocalityLoadBalancerSetting | None = None
    zone_aware_lb_setting: ZoneAwareLoadBalancerSetting | None = None
    warmup_duration_secs: Duration | None = None
    warmup: WarmupConfiguration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TcpKeepalive:
    probes: UInt32 | None = None
    time: Duration | None = None
    interval: Duration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPoolTCP:
    """``idle_timeout`` 0: connections are never closed for idleness."""

    max_connections: Int32 | None = None
    connect_timeout: Duration | None = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: Duration | None = None
    idle_timeout: AnyDuration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionKeepalive:
    interval: Duration | None = None
    timeout: Duration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPoolHTTP:
    """0 is "not set" for the numbers."""

    http1_max_pending_requests: Int32 | None = None
    http2_max_requests: Int32 | None = None
    max_requests_per_connection: Int32 | None = None
    max_retries: Int32 | None = None
    idle_timeout: Duration | None = None
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = "DEFAULT"
    use_client_protocol: bool = False
    max_concurrent_streams: Int32 | None = None
    http2_keep_alive: ConnectionKeepalive | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPoolSettings:
    tcp: ConnectionPoolTCP | None = None
    http: ConnectionPoolHTTP | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """Absent numbers follow Envoy (istio-semantics 5.5); ``consecutive_errors`` is deprecated and ignored."""

    consecutive_errors: Int32 | None = None
    split_external_local_origin_errors: bool = False
    consecutive_local_origin_failures: UInt32 | None = None
    consecutive_gateway_errors: UInt32 | None = None
    consecutive_5xx_errors: UInt32 | None = None
    interval: Duration | None = None
    base_ejection_time: Duration | None = None
    max_ejection_percent: Annotated[int, Range(0, 100)] | None = None
    min_health_percent: Annotated[int, Range(0, 100)] | None = None
    outlier_detection_http_error_codes: tuple[Annotated[int, Range(100, 599)], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTLSSettings:
    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    credential_name: str = ""
    subject_alt_names: tuple[str, ...] = ()
    sni: str = ""
    insecure_skip_verify: bool | None = None
    ca_crl: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TunnelSettings:
    protocol: str = ""
    target_host: str
    target_port: PortNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyProtocol:
    version: Literal["V1", "V2"] = "V1"


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    percent: Annotated[float, Range(0, 100)] | None = None
    min_retry_concurrency: UInt32 | None = None
    budget_interval: AnyDuration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortTrafficPolicy:
    """Replaces the whole policy for its port."""

    port: PortSelector | None = None
    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPolicy:
    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None
    port_level_settings: Annotated[tuple[PortTrafficPolicy, ...], Limit(4096)] = ()
    tunnel: TunnelSettings | None = None
    proxy_protocol: ProxyProtocol | None = None
    retry_budget: RetryBudget | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    traffic_policy: TrafficPolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationRule:
    host: str
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[str, ...] = ()
    workload_selector: WorkloadSelector | None = None
