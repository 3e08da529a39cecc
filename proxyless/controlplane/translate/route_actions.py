"""What a VirtualService route does with a request (istio-semantics 4.3)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from proxyless.controlplane.grpc_status import GRPC_STATUS
from proxyless.controlplane.manifest.model import (
    ConsistentHashLB,
    CorsPolicy,
    Destination,
    HeaderOperations,
    Headers,
    HTTPFaultInjection,
    HTTPRedirect,
    HTTPRetry,
    HTTPRoute,
)
from proxyless.controlplane.translate.build import Tree, duration, fraction, packed
from proxyless.controlplane.translate.matches import string_matcher
from proxyless.controlplane.translate.retries import retry_policy

__all__ = ["Resolve", "apply_action", "forward", "hash_policies"]

Resolve = Callable[[Destination], tuple[str, ConsistentHashLB | None]]
"""The cluster of a destination, and the hash by which that cluster picks."""

_FAULT, _CORS = "envoy.filters.http.fault", "envoy.filters.http.cors"
_REDIRECTS = {302: "FOUND", 303: "SEE_OTHER", 307: "TEMPORARY_REDIRECT", 308: "PERMANENT_REDIRECT"}


def apply_action(route: Tree, http: HTTPRoute, port: int, resolve: Resolve, mesh_retry: HTTPRetry | None) -> None:
    """Add to `route` (which holds the match already) what is done with a request that matches."""
    authority = _apply_headers(route, http.headers)
    if http.redirect is not None:
        route["redirect"] = _redirect(http.redirect, port)
    elif http.direct_response is not None:
        response = http.direct_response
        route["direct_response"] = {"status": response.status}
        if response.body is not None:
            if response.body.bytes is not None:
                route["direct_response"]["body"] = {"inline_bytes": response.body.bytes}
            else:
                route["direct_response"]["body"] = {"inline_string": response.body.string or ""}
    else:
        route["route"] = _action(route, http, authority, resolve, mesh_retry)
    filters = {}
    if http.fault is not None:
        filters[_FAULT] = packed("envoy.extensions.filters.http.fault.v3.HTTPFault", _fault(http.fault))
    if http.cors_policy is not None:
        filters[_CORS] = packed("envoy.extensions.filters.http.cors.v3.CorsPolicy", _cors(http.cors_policy))
    if filters:
        route["typed_per_filter_config"] = filters


def forward(cluster: str, retry: Tree | None, hashing: ConsistentHashLB | None = None) -> Tree:
    """A RouteAction to one cluster without time limit, as for a service that no VirtualService speaks about."""
    action: Tree = {"cluster": cluster, "timeout": duration(0), "max_grpc_timeout": duration(0)}
    if retry is not None:
        action["retry_policy"] = retry
    if hashing is not None:
        action["hash_policy"] = hash_policies(hashing)
    return action


def _action(route: Tree, http: HTTPRoute, authority: str, resolve: Resolve, mesh_retry: HTTPRetry | None) -> Tree:
    timeout = duration(http.timeout or 0)
    action: Tree = {"timeout": timeout, "max_grpc_timeout": timeout}
    hashes: list[Tree] = []
    targets = http.route if len(http.route) == 1 else [target for target in http.route if target.weight]
    weighted: list[Tree] = []
    for target in targets:
        cluster, hashing = resolve(target.destination)
        hashes += hash_policies(hashing) if hashing else []
        if len(targets) == 1:
            action["cluster"] = cluster
            authority = _apply_headers(route, target.headers) or authority
        else:
            entry: Tree = {"name": cluster, "weight": {"value": target.weight}}
            own = _apply_headers(entry, target.headers)
            if own:
                entry["host_rewrite_literal"] = own
            weighted.append(entry)
    if weighted:
        action["weighted_clusters"] = {"clusters": weighted}
    if http.rewrite is not None:
        authority = http.rewrite.authority or authority
        if http.rewrite.uri_regex_rewrite is not None:
            regex = http.rewrite.uri_regex_rewrite
            action["regex_rewrite"] = {"pattern": {"regex": regex.match}, "substitution": regex.rewrite}
        elif http.rewrite.uri:
            action["prefix_rewrite"] = http.rewrite.uri
    if authority:
        action["host_rewrite_literal"] = authority
    retry = retry_policy(http.retries, mesh_retry, hashed=bool(hashes) and http.retries is not None)
    if retry is not None:
        action["retry_policy"] = retry
    if hashes:
        action["hash_policy"] = hashes
    mirrors = _mirrors(http, resolve)
    if mirrors:
        action["request_mirror_policies"] = mirrors
    return action


def hash_policies(hashing: ConsistentHashLB) -> list[Tree]:
    if hashing.http_header_name:
        return [{"header": {"header_name": hashing.http_header_name}}]
    if hashing.http_cookie is not None:
        cookie = hashing.http_cookie
        result: Tree = {"name": cookie.name, "path": cookie.path}
        if cookie.ttl is not None:
            result["ttl"] = duration(cookie.ttl)
        if cookie.attributes:
            result["attributes"] = [{"name": item.name, "value": item.value} for item in cookie.attributes]
        return [{"cookie": result}]
    if hashing.http_query_parameter_name:
        return [{"query_parameter": {"name": hashing.http_query_parameter_name}}]
    return [{"connection_properties": {"source_ip": True}}] if hashing.use_source_ip else []


def _apply_headers(target: Tree, headers: Headers | None) -> str:
    """Add header operations to a route or weighted cluster; returns the authority that they set, or an empty string."""
    if headers is None:
        return ""
    authority = ""
    for side, operations in (("request", headers.request), ("response", headers.response)):
        if operations is None:
            continue
        added = _additions(operations)
        removed = [name for name in operations.remove if not name.startswith(":")]
        if added:
            target.setdefault(f"{side}_headers_to_add", []).extend(added)
        if removed:
            target.setdefault(f"{side}_headers_to_remove", []).extend(removed)
        if side == "request":
            authority = _authority(operations.set) or authority
    return authority


def _additions(operations: HeaderOperations) -> list[Tree]:
    result = []
    for values, action in (
        (operations.set, "OVERWRITE_IF_EXISTS_OR_ADD"),
        (operations.add, "APPEND_IF_EXISTS_OR_ADD"),
    ):
        for name, value in sorted(values.items()):
            if not _is_authority(name) and not name.startswith(":"):
                result.append({"header": {"key": name, "value": value}, "append_action": action})
    return result


def _is_authority(name: str) -> bool:
    return name.lower() in ("host", ":authority")


def _authority(values: Mapping[str, str]) -> str:
    return next((value for name, value in values.items() if _is_authority(name)), "")


def _redirect(redirect: HTTPRedirect, port: int) -> Tree:
    result: Tree = {
        "host_redirect": redirect.authority,
        "response_code": _REDIRECTS.get(redirect.redirect_code or 301, "MOVED_PERMANENTLY"),
    }
    if redirect.uri:
        result["path_redirect"] = redirect.uri
    elif redirect.prefix_rewrite:
        result["prefix_rewrite"] = redirect.prefix_rewrite
    if redirect.scheme:
        result["scheme_redirect"] = redirect.scheme
    if redirect.port:
        result["port_redirect"] = redirect.port
    elif redirect.derive_port == "FROM_REQUEST_PORT":
        result["port_redirect"] = port
    return result


def _mirrors(http: HTTPRoute, resolve: Resolve) -> list[Tree]:
    wanted: list[tuple[Destination, float]] = []
    if http.mirror is not None:
        percent = http.mirror_percentage if http.mirror_percentage is not None else http.mirror_percent
        wanted.append((http.mirror, 100.0 if percent is None else percent))
    wanted += [(m.destination, 100.0 if m.percentage is None else m.percentage) for m in http.mirrors]
    return [
        {
            "cluster": resolve(destination)[0],
            "runtime_fraction": {"default_value": fraction(percent)},
            "disable_shadow_host_suffix_append": True,
            "trace_sampled": {"value": False},
        }
        for destination, percent in wanted
        if percent > 0
    ]


def _fault(fault: HTTPFaultInjection) -> Tree:
    """A percentage that is absent stays absent, which is 0 %."""
    result: Tree = {}
    delay, abort = fault.delay, fault.abort
    if delay is not None and delay.fixed_delay is not None:
        result["delay"] = {"fixed_delay": duration(delay.fixed_delay)}
        percent = delay.percentage if delay.percentage is not None else delay.percent
        if percent is not None:
            result["delay"]["percentage"] = fraction(percent)
    if abort is not None:
        result["abort"] = {}
        if abort.percentage is not None:
            result["abort"]["percentage"] = fraction(abort.percentage)
        if abort.http_status is not None:
            result["abort"]["http_status"] = abort.http_status
        elif abort.grpc_status in GRPC_STATUS:
            result["abort"]["grpc_status"] = GRPC_STATUS.index(abort.grpc_status)
        else:
            del result["abort"]
    return result


def _cors(cors: CorsPolicy) -> Tree:
    result: Tree = {
        "filter_enabled": {"default_value": {"numerator": 100}},
        "allow_origin_string_match": [string_matcher(origin) for origin in cors.allow_origins]
        or [{"exact": origin} for origin in cors.allow_origin],
        "allow_methods": ",".join(cors.allow_methods),
        "allow_headers": ",".join(cors.allow_headers),
        "expose_headers": ",".join(cors.expose_headers),
    }
    if cors.allow_credentials is not None:
        result["allow_credentials"] = {"value": cors.allow_credentials}
    if cors.max_age is not None:
        result["max_age"] = str(int(cors.max_age))
    if cors.unmatched_preflights != "UNSPECIFIED":
        result["forward_not_matching_preflights"] = {"value": cors.unmatched_preflights == "FORWARD"}
    return result
