"""config.route.v3.RouteConfiguration -> `RouteConfiguration`. Refuses what Envoy refuses."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from proxyless.core.matchers import PathMatcher
from proxyless.core.resources import (
    DirectResponse,
    Fraction,
    Redirect,
    Route,
    RouteAction,
    RouteConfiguration,
    RouteMatch,
    VirtualHost,
)
from proxyless.xds.decode.actions import redirect, route_action
from proxyless.xds.decode.errors import FieldError, at, each
from proxyless.xds.decode.headers import mutations
from proxyless.xds.decode.match import header_matcher, query_matcher, regex, uri_template
from proxyless.xds.decode.overrides import Overrides, overrides
from proxyless.xds.decode.values import fraction, metadata_text, present_or

__all__ = ["route_configuration"]

_BODY_LIMIT = 4096  # Envoy's default of max_direct_response_body_size_bytes
_SEPARATED_PREFIX = re.compile(r"[^?#]+[^?#/]\Z")


def route_configuration(message: Any) -> RouteConfiguration:
    if message.HasField("vhds"):
        raise FieldError("vhds", "virtual hosts on demand are not supported")
    limit = present_or(message, "max_direct_response_body_size_bytes", _BODY_LIMIT)
    inherited = overrides(message, Overrides())
    hosts = each("virtual_hosts", partial(_virtual_host, limit, inherited), message.virtual_hosts)
    _unique_domains(hosts)
    return RouteConfiguration(
        name=message.name,
        virtual_hosts=hosts,
        ignore_port_in_host=message.ignore_port_in_host_matching,
        request_headers=mutations(message, "request"),
        response_headers=mutations(message, "response"),
        most_specific_wins=message.most_specific_header_mutations_wins,
    )


def _unique_domains(hosts: Sequence[VirtualHost]) -> None:
    seen: set[str] = set()
    for index, host in enumerate(hosts):
        for domain in host.domains:
            if domain in seen:
                raise FieldError(
                    f"virtual_hosts[{index}].domains", f"{domain!r} occurs twice in the route configuration"
                )
            seen.add(domain)


def _virtual_host(limit: int, inherited: Overrides, message: Any) -> VirtualHost:
    if message.HasField("matcher"):
        raise FieldError("matcher", "matcher trees are not supported")
    if not message.domains:
        raise FieldError("domains", "needs at least one entry")
    own = overrides(message, inherited)
    retry = message.retry_policy if message.HasField("retry_policy") else None
    return VirtualHost(
        name=message.name,
        domains=each("domains", _domain, message.domains),
        routes=each("routes", partial(_route, limit, own, retry), message.routes),
        include_attempt_count=message.include_request_attempt_count,
        request_headers=mutations(message, "request"),
        response_headers=mutations(message, "response"),
    )


def _domain(text: str) -> str:
    """``*``, ``*suffix``, ``prefix*`` or exact. A star elsewhere is refused, as in gRPC; Envoy would take it literally."""
    if not text:
        raise ValueError("a domain is not empty")
    if any(char in "\0\r\n" for char in text):
        raise ValueError("a domain has no CR, LF or NUL")
    inner = text[1:] if text.startswith("*") else text.removesuffix("*")
    if "*" in inner:
        raise ValueError(f"{text!r}: a wildcard stands at the start or at the end, once")
    return text.lower()


def _route(limit: int, inherited: Overrides, vhost_retry: Any | None, message: Any) -> Route:
    if not message.HasField("match"):
        raise FieldError("match", "is required")
    own = overrides(message, inherited)
    match = at("match", _match, message.match)
    return Route(
        match=match,
        action=_action(limit, match, vhost_retry, message),
        name=message.name,
        origin=metadata_text(message.metadata, "istio").get("config", ""),
        request_headers=mutations(message, "request"),
        response_headers=mutations(message, "response"),
        fault=own.fault,
        rbac=own.rbac,
    )


def _action(
    limit: int, match: RouteMatch, vhost_retry: Any | None, message: Any
) -> RouteAction | Redirect | DirectResponse | None:
    kind = message.WhichOneof("action")
    match kind:
        case "route":
            return at("route", partial(route_action, match.path.kind, vhost_retry), message.route)
        case "redirect":
            return at("redirect", partial(redirect, match.path.kind), message.redirect)
        case "direct_response":
            return at("direct_response", partial(_direct_response, limit), message.direct_response)
        case "non_forwarding_action":
            return None
    raise FieldError(kind or "action", "is required" if kind is None else "this action is not supported")


def _direct_response(limit: int, message: Any) -> DirectResponse:
    if not 200 <= message.status < 600:
        raise FieldError("status", f"{message.status} is not within [200, 600)")
    body = b""
    if message.HasField("body"):
        match message.body.WhichOneof("specifier"):
            case "inline_string":
                body = message.body.inline_string.encode()
            case "inline_bytes":
                body = message.body.inline_bytes
            case _:
                raise FieldError("body", "only an inline body is supported")
    if len(body) > limit:
        raise FieldError("body", f"{len(body)} bytes are more than max_direct_response_body_size_bytes ({limit})")
    return DirectResponse(status=message.status, body=body)


def _match(message: Any) -> RouteMatch:
    for field in ("tls_context", "dynamic_metadata", "filter_state", "cookies"):
        if field in _set_fields(message):
            raise FieldError(field, "this condition is not supported")
    return RouteMatch(
        path=_path(message),
        headers=each("headers", header_matcher, message.headers),
        query=each("query_parameters", query_matcher, message.query_parameters),
        fraction=_runtime_fraction(message),
        grpc=message.HasField("grpc"),
    )


def _set_fields(message: Any) -> Mapping[str, Any]:
    return {descriptor.name: value for descriptor, value in message.ListFields()}


def _runtime_fraction(message: Any) -> Fraction | None:
    if not message.HasField("runtime_fraction"):
        return None
    return at("runtime_fraction.default_value", fraction, message.runtime_fraction.default_value)


def _path(message: Any) -> PathMatcher:
    case_sensitive = bool(present_or(message, "case_sensitive", True))
    kind = message.WhichOneof("path_specifier")
    match kind:
        case "prefix":
            return PathMatcher("prefix", message.prefix, case_sensitive)
        case "path":
            return PathMatcher("exact", message.path, case_sensitive)
        case "safe_regex":
            return at(kind, lambda value: PathMatcher("regex", regex(value)), message.safe_regex)
        case "path_separated_prefix":
            if not _SEPARATED_PREFIX.match(message.path_separated_prefix):
                raise FieldError(kind, "must not end with / and has no ? and #")
            return PathMatcher("path_separated_prefix", message.path_separated_prefix, case_sensitive)
        case "path_match_policy":
            return at(kind, uri_template, message.path_match_policy)
    raise FieldError(kind or "path_specifier", "is required" if kind is None else "is not supported")
