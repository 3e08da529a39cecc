"""HTTP and network filters of a listener -> `HttpConnectionManager` and `TcpProxy`.

A filter that decides who may pass and is not built yet (JWT, external authorization) denies in its place: to skip it would open
what the configuration closes. Other filters that are known and change no verdict are reported. Anything else is refused,
unless the configuration marks it optional.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

from proxyless.core.rbac import Rbac
from proxyless.core.resources import (
    EscapedSlashes,
    HttpConnectionManager,
    PathNormalization,
    TcpProxy,
    WeightedCluster,
)
from proxyless.xds.decode.actions import weighted_clusters
from proxyless.xds.decode.errors import FieldError, at
from proxyless.xds.decode.match import string_matcher
from proxyless.xds.decode.rbac import rbac_filter
from proxyless.xds.decode.routes import route_configuration
from proxyless.xds.decode.values import present_or, short_type, unwrap

__all__ = ["HARMLESS_FILTERS", "HTTP_RBAC", "REPORTED_FILTERS", "chain_filter", "connection_manager"]

_HTTP = "envoy.extensions.filters.http."
_NETWORK = "envoy.extensions.filters.network."
HTTP_RBAC = _HTTP + "rbac.v3.RBAC"
NETWORK_RBAC = _NETWORK + "rbac.v3.RBAC"
HCM = _NETWORK + "http_connection_manager.v3.HttpConnectionManager"
TCP_PROXY = _NETWORK + "tcp_proxy.v3.TcpProxy"
JWT = _HTTP + "jwt_authn.v3.JwtAuthentication"
EXT_AUTHZ = _HTTP + "ext_authz.v3.ExtAuthz"
ROUTER = _HTTP + "router.v3.Router"

HARMLESS_FILTERS = {
    ROUTER: "the end of every HTTP filter chain; its own settings are about statistics and tracing",
    _HTTP + "cors.v3.Cors": "acts only where a route has a policy, which is reported there",
    _HTTP + "grpc_stats.v3.FilterConfig": "statistics; ours come from the telemetry layer",
    "stats.PluginConfig": "Istio's metrics; ours come from the telemetry layer",
    "io.istio.http.peer_metadata.Config": "Istio's peer labels; ours come from EDS metadata and identities",
    "envoy.tcp.metadataexchange.config.MetadataExchange": "Istio's peer labels for TCP",
    "istio.envoy.config.filter.http.alpn.v2alpha1.FilterConfig": "chooses the ALPN upstream; the TLS context has one",
    _NETWORK + "sni_cluster.v3.SniCluster": "only for gateways between networks",
}
REPORTED_FILTERS = frozenset(
    {
        _HTTP + "adaptive_concurrency.v3.AdaptiveConcurrency",
        _HTTP + "admission_control.v3.AdmissionControl",
        _HTTP + "bandwidth_limit.v3.BandwidthLimit",
        _HTTP + "buffer.v3.Buffer",
        _HTTP + "compressor.v3.Compressor",
        _HTTP + "decompressor.v3.Decompressor",
        _HTTP + "fault.v3.HTTPFault",
        _HTTP + "grpc_json_transcoder.v3.GrpcJsonTranscoder",
        _HTTP + "grpc_web.v3.GrpcWeb",
        _HTTP + "header_mutation.v3.HeaderMutation",
        _HTTP + "local_ratelimit.v3.LocalRateLimit",
        _HTTP + "ratelimit.v3.RateLimit",
        _HTTP + "stateful_session.v3.StatefulSession",
        _HTTP + "tap.v3.Tap",
        _NETWORK + "connection_limit.v3.ConnectionLimit",
        _NETWORK + "local_ratelimit.v3.LocalRateLimit",
        _NETWORK + "mongo_proxy.v3.MongoProxy",
        _NETWORK + "ratelimit.v3.RateLimit",
    }
)
_DENYING_NETWORK_FILTERS = frozenset({_NETWORK + "ext_authz.v3.ExtAuthz"})
_ESCAPED_SLASHES = (
    EscapedSlashes.KEEP_UNCHANGED,  # IMPLEMENTATION_SPECIFIC_DEFAULT
    EscapedSlashes.KEEP_UNCHANGED,
    EscapedSlashes.REJECT_REQUEST,
    EscapedSlashes.UNESCAPE_AND_REDIRECT,
    EscapedSlashes.UNESCAPE_AND_FORWARD,
)

NamedRbac = tuple[str, Rbac]


class _Filter(NamedTuple):
    """`kind` is the full type name, `config` None when the type is not in the descriptor set."""

    name: str
    kind: str
    config: Any
    optional: bool


def chain_filter(filters: Sequence[Any]) -> HttpConnectionManager | TcpProxy | None:
    """The network filters of a chain; None when the last one is no proxy that we know. Their RBAC filters come first."""
    rbac: list[NamedRbac] = []
    for index, message in enumerate(filters):
        found = at(f"filters[{index}]", _opened, message)
        path = f"filters[{index}].typed_config"
        if found.kind in (HCM, TCP_PROXY):
            if index != len(filters) - 1:
                raise FieldError(path, f"{short_type(found.kind)} must be the last filter of its chain")
            if found.kind == HCM:
                return at(path, partial(connection_manager, before=tuple(rbac)), found.config)
            return at(path, partial(_tcp_proxy, tuple(rbac)), found.config)
        rbac.extend(at(path, _network_filter, found))
    return None


def _opened(message: Any) -> _Filter:
    if message.WhichOneof("config_type") not in ("typed_config", None):
        raise FieldError("config_discovery", "filters by extension discovery are not supported")
    kind, config = unwrap(message.typed_config)
    return _Filter(message.name, kind, config, getattr(message, "is_optional", False))


def _network_filter(found: _Filter) -> Iterator[NamedRbac]:
    if found.kind == NETWORK_RBAC:
        return iter(((found.name, rbac_filter(found.config, network=True)),))
    if found.kind in _DENYING_NETWORK_FILTERS:
        return iter(((found.name, Rbac.deny_all(f"{found.name} is not supported")),))
    if found.kind in HARMLESS_FILTERS or found.kind in REPORTED_FILTERS or _is_terminal(found.kind):
        return iter(())
    raise ValueError(f"network filter {found.name!r} ({short_type(found.kind) or 'no type'}) is not supported")


def _is_terminal(kind: str) -> bool:
    """A proxy for another protocol: its chain closes connections, so it opens nothing."""
    return kind.startswith(_NETWORK) and (kind.endswith(("Proxy", "Echo")) or "direct_response" in kind)


def _tcp_proxy(rbac: tuple[NamedRbac, ...], message: Any) -> TcpProxy:
    kind = message.WhichOneof("cluster_specifier")
    match kind:
        case "cluster":
            return TcpProxy(clusters=(WeightedCluster(name=message.cluster, weight=1),), rbac=rbac)
        case "weighted_clusters":
            return TcpProxy(clusters=at(kind, weighted_clusters, message.weighted_clusters), rbac=rbac)
    raise FieldError("cluster_specifier", "is required")


# ------------------------------------------------------------------------------------------------------------------- HTTP


def connection_manager(message: Any, before: tuple[NamedRbac, ...] = ()) -> HttpConnectionManager:
    """`before` are network RBAC filters in front of it."""
    if message.original_ip_detection_extensions:
        raise FieldError("original_ip_detection_extensions", "is not supported")
    kind = message.WhichOneof("route_specifier")
    rds, routes = "", None
    match kind:
        case "rds":
            rds = message.rds.route_config_name
            if not rds:
                raise FieldError("rds.route_config_name", "is empty")
        case "route_config":
            routes = at(kind, route_configuration, message.route_config)
        case _:
            raise FieldError(kind or "route_specifier", "is required" if kind is None else "is not supported")
    return HttpConnectionManager(
        rds=rds,
        routes=routes,
        rbac=before + tuple(_http_rbac(message.http_filters)),
        paths=_paths(message),
        use_remote_address=bool(present_or(message, "use_remote_address", False)),
        xff_num_trusted_hops=message.xff_num_trusted_hops,
    )


def _paths(message: Any) -> PathNormalization:
    action = message.path_with_escaped_slashes_action
    if action >= len(_ESCAPED_SLASHES):
        raise FieldError("path_with_escaped_slashes_action", f"unknown action {action}")
    return PathNormalization(
        normalize=bool(present_or(message, "normalize_path", False)),
        merge_slashes=message.merge_slashes,
        escaped_slashes=_ESCAPED_SLASHES[action],
    )


def _http_rbac(filters: Sequence[Any]) -> Iterator[NamedRbac]:
    """What decides in an HTTP filter chain, in order. Disabled filters do nothing unless a route has an entry for them; Istio uses one name for several filters."""
    if not filters:
        raise FieldError("http_filters", "needs at least the router")
    shadows: list[Rbac] = []
    for index, message in enumerate(filters):
        path = f"http_filters[{index}]"
        found = at(path, _opened, message)
        last = index == len(filters) - 1
        if (found.kind == ROUTER) != last:
            raise FieldError(path, "the router is the last filter, and only it")
        if message.disabled and found.kind in (HTTP_RBAC, JWT, EXT_AUTHZ):
            yield found.name, Rbac(None)  # until a route switches it on
        elif message.disabled:
            continue
        elif found.kind == HTTP_RBAC:
            rbac = at(f"{path}.typed_config", rbac_filter, found.config)
            shadows.append(rbac)
            yield found.name, rbac
        elif found.kind == JWT:
            if _asks_for_tokens(found.config):
                yield found.name, Rbac.deny_all("JWT authentication is not supported")
        elif found.kind == EXT_AUTHZ:
            yield found.name, at(f"{path}.typed_config", partial(_ext_authz, shadows), found.config)
        else:
            at(path, _check_other, found)


def _asks_for_tokens(config: Any) -> bool:
    """Routes may name an entry of `requirement_map`."""
    return bool(config.rules or config.requirement_map or config.HasField("filter_state_rules"))


def _check_other(found: _Filter) -> None:
    if found.kind in HARMLESS_FILTERS or found.kind in REPORTED_FILTERS or found.optional:
        return
    raise ValueError(f"HTTP filter {found.name!r} ({short_type(found.kind) or 'no type'}) is not supported")


def _ext_authz(shadows: Sequence[Rbac], message: Any) -> Rbac:
    """External authorization denies what it would have asked about.

    Istio asks only for requests that a CUSTOM policy matches: shadow rules mark them, `filter_enabled_metadata` looks for the
    name of the marking policy. Without that form everything is denied.
    """
    reason = "external authorization is not supported"
    if not message.HasField("filter_enabled_metadata"):
        return Rbac.deny_all(reason)
    enabled = message.filter_enabled_metadata
    key = "".join(segment.key for segment in enabled.path)
    for rbac in shadows:
        marks = enabled.filter == "envoy.filters.http.rbac" and key == f"{rbac.shadow_prefix}shadow_effective_policy_id"
        if not marks or enabled.invert or enabled.value.WhichOneof("match_pattern") != "string_match":
            continue
        named = at("filter_enabled_metadata.value.string_match", string_matcher, enabled.value.string_match)
        policies = () if rbac.shadow is None else rbac.shadow.policies
        return Rbac("DENY", tuple(policy for policy in policies if named.matches(policy.name)))
    return Rbac.deny_all(reason)
