"""AuthorizationPolicy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from proxyless.controlplane.manifest.context import Context
from proxyless.controlplane.manifest.model import (
    AuthorizationPolicy,
    Condition,
    Operation,
    PolicyTargetReference,
    Rule,
    Source,
    WorkloadSelector,
)
from proxyless.controlplane.manifest.model.common import json_name

from .checks import check_cidrs, check_header_name, check_selector, is_port

__all__ = ["check_authorization_policy", "check_targets"]

_DRY_RUN: Final = "istio.io/dry-run"
_SOURCE_FIELDS: Final = (
    "principals",
    "request_principals",
    "namespaces",
    "service_accounts",
    "ip_blocks",
    "remote_ip_blocks",
    "trust_domains",
)
_OPERATION_FIELDS: Final = ("hosts", "ports", "methods", "paths")
_PLAIN_KEYS: Final = frozenset(
    {
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "source.trustDomain",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "destination.ip",
        "destination.port",
        "connection.sni",
    }
)
_ADDRESS_KEYS: Final = ("source.ip", "remote.ip", "destination.ip")
_CLAIM_KEY: Final = re.compile(r"request\.auth\.claims(\[[^\[\]]+\])+")
_FILTER_KEY: Final = re.compile(r"experimental\.envoy\.filters\.[^\[\]]+(\[[^\[\]]+\])?")
_HEADER_KEY: Final = re.compile(r"request\.headers\[([^\[\]]+)\]")
# Targets of policies: (group, kind).
_TARGETS: Final = frozenset(
    {
        ("gateway.networking.k8s.io", "Gateway"),
        ("gateway.networking.k8s.io", "GatewayClass"),
        ("", "Service"),
        ("core", "Service"),
        ("networking.istio.io", "ServiceEntry"),
    }
)


def check_authorization_policy(context: Context, spec: AuthorizationPolicy) -> None:
    check_targets(context, spec.selector, spec.target_ref, spec.target_refs)
    _check_action(context, spec)
    for index, rule in enumerate(spec.rules):
        _check_rule(context, f"spec.rules[{index}]", rule, spec.action)


def check_targets(
    context: Context,
    selector: WorkloadSelector | None,
    target_ref: PolicyTargetReference | None,
    target_refs: Sequence[PolicyTargetReference],
) -> None:
    """selector, targetRef and targetRefs exclude each other; targets are of known kinds in the own namespace."""
    chosen = [
        name
        for name, present in (
            ("selector", selector is not None),
            ("targetRef", target_ref is not None),
            ("targetRefs", bool(target_refs)),
        )
        if present
    ]
    if len(chosen) > 1:
        context.error(f"spec.{chosen[1]}", f"excludes {chosen[0]}")
    if selector is not None:
        check_selector(context, "spec.selector", selector.match_labels)
    targets = [("spec.targetRef", target_ref)] if target_ref is not None else []
    targets += [(f"spec.targetRefs[{index}]", target) for index, target in enumerate(target_refs)]
    for path, target in targets:
        if (target.group, target.kind) not in _TARGETS:
            known = ", ".join(f"{kind} of {group or 'core'}" for group, kind in sorted(_TARGETS) if group != "core")
            context.error(f"{path}.kind", f"{target.kind[:60]!r} of {target.group[:60]!r} is no target", known)
        if target.namespace:
            context.error(f"{path}.namespace", "targets stand in the policy's own namespace", "leave it out")


def _check_action(context: Context, spec: AuthorizationPolicy) -> None:
    if spec.action == "CUSTOM":
        if spec.provider is None or not spec.provider.name:
            context.error("spec.provider", "CUSTOM needs the name of a provider of the mesh", code="required")
    elif spec.provider is not None:
        context.error("spec.provider", f"goes with action CUSTOM, not {spec.action}")
    if spec.action in ("DENY", "CUSTOM") and not spec.rules:
        hint = "a policy without rules never matches; rules: [{}] matches everything"
        context.error("spec.rules", f"{spec.action} needs rules", hint, code="required")
    elif spec.action == "ALLOW" and not spec.rules:
        reason = "no rules: every request to these workloads is denied that no other policy allows"
        context.report("notice", "allow-nothing", "spec", reason)
    dry_run = context.annotations.get(_DRY_RUN)
    if dry_run is not None:
        path = f'metadata.annotations["{_DRY_RUN}"]'
        if dry_run not in ("true", "false"):
            context.error(path, f"{dry_run[:40]!r} is no boolean", "'true' or 'false'")
        elif dry_run == "true" and spec.action == "AUDIT":
            context.error(path, "AUDIT has no dry run")


def _check_rule(context: Context, path: str, rule: Rule, action: str) -> None:
    for name, values in (("from", rule.from_), ("to", rule.to), ("when", rule.when)):
        if context.has(f"{path}.{name}") and not values:
            context.error(f"{path}.{name}", "an empty list", "leave it out to match everything", code="required")
    for index, origin in enumerate(rule.from_):
        _check_source(context, f"{path}.from[{index}].source", origin.source, action)
    for index, target in enumerate(rule.to):
        _check_operation(context, f"{path}.to[{index}].operation", target.operation)
    for index, condition in enumerate(rule.when):
        _check_condition(context, f"{path}.when[{index}]", condition, action)
    if action == "DENY" and any(_http_only(target.operation) for target in rule.to):
        reason = "on a TCP port the HTTP fields fall away and the rest of the rule denies"
        context.warn(f"{path}.to", reason, "name the ports too", code="tcp")


def _http_only(operation: Operation) -> bool:
    return not operation.ports and bool(
        operation.hosts or operation.methods or operation.paths or operation.not_hosts or operation.not_methods
        or operation.not_paths
    )  # fmt: skip


def _check_source(context: Context, path: str, source: Source, action: str) -> None:
    if source == Source():
        context.error(path, "an empty source", "name who may call, or leave from out", code="required")
    for attribute in _SOURCE_FIELDS:
        for name in (attribute, f"not_{attribute}"):
            values: tuple[str, ...] = getattr(source, name)
            here = f"{path}.{json_name(name)}"
            _check_values(context, here, values)
            if attribute.endswith("ip_blocks"):
                check_cidrs(context, here, [value for value in values if value])
            if name == "not_namespaces" and action == "CUSTOM" and values:
                context.error(here, "is not possible with CUSTOM")
    _check_service_accounts(context, path, source)
    for index, value in enumerate(source.principals + source.not_principals):
        if value.startswith("spiffe://"):
            name = "principals" if index < len(source.principals) else "notPrincipals"
            position = index if name == "principals" else index - len(source.principals)
            reason = "never matches: the prefix spiffe:// is added by Istio"
            context.warn(f"{path}.{name}[{position}]", reason, f"write {value.removeprefix('spiffe://')}")
    if source.remote_ip_blocks or source.not_remote_ip_blocks:
        name = "remoteIpBlocks" if source.remote_ip_blocks else "notRemoteIpBlocks"
        reason = "inside the mesh this is the last address of X-Forwarded-For, which any caller can write"
        context.warn(f"{path}.{name}", reason, "use ipBlocks, or this at a gateway only", code="forgeable")


def _check_service_accounts(context: Context, path: str, source: Source) -> None:
    for name, values in (
        ("serviceAccounts", source.service_accounts),
        ("notServiceAccounts", source.not_service_accounts),
    ):
        if values and any((source.principals, source.not_principals, source.namespaces, source.not_namespaces)):
            context.error(f"{path}.{name}", "excludes principals and namespaces", "two entries of from are ORed")
        for index, value in enumerate(values):
            if "*" in value or value.count("/") > 1 or value.startswith("/") or value.endswith("/"):
                hint = "account or namespace/account, without wildcards"
                context.error(f"{path}.{name}[{index}]", f"{value[:80]!r} is no service account", hint)


def _check_operation(context: Context, path: str, operation: Operation) -> None:
    if operation == Operation():
        context.error(path, "an empty operation", "name what may be called, or leave to out", code="required")
    for attribute in _OPERATION_FIELDS:
        for name in (attribute, f"not_{attribute}"):
            values: tuple[str, ...] = getattr(operation, name)
            here = f"{path}.{json_name(name)}"
            _check_values(context, here, values)
            for index, value in enumerate(values):
                if attribute == "ports":
                    _check_port(context, f"{here}[{index}]", value)
                elif attribute == "paths":
                    _check_path(context, f"{here}[{index}]", value)
                elif _has_literal_star(value):
                    _warn_star(context, f"{here}[{index}]", value)


def _check_values(context: Context, path: str, values: Sequence[str]) -> None:
    for index, value in enumerate(values):
        if not value:
            context.error(f"{path}[{index}]", "must not be empty", code="required")


def _check_port(context: Context, path: str, value: str) -> None:
    if value and not is_port(value, lowest=0):
        context.error(path, f"{value[:40]!r} is no port", 'a number in quotes, for example "8080"')


def _check_path(context: Context, path: str, value: str) -> None:
    if "{" not in value and "}" not in value:
        if _has_literal_star(value):
            _warn_star(context, path, value)
        return
    rest = value.replace("{**}", "\0").replace("{*}", "\1")
    operators = [character for character in rest if character in "\0\1"]
    if not operators:
        return
    if "*" in rest:
        context.error(path, "a template has no other stars than {*} and {**}")
    elif "{" in rest or "}" in rest:
        context.error(path, "a brace that is no part of {*} or {**}")
    elif "\0" in operators[:-1]:
        context.error(path, "{**} must be the last operator, and stand once")
    elif any(len(segment) > 1 and ("\0" in segment or "\1" in segment) for segment in rest.split("/")):
        context.error(path, "{*} and {**} stand for whole segments", "for example /v1/{*}/items")


def _has_literal_star(value: str) -> bool:
    """A star that is compared as a character: only one leading or trailing star is a wildcard."""
    inner = value[1:] if value.startswith("*") else value.removesuffix("*")
    return "*" in inner


def _warn_star(context: Context, path: str, value: str) -> None:
    reason = f"{value[:60]!r}: only a leading or a trailing star is a wildcard; this one is a literal character"
    context.warn(path, reason, "for one segment of a path write {*}", code="literal-star")


def _check_condition(context: Context, path: str, condition: Condition, action: str) -> None:
    key = condition.key
    if not condition.values and not condition.not_values:
        context.error(path, "needs values or notValues", code="required")
    for name, values in (("values", condition.values), ("notValues", condition.not_values)):
        _check_values(context, f"{path}.{name}", values)
        if key in _ADDRESS_KEYS:
            check_cidrs(context, f"{path}.{name}", [value for value in values if value])
        if key == "destination.port":
            for index, value in enumerate(values):
                _check_port(context, f"{path}.{name}[{index}]", value)
    if key == "source.namespace" and condition.not_values and action == "CUSTOM":
        context.error(f"{path}.notValues", "is not possible with CUSTOM")
    if header := _HEADER_KEY.fullmatch(key):
        check_header_name(context, f"{path}.key", header[1])
    elif key and key not in _PLAIN_KEYS and not _CLAIM_KEY.fullmatch(key) and not _FILTER_KEY.fullmatch(key):
        hint = "for example source.ip, request.headers[x-a], request.auth.claims[iss]"
        context.error(f"{path}.key", f"unknown key {key[:60]!r}", hint)
    if _FILTER_KEY.fullmatch(key) and not key.endswith("]"):
        reason = "names no key of the filter's metadata, so the condition is as if it were not there"
        context.warn(f"{path}.key", reason, "write experimental.envoy.filters.<filter>[<key>]")
    if key.startswith("request.auth."):
        reason = "accepted, not acted on by proxyless"
        context.warn(f"{path}.key", reason, "tokens are not read: there is never a value", code="unsupported")
    if key == "remote.ip":
        reason = "inside the mesh this is the last address of X-Forwarded-For, which any caller can write"
        context.warn(f"{path}.key", reason, "use source.ip, or this at a gateway only", code="forgeable")
