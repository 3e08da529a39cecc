"""`typed_per_filter_config` of route configurations, virtual hosts and routes: the most specific entry of a filter wins whole.

Acted on: fault injection and RBAC; what asks for a token or for external authorization denies. Other filters of Envoy are reported by `proxyless.xds.decode.unsupported`; a type that is
neither Envoy's nor Istio's is refused, unless it is marked optional.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from proxyless.core.rbac import Rbac
from proxyless.core.resources import Fault, Fraction
from proxyless.xds.decode.errors import FieldError, at
from proxyless.xds.decode.rbac import rbac_filter
from proxyless.xds.decode.values import duration, fraction, unwrap

__all__ = ["FAULT", "Overrides", "overrides"]

FAULT = "envoy.extensions.filters.http.fault.v3.HTTPFault"
RBAC_PER_ROUTE = "envoy.extensions.filters.http.rbac.v3.RBACPerRoute"
FILTER_CONFIG = "envoy.config.route.v3.FilterConfig"
_UNENFORCED = {
    "envoy.extensions.filters.http.jwt_authn.v3.PerRouteConfig": "JWT authentication",
    "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute": "external authorization",
}
_KNOWN_PREFIXES = ("envoy.extensions.filters.http.", "istio.", "io.istio.", "stats.")


@dataclass(frozen=True, slots=True)
class Overrides:
    """What is in force at one level. `rbac`: None disables the filter of that name."""

    fault: Fault | None = None
    rbac: Mapping[str, Rbac | None] = field(default_factory=lambda: MappingProxyType({}))


def overrides(message: Any, inherited: Overrides) -> Overrides:
    """`inherited` with the entries of this level put over it."""
    entries = message.typed_per_filter_config
    if not entries:
        return inherited
    fault, rbac = inherited.fault, dict(inherited.rbac)
    for name in sorted(entries):
        path = f"typed_per_filter_config[{name}]"
        kind, config, disabled, optional = _entry(entries[name])
        if kind == FAULT:
            fault = None if disabled else at(path, _fault, config)
        elif kind == RBAC_PER_ROUTE or (disabled and not kind and "rbac" in name):
            rbac[name] = None if disabled else at(path, _rbac_per_route, config)
        elif kind in _UNENFORCED:
            if not disabled and (
                config is None or not config.disabled
            ):  # also where the filter itself is off until now
                rbac[name] = Rbac.deny_all(f"{_UNENFORCED[kind]} is not supported")
        elif not kind.startswith(_KNOWN_PREFIXES) and not optional and not disabled:
            raise FieldError(path, f"no filter is known for type {kind!r}")
    return Overrides(fault, MappingProxyType(rbac))


def _entry(packed: Any) -> tuple[str, Any, bool, bool]:
    """Type, message, disabled and optional; the FilterConfig wrapper is taken off."""
    kind, config = unwrap(packed)
    if kind != FILTER_CONFIG or config is None:
        return kind, config, False, False
    kind, inner = unwrap(config.config)
    return kind, inner, config.disabled, config.is_optional


def _rbac_per_route(message: Any) -> Rbac | None:
    """Without `rbac` the filter is off for this route."""
    return at("rbac", rbac_filter, message.rbac) if message.HasField("rbac") else None


def _fault(message: Any) -> Fault | None:
    """None when the fault has a condition that we do not test: to inject it everywhere would be worse than nowhere."""
    if message.upstream_cluster or message.headers or message.downstream_nodes:
        return None
    delay, abort = message.delay, message.abort
    seconds = 0.0
    if delay.WhichOneof("fault_delay_secifier") == "fixed_delay":
        seconds = at("delay.fixed_delay", duration, delay.fixed_delay)
        if seconds <= 0:
            raise FieldError("delay.fixed_delay", "must be greater than 0")
    status, grpc_status = 0, None
    match abort.WhichOneof("error_type"):
        case "http_status":
            status = abort.http_status
            if not 200 <= status < 600:
                raise FieldError("abort.http_status", f"{status} is not within [200, 600)")
        case "grpc_status":
            grpc_status = abort.grpc_status
    return Fault(
        delay=seconds,
        delay_fraction=at("delay.percentage", fraction, delay.percentage) if seconds else Fraction(0),
        abort_status=status,
        abort_grpc_status=grpc_status,
        abort_fraction=at("abort.percentage", fraction, abort.percentage),
    )
