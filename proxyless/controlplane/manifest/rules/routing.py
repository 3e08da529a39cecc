"""VirtualService."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import Final

from proxyless.controlplane import hosts
from proxyless.controlplane.manifest.context import Context, child_path
from proxyless.controlplane.manifest.hints import did_you_mean
from proxyless.controlplane.manifest.model import (
    Destination,
    HTTPMatchRequest,
    HTTPRetry,
    HTTPRoute,
    HTTPRouteDestination,
    RouteDestination,
    StringMatch,
    TCPRoute,
    TLSRoute,
    VirtualService,
)

from .actions import check_actions, check_header_operations
from .checks import (
    check_cidrs,
    check_export_to,
    check_header_name,
    check_labels,
    check_one_of,
    check_regex,
    duplicates,
    is_host,
    is_ip,
    is_namespace,
)
from .reach import Reach

__all__ = ["MESH", "RETRY_WORDS", "check_destination", "check_retry", "check_virtual_service"]

RETRY_WORDS: Final = (
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "envoy-ratelimited",
    "retriable-4xx",
    "refused-stream",
    "retriable-status-codes",
    "retriable-headers",
    "http3-post-connect-failure",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
)
_STATUS_CODES: Final = frozenset(str(int(status)) for status in HTTPStatus)
_CLAIM_PREFIX: Final = "@request.auth.claims"
MESH: Final = "mesh"


def check_virtual_service(context: Context, spec: VirtualService) -> None:
    is_delegate = not spec.hosts
    in_mesh = not spec.gateways or MESH in spec.gateways
    if is_delegate:
        _check_delegate(context, spec)
    else:
        _check_hosts(context, spec, in_mesh=in_mesh)
    for index, gateway in enumerate(spec.gateways):
        _check_gateway_name(context, f"spec.gateways[{index}]", gateway)
    if not (spec.http or spec.tls or spec.tcp):
        context.error("spec", "needs http, tls or tcp routes", code="required")
    for index, route in enumerate(spec.http):
        _check_http_route(context, f"spec.http[{index}]", route, is_delegate=is_delegate, in_mesh=in_mesh)
    for index, tls_route in enumerate(spec.tls):
        _check_tls_route(context, f"spec.tls[{index}]", tls_route, spec.hosts)
    for index, tcp_route in enumerate(spec.tcp):
        _check_tcp_route(context, f"spec.tcp[{index}]", tcp_route)
    check_export_to(context, spec.export_to)
    _warn_unreachable(context, spec.http)


def _check_delegate(context: Context, spec: VirtualService) -> None:
    if spec.gateways:
        context.error("spec.gateways", "a VirtualService without hosts is a delegate and has no gateways")
    for name, present in (("tls", spec.tls), ("tcp", spec.tcp)):
        if present:
            context.error(f"spec.{name}", "a VirtualService without hosts is a delegate and has http routes only")


def _check_hosts(context: Context, spec: VirtualService, *, in_mesh: bool) -> None:
    good = True
    for index, host in enumerate(spec.hosts):
        path = f"spec.hosts[{index}]"
        if host == "*" and in_mesh:
            context.error(path, "'*' is not allowed in the mesh", "name the hosts, or list gateways without 'mesh'")
            good = False
        elif not is_host(host, wildcard=True) and not is_ip(host):
            context.error(path, f"{host[:80]!r} is no host name", "a star is allowed at the beginning only")
            good = False
    if not good:
        return
    for index, other in _overlaps(spec.hosts):
        context.error(f"spec.hosts[{index}]", f"{spec.hosts[index]!r} overlaps with {other!r}")


def _overlaps(names: Sequence[str]) -> Iterator[tuple[int, str]]:
    """(index, other) where a host is covered by another one of the list; of two equal ones the second."""
    seen: set[str] = set()
    wildcards = hosts.HostSet(name for name in names if hosts.is_wildcard(name))
    for index, name in enumerate(names):
        if name in seen:
            yield index, name
        elif not hosts.is_wildcard(name) or len(name) > 1:
            strictly_wider = wildcards.covering(f"*{name[2:]}" if hosts.is_wildcard(name) else name)
            if strictly_wider is not None:
                yield index, strictly_wider
        seen.add(name)


def _check_gateway_name(context: Context, path: str, gateway: str) -> None:
    namespace, slash, name = gateway.rpartition("/")
    if slash and namespace != "." and not is_namespace(namespace):
        context.error(path, f"{namespace!r} is no namespace", "namespace/name, name, or mesh")
    elif not is_host(name, wildcard=False):
        context.error(path, f"{gateway!r} is no gateway name", "namespace/name, name, or mesh")


def _check_http_route(context: Context, path: str, route: HTTPRoute, *, is_delegate: bool, in_mesh: bool) -> None:
    chosen = {
        "route": bool(route.route),
        "redirect": route.redirect is not None,
        "directResponse": route.direct_response is not None,
        "delegate": route.delegate is not None,
    }
    check_one_of(context, path, chosen, required=True)
    if is_delegate and route.delegate is not None:
        context.error(f"{path}.delegate", "a delegate cannot delegate again")
    for index, match in enumerate(route.match):
        _check_match(context, f"{path}.match[{index}]", match, in_mesh=in_mesh)
    _check_http_destinations(context, f"{path}.route", route.route)
    check_actions(context, path, route)
    if route.retries is not None:
        check_retry(context, f"{path}.retries", route.retries)
    if route.mirror is not None:
        check_destination(context, f"{path}.mirror", route.mirror)
        if route.mirrors:
            context.error(f"{path}.mirrors", "mirror and mirrors exclude each other")
    for index, mirror in enumerate(route.mirrors):
        check_destination(context, f"{path}.mirrors[{index}].destination", mirror.destination)
    if route.mirror_percent is not None:
        context.warn(f"{path}.mirrorPercent", "deprecated", "use mirrorPercentage: {value: ...}", code="deprecated")
        if route.mirror_percent > 100:
            context.error(f"{path}.mirrorPercent", "more than 100")


def _check_match(context: Context, path: str, match: HTTPMatchRequest, *, in_mesh: bool) -> None:
    if match.uri is not None:
        _check_string_match(context, f"{path}.uri", match.uri, prefix_may_be_empty=True)
    for name, value in (("scheme", match.scheme), ("method", match.method), ("authority", match.authority)):
        if value is not None:
            _check_string_match(context, f"{path}.{name}", value)
    for field, headers in (("headers", match.headers), ("withoutHeaders", match.without_headers)):
        for name, value in headers.items():
            here = child_path(f"{path}.{field}", name)
            if name.startswith(_CLAIM_PREFIX):
                if in_mesh:
                    context.error(here, "claims can be matched at gateways only", "list gateways without 'mesh'")
                else:
                    reason = "accepted, not acted on by proxyless"
                    context.warn(here, reason, "tokens are not read: this never matches", code="unsupported")
            else:
                check_header_name(context, here, name)
                _warn_pseudo_header(context, here, name)
            _check_string_match(context, here, value, star_is_present=True)
    for name, value in match.query_params.items():
        _check_string_match(context, child_path(f"{path}.queryParams", name), value, star_is_present=True)
    _check_where(context, path, match.port, match.source_labels, match.gateways)


def _warn_pseudo_header(context: Context, path: str, name: str) -> None:
    if name.lower() in ("uri", "scheme", "method", "authority"):
        context.warn(path, f"a header match on {name!r} is ignored", f"use the match's own field {name.lower()}")


def _check_where(
    context: Context, path: str, port: int | None, labels: dict[str, str] | object, gateways: Iterable[str]
) -> None:
    if port is not None and not 1 <= port <= 65535:
        context.error(f"{path}.port", f"{port} is no port", "from 1 to 65535")
    if isinstance(labels, dict):
        check_labels(context, f"{path}.sourceLabels", labels)
    for index, gateway in enumerate(gateways):
        _check_gateway_name(context, f"{path}.gateways[{index}]", gateway)


def _check_string_match(
    context: Context, path: str, match: StringMatch, *, prefix_may_be_empty: bool = False, star_is_present: bool = False
) -> None:
    values = {"exact": match.exact, "prefix": match.prefix, "regex": match.regex}
    check_one_of(context, path, {name: value is not None for name, value in values.items()})
    if match.prefix == "" and not prefix_may_be_empty:
        context.error(f"{path}.prefix", "must not be empty")
    if match.regex == "":
        context.error(f"{path}.regex", "must not be empty")
    elif match.regex is not None and not (star_is_present and match.regex == "*"):
        check_regex(context, f"{path}.regex", match.regex)


def _check_http_destinations(context: Context, path: str, routes: Sequence[HTTPRouteDestination]) -> None:
    for index, route in enumerate(routes):
        check_destination(context, f"{path}[{index}].destination", route.destination)
        if route.headers is not None:
            check_header_operations(context, f"{path}[{index}].headers", route.headers)
    _check_weights(context, path, [route.weight for route in routes])


def _check_destinations(context: Context, path: str, routes: Sequence[RouteDestination]) -> None:
    if not routes:
        context.error(path, "needs at least one destination", code="required")
    for index, route in enumerate(routes):
        check_destination(context, f"{path}[{index}].destination", route.destination)
    _check_weights(context, path, [route.weight for route in routes])


def _check_weights(context: Context, path: str, weights: Sequence[int | None]) -> None:
    for index, weight in enumerate(weights):
        if weight is not None and weight < 0:
            context.error(f"{path}[{index}].weight", f"{weight} is negative")
    if len(weights) > 1 and sum(weight or 0 for weight in weights) == 0:
        context.error(path, "the weights add up to 0", "a missing weight counts as 0")


def check_destination(context: Context, path: str, destination: Destination) -> None:
    host = destination.host
    if host and not is_host(host, wildcard=True) and not is_ip(host):
        hint = "the host is a service name, without namespace/" if "/" in host else ""
        context.error(f"{path}.host", f"{host[:80]!r} is no host name", hint)
    if destination.subset and (not is_host(destination.subset, wildcard=False) or "." in destination.subset):
        context.error(f"{path}.subset", f"{destination.subset[:80]!r} is no subset name", "letters, digits and '-'")


def check_retry(context: Context, path: str, retry: HTTPRetry) -> None:
    if (retry.attempts or 0) < 0:
        context.error(f"{path}.attempts", f"{retry.attempts} is negative", "0 turns retries off")
    others = {
        "perTryTimeout": retry.per_try_timeout is not None,
        "retryOn": bool(retry.retry_on),
        "retryRemoteLocalities": retry.retry_remote_localities is not None,
        "retryIgnorePreviousHosts": retry.retry_ignore_previous_hosts is not None,
        "backoff": retry.backoff is not None,
    }
    if not retry.attempts and any(others.values()):
        named = next(name for name, is_set in others.items() if is_set)
        hint = "attempts counts retries; 0 or nothing turns them off"
        context.error(path, f"{named} has no meaning without attempts", hint)
    if retry.retry_on:
        _check_retry_on(context, f"{path}.retryOn", retry.retry_on)


def _check_retry_on(context: Context, path: str, text: str) -> None:
    for word in text.split(","):
        if word in RETRY_WORDS or word in _STATUS_CODES:
            continue
        if not word.strip():
            context.error(path, "an empty part in the list", "words separated by single commas")
        elif word != word.strip() and word.strip() in RETRY_WORDS:
            context.error(path, f"blanks around {word.strip()!r}", "words separated by single commas, without blanks")
        else:
            hint = did_you_mean(word.strip(), RETRY_WORDS) or f"words: {', '.join(RETRY_WORDS[:8])}, or a status code"
            context.error(path, f"unknown condition {word.strip()[:40]!r}", hint)


def _check_tls_route(context: Context, path: str, route: TLSRoute, own_hosts: Sequence[str]) -> None:
    own = hosts.HostSet(own_hosts)
    for number, match in enumerate(route.match):
        here = f"{path}.match[{number}]"
        for index, name in enumerate(match.sni_hosts):
            sni = f"{here}.sniHosts[{index}]"
            if is_ip(name):
                context.warn(sni, f"{name} is an address: no client sends it as SNI")
            elif not is_host(name, wildcard=True):
                context.error(sni, f"{name[:80]!r} is no host name")
            elif own_hosts and own.covering(name) is None:
                context.error(sni, f"{name!r} is not covered by spec.hosts")
        check_cidrs(context, f"{here}.destinationSubnets", match.destination_subnets)
        _check_where(context, here, match.port, match.source_labels, match.gateways)
    _check_destinations(context, f"{path}.route", route.route)


def _check_tcp_route(context: Context, path: str, route: TCPRoute) -> None:
    for index, match in enumerate(route.match):
        here = f"{path}.match[{index}]"
        check_cidrs(context, f"{here}.destinationSubnets", match.destination_subnets)
        if match.source_subnet:
            check_cidrs(context, f"{here}.sourceSubnet", [match.source_subnet])
        _check_where(context, here, match.port, match.source_labels, match.gateways)
    _check_destinations(context, f"{path}.route", route.route)


def _warn_unreachable(context: Context, routes: Sequence[HTTPRoute]) -> None:
    """Matches that an earlier one has taken already (first match wins)."""
    reach: Reach[str] = Reach()
    for number, route in enumerate(routes):
        if not route.match and number < len(routes) - 1:
            context.warn(
                f"spec.http[{number + 1}]",
                "never reached: the route before it has no match and takes everything",
                "first match wins: put it last",
                code="unreachable",
            )
            return
        for index, match in enumerate(route.match):
            path = f"spec.http[{number}].match[{index}]"
            taker = reach.taker(match)
            if taker is not None:
                reason = f"never reached: {taker} takes these requests before"
                context.warn(path, reason, "first match wins, prefixes are plain text", code="unreachable")
            reach.add(match, path)
    names = [route.name for route in routes if route.name]
    for index in duplicates(names):
        context.warn("spec.http", f"two routes are named {names[index]!r}")
