"""PeerAuthentication and RequestAuthentication."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from proxyless.controlplane.manifest.context import Context, child_path
from proxyless.controlplane.manifest.model import JWTRule, PeerAuthentication, RequestAuthentication

from .authorization import check_targets
from .checks import check_header_name, check_selector

__all__ = ["check_peer_authentication", "check_request_authentication"]


def check_peer_authentication(context: Context, spec: PeerAuthentication) -> None:
    path = "spec.portLevelMtls"
    if spec.selector is not None:
        check_selector(context, "spec.selector", spec.selector.match_labels)
    if context.has(path):
        if not spec.port_level_mtls:
            context.error(path, "an empty mapping", "leave it out", code="required")
        elif spec.selector is None or not spec.selector.match_labels:
            context.error(path, "needs a selector", "ports are those of selected workloads")
    for port in spec.port_level_mtls:
        if not 1 <= port <= 65535:
            context.error(child_path(path, str(port)), f"{port} is no port", "from 1 to 65535")


def check_request_authentication(context: Context, spec: RequestAuthentication) -> None:
    check_targets(context, spec.selector, spec.target_ref, spec.target_refs)
    for index, rule in enumerate(spec.jwt_rules):
        _check_jwt_rule(context, f"spec.jwtRules[{index}]", rule)


def _check_jwt_rule(context: Context, path: str, rule: JWTRule) -> None:
    if not rule.issuer:
        context.error(f"{path}.issuer", "required field is missing", code="required")
    for field, values in (
        ("audiences", rule.audiences),
        ("fromParams", rule.from_params),
        ("fromCookies", rule.from_cookies),
        ("spaceDelimitedClaims", rule.space_delimited_claims),
    ):
        for index, value in enumerate(values):
            if not value:
                context.error(f"{path}.{field}[{index}]", "must not be empty", code="required")
    if rule.jwks_uri:
        _check_uri(context, f"{path}.jwksUri", rule.jwks_uri)
        if rule.jwks:
            context.error(f"{path}.jwks", "excludes jwksUri")
    if rule.jwks:
        _check_jwks(context, f"{path}.jwks", rule.jwks)
    for index, header in enumerate(rule.from_headers):
        if header.name:
            check_header_name(context, f"{path}.fromHeaders[{index}].name", header.name, pseudo=False)
    if rule.output_payload_to_header:
        check_header_name(context, f"{path}.outputPayloadToHeader", rule.output_payload_to_header, pseudo=False)
    for index, claim in enumerate(rule.output_claim_to_headers):
        if claim.header:
            check_header_name(context, f"{path}.outputClaimToHeaders[{index}].header", claim.header, pseudo=False)


def _check_uri(context: Context, path: str, uri: str) -> None:
    try:
        parts = urlsplit(uri)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        good = False
    if not good:
        context.error(path, f"{uri[:80]!r} is no http or https URL", "for example https://issuer.example/jwks.json")


def _check_jwks(context: Context, path: str, text: str) -> None:
    try:
        keys = json.loads(text)
    except (ValueError, RecursionError):
        context.error(path, "not JSON", 'a key set: {"keys": [...]}')
        return
    if not isinstance(keys, dict) or not isinstance(keys.get("keys"), list):
        context.error(path, "no key set", '{"keys": [...]}')
