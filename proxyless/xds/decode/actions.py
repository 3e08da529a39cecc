"""route.v3.RouteAction, RedirectAction and RetryPolicy -> `RouteAction`, `Redirect`, `RetryPolicy`."""

from __future__ import annotations

import re
from typing import Any

from proxyless.core.regex import compile_re2
from proxyless.core.resources import HashPolicy, Redirect, RetryPolicy, RouteAction, WeightedCluster
from proxyless.xds.decode.errors import FieldError, at, each
from proxyless.xds.decode.headers import TOKEN, mutations
from proxyless.xds.decode.values import duration, optional, present_or, short_type, unwrap

__all__ = ["redirect", "retry_policy", "route_action", "weighted_clusters"]

UINT32_MAX = 2**32 - 1
PREVIOUS_HOSTS = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
PREVIOUS_PRIORITIES = "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"
_FORBIDDEN = re.compile(r"[\0\r\n]")
_REDIRECT_CODES = (301, 302, 303, 307, 308)
_SUBSTITUTION = re.compile(r"\\(.?)", re.DOTALL)


def route_action(path_kind: str, vhost_retry: Any | None, message: Any) -> RouteAction:
    """`vhost_retry` is the virtual host's RetryPolicy message, used when the route has none."""
    clusters, cluster_header = _clusters(message)
    rewrites = [name for name in ("prefix_rewrite", "path_rewrite") if getattr(message, name, "")]
    rewrites += [name for name in ("regex_rewrite", "path_rewrite_policy") if message.HasField(name)]
    if len(rewrites) > 1:
        raise FieldError(rewrites[1], f"excludes {rewrites[0]}")
    if "prefix_rewrite" in rewrites and path_kind == "template":
        raise FieldError("prefix_rewrite", "cannot be used with a path template")
    retry = optional(message, "retry_policy") or vhost_retry
    stream = message.max_stream_duration
    return RouteAction(
        clusters=clusters,
        total_weight=sum(cluster.weight for cluster in clusters),
        cluster_header=cluster_header,
        timeout=_duration(message, "timeout"),
        idle_timeout=_duration(message, "idle_timeout"),
        max_stream_duration=at("max_stream_duration", lambda value: _duration(value, "max_stream_duration"), stream),
        retry=None if retry is None else at("retry_policy", retry_policy, retry),
        prefix_rewrite=at("prefix_rewrite", _header_text, message.prefix_rewrite),
        regex_rewrite=at("regex_rewrite", regex_rewrite, message.regex_rewrite)
        if message.HasField("regex_rewrite")
        else None,
        host_rewrite=at("host_rewrite_literal", _header_text, message.host_rewrite_literal),
        auto_host_rewrite=bool(present_or(message, "auto_host_rewrite", False)),
        append_x_forwarded_host=message.append_x_forwarded_host,
        hash_policies=each("hash_policy", _hash_policy, message.hash_policy),
    )


def _duration(message: Any, field: str) -> float | None:
    return at(field, duration, getattr(message, field)) if message.HasField(field) else None


def _header_text(text: str) -> str:
    if _FORBIDDEN.search(text):
        raise ValueError("has a CR, LF or NUL")
    return text


def _clusters(message: Any) -> tuple[tuple[WeightedCluster, ...], str]:
    kind = message.WhichOneof("cluster_specifier")
    match kind:
        case "cluster":
            if not message.cluster:
                raise FieldError(kind, "is empty")
            return (WeightedCluster(name=message.cluster, weight=1),), ""
        case "cluster_header":
            if not TOKEN.match(message.cluster_header.removeprefix(":")):
                raise FieldError(kind, f"{message.cluster_header!r} is not a header name")
            return (), message.cluster_header.lower()
        case "weighted_clusters":
            return at(kind, weighted_clusters, message.weighted_clusters), ""
    raise FieldError(kind or "cluster_specifier", "is required" if kind is None else "is not supported")


def weighted_clusters(message: Any) -> tuple[WeightedCluster, ...]:
    """Entries with weight 0 stay: they are valid and never chosen. Works for route.v3 and tcp_proxy.v3 alike."""
    if not message.clusters:
        raise FieldError("clusters", "needs at least one entry")
    clusters = each("clusters", _weighted_cluster, message.clusters)
    total = sum(cluster.weight for cluster in clusters)
    if not 0 < total <= UINT32_MAX:
        raise FieldError("clusters", f"the sum of weights must be greater than 0 and fit uint32, got {total}")
    return clusters


def _weighted_cluster(message: Any) -> WeightedCluster:
    header = getattr(message, "cluster_header", "")
    if header and message.name:
        raise ValueError("only one of name and cluster_header can be specified")
    if header:
        raise FieldError("cluster_header", "is not supported in weighted clusters")
    if not message.name:
        raise FieldError("name", "at least one of name and cluster_header must be specified")
    weight = message.weight if isinstance(message.weight, int) else message.weight.value
    if not hasattr(message, "request_headers_to_add"):
        return WeightedCluster(name=message.name, weight=weight)
    return WeightedCluster(
        name=message.name,
        weight=weight,
        request_headers=mutations(message, "request"),
        response_headers=mutations(message, "response"),
    )


def regex_rewrite(message: Any) -> tuple[str, str]:
    """A RegexMatchAndSubstitute: the RE2 pattern and the substitution as sent (`\\1` is a group, `\\\\` a back slash)."""
    pattern = message.pattern.regex
    if not pattern:
        raise FieldError("pattern.regex", "is empty")
    at("pattern.regex", compile_re2, pattern)
    for found in _SUBSTITUTION.finditer(message.substitution):
        if not (found[1].isdigit() or found[1] == "\\"):
            raise FieldError("substitution", f"invalid rewrite {found[0]!r}")
    return pattern, at("substitution", _header_text, message.substitution)


def redirect(path_kind: str, message: Any) -> Redirect:
    path_rewrite = message.WhichOneof("path_rewrite_specifier")
    if path_rewrite == "prefix_rewrite" and path_kind == "template":
        raise FieldError("prefix_rewrite", "cannot be used with a path template")
    if message.response_code >= len(_REDIRECT_CODES):
        raise FieldError("response_code", f"unknown code {message.response_code}")
    if message.port_redirect > 65535:
        raise FieldError("port_redirect", f"{message.port_redirect} is out of range")
    return Redirect(
        status=_REDIRECT_CODES[message.response_code],
        scheme="https" if message.https_redirect else at("scheme_redirect", _header_text, message.scheme_redirect),
        host=at("host_redirect", _header_text, message.host_redirect),
        port=message.port_redirect,
        path=at("path_redirect", _header_text, message.path_redirect),
        prefix_rewrite=at("prefix_rewrite", _header_text, message.prefix_rewrite),
        regex_rewrite=at("regex_rewrite", regex_rewrite, message.regex_rewrite)
        if path_rewrite == "regex_rewrite"
        else None,
        strip_query=message.strip_query,
    )


def _hash_policy(message: Any) -> HashPolicy:
    match message.WhichOneof("policy_specifier"):
        case "header":
            return HashPolicy(header=message.header.header_name.lower(), terminal=message.terminal)
        case "cookie":
            return HashPolicy(
                cookie=message.cookie.name,
                cookie_ttl=_duration(message.cookie, "ttl"),
                cookie_path=message.cookie.path,
                terminal=message.terminal,
            )
        case "connection_properties":
            return HashPolicy(source_ip=message.connection_properties.source_ip, terminal=message.terminal)
        case "query_parameter":
            return HashPolicy(query_parameter=message.query_parameter.name, terminal=message.terminal)
        case "filter_state":  # yields no hash in this library, as in gRPC for keys it does not know
            return HashPolicy(terminal=message.terminal)
    raise FieldError("policy_specifier", "is required")


def retry_policy(message: Any) -> RetryPolicy:
    """Unknown words of `retry_on` are ignored, as in Envoy."""
    base, maximum = 0.025, None
    if message.HasField("retry_back_off"):
        back_off = message.retry_back_off
        if not back_off.HasField("base_interval"):
            raise FieldError("retry_back_off.base_interval", "is required")
        base = at("retry_back_off.base_interval", duration, back_off.base_interval)
        maximum = at("retry_back_off", lambda value: _duration(value, "max_interval"), back_off)
        if base <= 0:
            raise FieldError("retry_back_off.base_interval", "must be greater than 0")
        if maximum is not None and maximum < base:
            raise FieldError("retry_back_off.max_interval", "must not be less than base_interval")
    attempts = message.host_selection_retry_max_attempts
    if attempts < 0:
        raise FieldError("host_selection_retry_max_attempts", "is negative")
    predicates = each("retry_host_predicate", _host_predicate, message.retry_host_predicate)
    return RetryPolicy(
        retry_on=frozenset(word.strip() for word in message.retry_on.split(",") if word.strip()),
        num_retries=present_or(message, "num_retries", 1),
        # 0 is "no limit of its own".
        per_try_timeout=_duration(message, "per_try_timeout") or None,
        per_try_idle_timeout=_duration(message, "per_try_idle_timeout") or None,
        status_codes=frozenset(message.retriable_status_codes),
        base_interval=base,
        max_interval=maximum if maximum is not None else base * 10,
        avoid_previous_hosts="previous_hosts" in predicates,
        host_selection_attempts=attempts or 1,
        previous_priorities=message.HasField("retry_priority")
        and at("retry_priority", _retry_priority, message.retry_priority),
    )


def _host_predicate(message: Any) -> str:
    name, _ = unwrap(message.typed_config)
    if name != PREVIOUS_HOSTS:
        raise ValueError(f"retry host predicate {short_type(name) or message.name!r} is not supported")
    return "previous_hosts"


def _retry_priority(message: Any) -> bool:
    name, _ = unwrap(message.typed_config)
    if name != PREVIOUS_PRIORITIES:
        raise ValueError(f"retry priority {short_type(name) or message.name!r} is not supported")
    return True
