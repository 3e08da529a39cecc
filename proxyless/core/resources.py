"""The configuration model: Envoy's resources, decoded, validated and immutable.

Built by `proxyless.xds.decode`, compiled into a `Snapshot`. Absent and zero differ in xDS: `None` means absent, and each
field says what absence means. Times are seconds, weights are relative integers, percentages are 0-100.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from proxyless.core.matchers import HeaderMatcher, PathMatcher, QueryMatcher, StringMatcher
from proxyless.core.rbac import Rbac
from proxyless.core.request import Address
from proxyless.values import field, frozen

__all__ = [
    "CircuitBreakers",
    "Cluster",
    "ClusterType",
    "DirectResponse",
    "DownstreamTls",
    "Fault",
    "FilterChain",
    "FilterChainMatch",
    "Fraction",
    "HashPolicy",
    "HeaderMutation",
    "HeaderMutations",
    "Health",
    "HttpConnectionManager",
    "LbEndpoint",
    "LbPolicy",
    "Listener",
    "LoadAssignment",
    "LocalityEndpoints",
    "OutlierDetection",
    "PathNormalization",
    "Redirect",
    "RetryPolicy",
    "Route",
    "RouteAction",
    "RouteConfiguration",
    "RouteMatch",
    "TcpProxy",
    "TlsMaterial",
    "TransportSocketMatch",
    "UpstreamTls",
    "VirtualHost",
    "WeightedCluster",
]


# ---------------------------------------------------------------------------------------------------------------- shared


@frozen
class Fraction:
    """`numerator` of `denominator` (100, 10,000 or 1,000,000): envoy.type.v3.FractionalPercent."""

    numerator: int
    denominator: int = 100

    def draw(self, random: float) -> bool:
        """True for a share numerator/denominator of uniform `random` in [0, 1)."""
        return random * self.denominator < self.numerator


class AppendAction(StrEnum):
    """config.core.v3.HeaderValueOption.HeaderAppendAction."""

    APPEND_IF_EXISTS_OR_ADD = "append"
    ADD_IF_ABSENT = "add"
    OVERWRITE_IF_EXISTS_OR_ADD = "overwrite"
    OVERWRITE_IF_EXISTS = "replace"


@frozen
class HeaderMutation:
    """Add one header. `name` is lower case, `value` is literal text (`%%` already resolved)."""

    name: bytes
    value: bytes
    action: AppendAction = AppendAction.APPEND_IF_EXISTS_OR_ADD


@frozen
class HeaderMutations:
    """Removes run before adds (Envoy HeaderParser)."""

    add: tuple[HeaderMutation, ...] = ()
    remove: tuple[bytes, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.add or self.remove)


NO_MUTATIONS = HeaderMutations()


# ------------------------------------------------------------------------------------------------------------------- TLS


class TlsMaterial(StrEnum):
    """Where a certificate or a set of trust anchors comes from."""

    NONE = "none"
    MESH = "mesh"  # SDS `default` / `ROOTCA`, provider instance `default`: our SVID and bundles
    SYSTEM = "system"  # SDS `file-root:system`: the trust store of the operating system
    FILE = "file"  # paths in `certificate_file`, `key_file`, `ca_file`
    UNKNOWN = "unknown"  # a secret that we have no source for: no connection can be made with it


@frozen(kw_only=True)
class UpstreamTls:
    """extensions.transport_sockets.tls.v3.UpstreamTlsContext.

    `san_matchers` empty means no identity check was asked for: with MESH validation the peer must still hold an SVID of a
    known trust domain.
    """

    sni: str = ""
    alpn: tuple[str, ...] = ()
    certificate: TlsMaterial = TlsMaterial.MESH
    validation: TlsMaterial = TlsMaterial.MESH
    san_matchers: tuple[StringMatcher, ...] = ()
    certificate_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    tls13_only: bool = False


@frozen(kw_only=True)
class DownstreamTls:
    """extensions.transport_sockets.tls.v3.DownstreamTlsContext."""

    require_client_certificate: bool
    alpn: tuple[str, ...] = ()
    certificate: TlsMaterial = TlsMaterial.MESH
    validation: TlsMaterial = TlsMaterial.MESH
    san_matchers: tuple[StringMatcher, ...] = ()
    certificate_file: str = ""
    key_file: str = ""
    ca_file: str = ""
    tls13_only: bool = False


# ---------------------------------------------------------------------------------------------------------------- routes


@frozen(kw_only=True)
class RouteMatch:
    """route.v3.RouteMatch: all of it must hold."""

    path: PathMatcher
    headers: tuple[HeaderMatcher, ...] = ()
    query: tuple[QueryMatcher, ...] = ()
    fraction: Fraction | None = None
    grpc: bool = False


@frozen(kw_only=True)
class WeightedCluster:
    name: str
    weight: int
    request_headers: HeaderMutations = NO_MUTATIONS
    response_headers: HeaderMutations = NO_MUTATIONS


@frozen(kw_only=True)
class RetryPolicy:
    """route.v3.RetryPolicy. `num_retries` counts the extra attempts; `per_try_timeout` None: the route's time is the limit."""

    retry_on: frozenset[str]
    num_retries: int = 1
    per_try_timeout: float | None = None
    per_try_idle_timeout: float | None = None
    status_codes: frozenset[int] = frozenset()
    base_interval: float = 0.025
    max_interval: float = 0.25
    avoid_previous_hosts: bool = False
    host_selection_attempts: int = 1
    previous_priorities: bool = False


@frozen(kw_only=True)
class HashPolicy:
    """One route.v3.RouteAction.HashPolicy: exactly one source is set. Kept for ring hash and maglev."""

    header: str = ""
    cookie: str = ""
    cookie_ttl: float | None = None
    cookie_path: str = ""
    source_ip: bool = False
    query_parameter: str = ""
    terminal: bool = False


@frozen(kw_only=True)
class RouteAction:
    """Forward. `clusters` has one entry for a plain `cluster`; `total_weight` is their sum.

    `timeout` None: Envoy's default of 15 s; 0: no limit. It spans all attempts. With `max_stream_duration` (0: no
    limit) it does not count.
    """

    clusters: tuple[WeightedCluster, ...] = ()
    total_weight: int = 0
    cluster_header: str = ""
    timeout: float | None = None
    idle_timeout: float | None = None
    max_stream_duration: float | None = None
    retry: RetryPolicy | None = None
    prefix_rewrite: str = ""
    regex_rewrite: tuple[str, str] | None = None
    host_rewrite: str = ""
    auto_host_rewrite: bool = False
    append_x_forwarded_host: bool = False
    hash_policies: tuple[HashPolicy, ...] = ()


@frozen(kw_only=True)
class Redirect:
    """route.v3.RedirectAction; empty strings leave that part alone."""

    status: int = 301
    scheme: str = ""
    host: str = ""
    port: int = 0
    path: str = ""
    prefix_rewrite: str = ""
    regex_rewrite: tuple[str, str] | None = None
    strip_query: bool = False


@frozen(kw_only=True)
class DirectResponse:
    status: int
    body: bytes = b""


@frozen(kw_only=True)
class Fault:
    """extensions.filters.http.fault.v3.HTTPFault of one route. Delay comes before abort; no percentage is 0 %."""

    delay: float = 0.0
    delay_fraction: Fraction = Fraction(0)
    abort_status: int = 0
    abort_grpc_status: int | None = None
    abort_fraction: Fraction = Fraction(0)


@frozen(kw_only=True)
class Route:
    """One entry of a virtual host; the first that matches wins.

    Attributes:
        name: as sent, often empty.
        origin: path of the Istio resource that made it (`metadata.filter_metadata.istio.config`); empty when unknown.
        rbac: per-route override of the RBAC filters by filter name; None value disables that filter.
    """

    match: RouteMatch
    action: RouteAction | Redirect | DirectResponse | None
    name: str = ""
    origin: str = ""
    request_headers: HeaderMutations = NO_MUTATIONS
    response_headers: HeaderMutations = NO_MUTATIONS
    fault: Fault | None = None
    rbac: Mapping[str, Rbac | None] = field(default_factory=dict)


@frozen(kw_only=True)
class VirtualHost:
    """`domains` are lower case, never empty, unique in the route configuration."""

    name: str
    domains: tuple[str, ...]
    routes: tuple[Route, ...]
    include_attempt_count: bool = False
    request_headers: HeaderMutations = NO_MUTATIONS
    response_headers: HeaderMutations = NO_MUTATIONS


@frozen(kw_only=True)
class RouteConfiguration:
    name: str
    virtual_hosts: tuple[VirtualHost, ...]
    ignore_port_in_host: bool = False
    request_headers: HeaderMutations = NO_MUTATIONS
    response_headers: HeaderMutations = NO_MUTATIONS
    most_specific_wins: bool = False


# -------------------------------------------------------------------------------------------------------------- clusters


class ClusterType(StrEnum):
    STATIC = "STATIC"
    STRICT_DNS = "STRICT_DNS"
    LOGICAL_DNS = "LOGICAL_DNS"
    EDS = "EDS"
    ORIGINAL_DST = "ORIGINAL_DST"


class LbPolicy(StrEnum):
    ROUND_ROBIN = "ROUND_ROBIN"
    LEAST_REQUEST = "LEAST_REQUEST"
    RANDOM = "RANDOM"
    RING_HASH = "RING_HASH"
    MAGLEV = "MAGLEV"
    CLUSTER_PROVIDED = "CLUSTER_PROVIDED"


class Health(StrEnum):
    """core.v3.HealthStatus; UNKNOWN counts as healthy."""

    UNKNOWN = "UNKNOWN"
    HEALTHY = "HEALTHY"
    UNHEALTHY = "UNHEALTHY"
    DRAINING = "DRAINING"
    TIMEOUT = "TIMEOUT"
    DEGRADED = "DEGRADED"

    @property
    def eligible(self) -> bool:
        return self in (Health.UNKNOWN, Health.HEALTHY, Health.DEGRADED)


@frozen(kw_only=True)
class OutlierDetection:
    """cluster.v3.OutlierDetection with Envoy's defaults. `enforcing_*` are percentages; 0 switches a detector off."""

    interval: float = 10.0
    base_ejection_time: float = 30.0
    max_ejection_time: float = 300.0
    max_ejection_percent: int = 10
    consecutive_5xx: int = 5
    enforcing_consecutive_5xx: int = 100
    consecutive_gateway_failure: int = 5
    enforcing_consecutive_gateway_failure: int = 0
    split_external_local_origin_errors: bool = False
    consecutive_local_origin_failure: int = 5
    enforcing_consecutive_local_origin_failure: int = 100
    enforcing_success_rate: int = 100
    always_eject_one_host: bool = False


UNLIMITED = 2**32 - 1


@frozen(kw_only=True)
class CircuitBreakers:
    """cluster.v3.CircuitBreakers, DEFAULT priority, Envoy's defaults. Limits are for each process, as in gRPC clients."""

    max_connections: int = 1024
    max_pending_requests: int = 1024
    max_requests: int = 1024
    max_retries: int = 3
    retry_budget_percent: float | None = None
    min_retry_concurrency: int = 3


@frozen(kw_only=True)
class TransportSocketMatch:
    """The first whose `match` is a subset of the endpoint's labels decides; `tls` None is plain text."""

    name: str
    match: Mapping[str, str]
    tls: UpstreamTls | None


@frozen(kw_only=True)
class LbEndpoint:
    """endpoint.v3.LbEndpoint. `socket_match` is filter metadata `envoy.transport_socket_match`; `workload` is Istio's
    `workload;namespace;canonical-service;canonical-revision;cluster`, empty when unknown."""

    address: Address
    weight: int = 1
    health: Health = Health.UNKNOWN
    hostname: str = ""
    socket_match: Mapping[str, str] = field(default_factory=dict)
    workload: str = ""


@frozen(kw_only=True)
class LocalityEndpoints:
    region: str = ""
    zone: str = ""
    sub_zone: str = ""
    priority: int = 0
    weight: int = 1
    endpoints: tuple[LbEndpoint, ...] = ()


@frozen(kw_only=True)
class LoadAssignment:
    """endpoint.v3.ClusterLoadAssignment."""

    name: str
    localities: tuple[LocalityEndpoints, ...] = ()


@frozen(kw_only=True)
class Cluster:
    """cluster.v3.Cluster.

    Attributes:
        eds_name: name of the load assignment (EDS only); the cluster's name when the service name is empty.
        assignment: inline endpoints; None for EDS.
        tls: the cluster's own transport socket; used when no `tls_matches` entry fits.
        http2: upstream speaks HTTP/2.
        panic_threshold: percent of healthy hosts below which health is ignored; 0: never.
        service, service_namespace, subset: Istio's names from `metadata.filter_metadata.istio`; empty when absent.
        external: the service is outside of the mesh (same metadata).
    """

    name: str
    type: ClusterType
    lb_policy: LbPolicy = LbPolicy.ROUND_ROBIN
    eds_name: str = ""
    assignment: LoadAssignment | None = None
    connect_timeout: float = 5.0
    idle_timeout: float = 3600.0
    max_requests_per_connection: int = 0
    max_connection_duration: float | None = None
    breakers: CircuitBreakers = CircuitBreakers()
    outlier: OutlierDetection | None = None
    tls: UpstreamTls | None = None
    tls_matches: tuple[TransportSocketMatch, ...] = ()
    http2: bool = False
    panic_threshold: float = 50.0
    service: str = ""
    service_namespace: str = ""
    subset: str = ""
    external: bool = False


# ------------------------------------------------------------------------------------------------------------- listeners


class EscapedSlashes(StrEnum):
    KEEP_UNCHANGED = "keep"
    REJECT_REQUEST = "reject"
    UNESCAPE_AND_REDIRECT = "redirect"
    UNESCAPE_AND_FORWARD = "forward"


@frozen(kw_only=True)
class PathNormalization:
    """HttpConnectionManager normalize_path, merge_slashes, path_with_escaped_slashes_action."""

    normalize: bool = False
    merge_slashes: bool = False
    escaped_slashes: EscapedSlashes = EscapedSlashes.KEEP_UNCHANGED


@frozen(kw_only=True)
class HttpConnectionManager:
    """`rds` names the route configuration, or `routes` holds it. `rbac` are the RBAC filters in order, by filter name."""

    rds: str = ""
    routes: RouteConfiguration | None = None
    rbac: tuple[tuple[str, Rbac], ...] = ()
    paths: PathNormalization = PathNormalization()
    use_remote_address: bool = False
    xff_num_trusted_hops: int = 0
    memo: list[object] = field(default_factory=list, compare=False, repr=False)  # compiled routes, made on first use


@frozen(kw_only=True)
class TcpProxy:
    """filters.network.tcp_proxy with the network RBAC filters before it."""

    clusters: tuple[WeightedCluster, ...]
    rbac: tuple[tuple[str, Rbac], ...] = ()


@frozen(kw_only=True)
class FilterChainMatch:
    """listener.v3.FilterChainMatch; empty parts match everything. Selection order: destination port, destination prefix,
    server names, transport protocol, application protocols, source type, source prefix, source port; no backtracking."""

    destination_port: int = 0
    prefix_ranges: tuple[str, ...] = ()
    server_names: tuple[str, ...] = ()
    transport_protocol: str = ""
    application_protocols: tuple[str, ...] = ()
    source_type: str = "ANY"  # LOCAL: same address or loopback; EXTERNAL: any other
    source_prefix_ranges: tuple[str, ...] = ()
    source_ports: tuple[int, ...] = ()


@frozen(kw_only=True)
class FilterChain:
    """`filter` None: a chain with no terminal filter we know; its connections are closed."""

    match: FilterChainMatch = FilterChainMatch()
    name: str = ""
    tls: DownstreamTls | None = None
    filter: HttpConnectionManager | TcpProxy | None = None


@frozen(kw_only=True)
class Listener:
    """listener.v3.Listener. `api` is the HTTP connection manager of an API listener (gRPC form)."""

    name: str
    address: Address | None = None
    direction: str = ""  # INBOUND, OUTBOUND or empty
    filter_chains: tuple[FilterChain, ...] = ()
    default_filter_chain: FilterChain | None = None
    use_original_dst: bool = False
    api: HttpConnectionManager | None = None
