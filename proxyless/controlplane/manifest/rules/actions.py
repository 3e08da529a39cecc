"""What an HTTP route does beside choosing a destination: redirect, rewrite, fault, headers, CORS."""

from __future__ import annotations

import re
from typing import Final

from proxyless.controlplane.grpc_status import GRPC_STATUS
from proxyless.controlplane.manifest.context import Context, child_path
from proxyless.controlplane.manifest.hints import did_you_mean
from proxyless.controlplane.manifest.model import (
    CorsPolicy,
    FaultAbort,
    FaultDelay,
    HeaderOperations,
    Headers,
    HTTPDirectResponse,
    HTTPRedirect,
    HTTPRewrite,
    HTTPRoute,
)

from .checks import check_header_name, check_one_of, check_regex

__all__ = ["check_actions", "check_header_operations"]

_REDIRECT_CODES: Final = (301, 302, 303, 307, 308)
_METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*")
_BODY_WARN: Final = 100 * 1024
_BODY_MOST: Final = 2**20
# Envoy's header formatter: %% or %COMMAND%, %COMMAND(argument)%, %COMMAND(argument):9%.
_FORMAT: Final = re.compile(r"(?:[^%]|%%|%[A-Z][A-Z0-9_]*(?:\([^%]*\))?(?::[0-9]+)?%)*")


def check_actions(context: Context, path: str, route: HTTPRoute) -> None:
    if route.redirect is not None:
        _check_redirect(context, f"{path}.redirect", route.redirect, route)
    if route.direct_response is not None:
        _check_direct_response(context, f"{path}.directResponse", route.direct_response)
    for name, present in (("redirect", route.redirect), ("directResponse", route.direct_response)):
        for other, beside in (("fault", route.fault), ("rewrite", route.rewrite)):
            if present is not None and beside is not None:
                context.error(f"{path}.{other}", f"{other} has no meaning beside {name}")
    if route.rewrite is not None:
        _check_rewrite(context, f"{path}.rewrite", route.rewrite)
    if route.fault is not None:
        if route.fault.delay is None and route.fault.abort is None:
            context.error(f"{path}.fault", "needs delay or abort", code="required")
        if route.fault.delay is not None:
            _check_delay(context, f"{path}.fault.delay", route.fault.delay)
        if route.fault.abort is not None:
            _check_abort(context, f"{path}.fault.abort", route.fault.abort)
    if route.cors_policy is not None:
        _check_cors(context, f"{path}.corsPolicy", route.cors_policy)
    if route.headers is not None:
        check_header_operations(context, f"{path}.headers", route.headers)
    _check_authority(context, path, route)


def _check_authority(context: Context, path: str, route: HTTPRoute) -> None:
    """Host may be rewritten in one place only."""
    if route.rewrite is None or not route.rewrite.authority or route.headers is None or route.headers.request is None:
        return
    for name in route.headers.request.set:
        if name.lower() in (":authority", "host"):
            here = child_path(f"{path}.headers.request.set", name)
            context.error(here, "rewrite.authority sets the host already")


def check_header_operations(context: Context, path: str, headers: Headers) -> None:
    for side, operations in (("request", headers.request), ("response", headers.response)):
        if operations is not None:
            _check_operations(context, f"{path}.{side}", operations)


def _check_operations(context: Context, path: str, operations: HeaderOperations) -> None:
    for field, values in (("set", operations.set), ("add", operations.add)):
        for name, value in values.items():
            here = child_path(f"{path}.{field}", name)
            check_header_name(context, here, name)
            if not _FORMAT.fullmatch(value):
                context.error(here, f"{value[:60]!r}: a lone percent sign", "write %% for a percent sign")
    for index, name in enumerate(operations.remove):
        check_header_name(context, f"{path}.remove[{index}]", name)


def _check_redirect(context: Context, path: str, redirect: HTTPRedirect, route: HTTPRoute) -> None:
    has_port = redirect.port is not None or redirect.derive_port is not None
    if not (redirect.uri or redirect.authority or redirect.scheme or redirect.prefix_rewrite or has_port):
        context.error(path, "needs uri, prefixRewrite, authority, scheme or port", code="required")
    check_one_of(context, path, {"port": redirect.port is not None, "derivePort": redirect.derive_port is not None})
    check_one_of(context, path, {"uri": bool(redirect.uri), "prefixRewrite": bool(redirect.prefix_rewrite)})
    if redirect.port is not None and not 1 <= redirect.port <= 65535:
        context.error(f"{path}.port", f"{redirect.port} is no port")
    if redirect.redirect_code not in (None, 0, *_REDIRECT_CODES):
        codes = ", ".join(map(str, _REDIRECT_CODES))
        context.error(f"{path}.redirectCode", f"{redirect.redirect_code} is no redirect", f"one of {codes}")
    if redirect.scheme and redirect.scheme not in ("http", "https"):
        context.error(f"{path}.scheme", f"{redirect.scheme!r} is no scheme", "http or https")
    prefixes = [match.uri is not None and match.uri.prefix is not None for match in route.match]
    if redirect.prefix_rewrite and not (prefixes and all(prefixes)):
        context.error(f"{path}.prefixRewrite", "needs a uri prefix in every match of the route")


def _check_direct_response(context: Context, path: str, response: HTTPDirectResponse) -> None:
    _check_status(context, f"{path}.status", response.status)
    if response.body is None:
        return
    text, raw = response.body.string, response.body.bytes
    check_one_of(context, f"{path}.body", {"string": text is not None, "bytes": raw is not None})
    size = len(text.encode() if text is not None else raw or b"")
    if size > _BODY_MOST:
        context.error(f"{path}.body", f"{size} bytes, at most 1 MiB are allowed")
    elif size > _BODY_WARN:
        context.warn(f"{path}.body", f"{size} bytes in every copy of the configuration", "100 KiB is plenty")


def _check_status(context: Context, path: str, status: int) -> None:
    if not 200 <= status <= 600:
        context.error(path, f"{status} is no final HTTP status", "from 200 to 599")


def _check_rewrite(context: Context, path: str, rewrite: HTTPRewrite) -> None:
    regex = rewrite.uri_regex_rewrite
    if not rewrite.uri and not rewrite.authority and regex is None:
        context.error(path, "needs uri, authority or uriRegexRewrite", code="required")
    if regex is None:
        return
    here = f"{path}.uriRegexRewrite"
    if rewrite.uri:
        context.error(here, "uri and uriRegexRewrite exclude each other")
    for name, value in (("match", regex.match), ("rewrite", regex.rewrite)):
        if not value:
            context.error(f"{here}.{name}", "must not be empty", code="required")
    if regex.match:
        check_regex(context, f"{here}.match", regex.match)


def _check_delay(context: Context, path: str, delay: FaultDelay) -> None:
    if delay.exponential_delay is not None:
        context.error(f"{path}.exponentialDelay", "is not supported, in Istio neither", "use fixedDelay")
    elif delay.fixed_delay is None:
        context.error(f"{path}.fixedDelay", "required field is missing", code="required")
    if delay.percent is not None:
        context.warn(f"{path}.percent", "deprecated", "use percentage: {value: ...}", code="deprecated")
        if not 0 <= delay.percent <= 100:
            context.error(f"{path}.percent", f"{delay.percent} is no percentage")
    if not delay.percentage and not delay.percent:
        _warn_no_percentage(context, path)


def _check_abort(context: Context, path: str, abort: FaultAbort) -> None:
    statuses = {
        "httpStatus": abort.http_status is not None,
        "grpcStatus": abort.grpc_status is not None,
        "http2Error": abort.http2_error is not None,
    }
    check_one_of(context, path, statuses, required=True)
    if abort.http_status is not None:
        _check_status(context, f"{path}.httpStatus", abort.http_status)
    if abort.grpc_status is not None and abort.grpc_status not in GRPC_STATUS:
        hint = did_you_mean(abort.grpc_status, GRPC_STATUS) or "for example UNAVAILABLE"
        context.error(f"{path}.grpcStatus", f"{abort.grpc_status[:40]!r} is no gRPC status", hint)
    if abort.http2_error is not None:
        context.error(f"{path}.http2Error", "is not supported, in Istio neither", "use httpStatus or grpcStatus")
    if not abort.percentage:
        _warn_no_percentage(context, path)


def _warn_no_percentage(context: Context, path: str) -> None:
    context.warn(
        path, "no percentage: no request is affected", "percentage: {value: 100} affects all", code="no-effect"
    )


def _check_cors(context: Context, path: str, cors: CorsPolicy) -> None:
    for index, method in enumerate(cors.allow_methods):
        if method not in _METHODS:
            hint = did_you_mean(method, _METHODS)
            context.error(f"{path}.allowMethods[{index}]", f"{method[:40]!r} is no HTTP method", hint)
    for field, names in (("allowHeaders", cors.allow_headers), ("exposeHeaders", cors.expose_headers)):
        for index, name in enumerate(names):
            check_header_name(context, f"{path}.{field}[{index}]", name, pseudo=False)
    for index, origin in enumerate(cors.allow_origins):
        here = f"{path}.allowOrigins[{index}]"
        values = {"exact": origin.exact, "prefix": origin.prefix, "regex": origin.regex}
        check_one_of(context, here, {name: value is not None for name, value in values.items()}, required=True)
        if origin.regex is not None:
            check_regex(context, f"{here}.regex", origin.regex)
    if cors.allow_origin:
        context.warn(f"{path}.allowOrigin", "deprecated", "use allowOrigins", code="deprecated")
    if cors.max_age is not None and cors.max_age % 1:
        context.warn(f"{path}.maxAge", "browsers count whole seconds; the rest is cut off")
