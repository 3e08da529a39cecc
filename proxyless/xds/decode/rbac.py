"""config.rbac.v3.RBAC -> `proxyless.core.rbac.Rbac`. What is not understood is refused, never skipped."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from proxyless.core.rbac import (
    Action,
    AddressKind,
    AddressRule,
    AndRule,
    AnyRule,
    AuthenticatedRule,
    DestinationPortRule,
    HeaderRule,
    NotRule,
    OrRule,
    Policy,
    Rbac,
    Rule,
    ServerNameRule,
    TemplateRule,
    UrlPathRule,
)
from proxyless.xds.decode.errors import FieldError, at, each
from proxyless.xds.decode.match import cidr, header_matcher, metadata_matcher, string_matcher, uri_template

__all__ = ["rbac_filter"]

_ACTIONS: tuple[Action, ...] = ("ALLOW", "DENY", "LOG")
_MAX_DEPTH = 64
_ADDRESSES: dict[str, AddressKind] = {
    "destination_ip": "destination",
    "direct_remote_ip": "direct_remote",
    "remote_ip": "remote",
    "source_ip": "source",
}


def rbac_filter(message: Any, *, network: bool = False) -> Rbac:
    """An HTTP (or network) RBAC filter configuration: `rules` and `shadow_rules`. Raises ValueError.

    Without `rules` the filter allows everything. `matcher` trees and CEL conditions are refused.
    """
    for name in ("matcher", "shadow_matcher"):
        if message.HasField(name):
            raise FieldError(name, "matcher trees are not supported")

    def rules(value: Any) -> Rbac:
        return _rules(value, network)

    shadow = at("shadow_rules", rules, message.shadow_rules) if message.HasField("shadow_rules") else None
    enforced = at("rules", rules, message.rules) if message.HasField("rules") else Rbac(None)
    return Rbac(enforced.action, enforced.policies, shadow, message.shadow_rules_stat_prefix)


def _rules(message: Any, network: bool) -> Rbac:
    if message.action >= len(_ACTIONS):
        raise FieldError("action", f"unknown action {message.action}")
    policies = tuple(
        at(f"policies[{name}]", partial(_policy, name, network), message.policies[name])
        for name in sorted(message.policies)
    )
    return Rbac(_ACTIONS[message.action], policies)


def _policy(name: str, network: bool, message: Any) -> Policy:
    for condition in ("condition", "checked_condition", "cel_config"):
        if condition in message.DESCRIPTOR.fields_by_name and message.HasField(condition):
            raise FieldError(condition, "CEL conditions are not supported")
    for field in ("permissions", "principals"):
        if not getattr(message, field):
            raise FieldError(field, "needs at least one entry")
    return Policy(
        name,
        each("permissions", lambda value: _permission(value, network, 0), message.permissions),
        each("principals", lambda value: _principal(value, network, 0), message.principals),
    )


def _permission(message: Any, network: bool, depth: int) -> Rule:
    def nested(value: Any) -> Rule:
        return _permission(value, network, depth + 1)

    kind = message.WhichOneof("rule")
    match kind:
        case "and_rules" | "or_rules":
            return _set(kind, getattr(message, kind).rules, "rules", nested, depth)
        case "not_rule":
            return NotRule(at(kind, _bounded(nested, depth), message.not_rule))
        case "destination_port":
            return DestinationPortRule(*at(kind, _port, message.destination_port))
        case "destination_port_range":
            return DestinationPortRule(*at(kind, _port_range, message.destination_port_range))
        case "requested_server_name":
            return ServerNameRule(at(kind, string_matcher, message.requested_server_name))
        case "uri_template":
            return _http(kind, network, lambda: TemplateRule(at(kind, uri_template, message.uri_template)))
    return _common(message, kind, network)


def _principal(message: Any, network: bool, depth: int) -> Rule:
    def nested(value: Any) -> Rule:
        return _principal(value, network, depth + 1)

    kind = message.WhichOneof("identifier")
    match kind:
        case "and_ids" | "or_ids":
            return _set(kind, getattr(message, kind).ids, "ids", nested, depth)
        case "not_id":
            return NotRule(at(kind, _bounded(nested, depth), message.not_id))
        case "authenticated":
            if not message.authenticated.HasField("principal_name"):
                return AuthenticatedRule(None)
            name = message.authenticated.principal_name
            return AuthenticatedRule(at("authenticated.principal_name", string_matcher, name))
    return _common(message, kind, network)


def _common(message: Any, kind: str | None, network: bool) -> Rule:
    """Kinds that permissions and principals share."""
    match kind:
        case "any":
            if not message.any:
                raise FieldError(kind, "must be true")
            return AnyRule()
        case "header":
            return _http(kind, network, lambda: HeaderRule(at(kind, header_matcher, message.header)))
        case "url_path":
            if message.url_path.WhichOneof("rule") != "path":
                raise FieldError(kind, "path is not set")
            return _http(kind, network, lambda: UrlPathRule(at("url_path.path", string_matcher, message.url_path.path)))
        case "destination_ip" | "direct_remote_ip" | "remote_ip" | "source_ip":
            return AddressRule(_ADDRESSES[kind], at(kind, cidr, getattr(message, kind)))
        case "metadata":
            return at(kind, metadata_matcher, message.metadata)
        case "sourced_metadata" if message.sourced_metadata.metadata_source == 0:
            return at(f"{kind}.metadata_matcher", metadata_matcher, message.sourced_metadata.metadata_matcher)
    raise FieldError(kind or "", "rule is unset" if kind is None else "this kind of rule is not supported")


def _set(kind: str, values: Any, field: str, nested: Callable[[Any], Rule], depth: int) -> Rule:
    if not values:
        raise FieldError(f"{kind}.{field}", "needs at least one entry")
    rules = each(f"{kind}.{field}", _bounded(nested, depth), values)
    if len(rules) == 1:
        return rules[0]
    return AndRule(rules) if kind.startswith("and") else OrRule(rules)


def _bounded(nested: Callable[[Any], Rule], depth: int) -> Callable[[Any], Rule]:
    if depth >= _MAX_DEPTH:
        raise ValueError(f"rules are nested more than {_MAX_DEPTH} deep")
    return nested


def _http(kind: str, network: bool, build: Callable[[], Rule]) -> Rule:
    if network:
        raise FieldError(kind, "a network RBAC filter sees no HTTP request")
    return build()


def _port(value: int) -> tuple[int, int]:
    if value > 65535:
        raise ValueError(f"port {value} is out of range")
    return value, value + 1


def _port_range(value: Any) -> tuple[int, int]:
    if not 0 <= value.start < value.end <= 65536:
        raise ValueError(f"port range [{value.start}, {value.end}) is not within [0, 65536)")
    return value.start, value.end
