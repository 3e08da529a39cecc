"""AuthorizationPolicy, PeerAuthentication and RequestAuthentication (istio.security.v1beta1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from .common import Duration, Limit, PolicyTargetReference, WorkloadSelector

__all__ = [
    "AuthorizationPolicy",
    "ClaimToHeader",
    "Condition",
    "JWTHeader",
    "JWTRule",
    "MutualTLS",
    "Operation",
    "PeerAuthentication",
    "PolicyProvider",
    "RequestAuthentication",
    "Rule",
    "RuleFrom",
    "RuleTo",
    "Source",
]

ServiceAccounts = Annotated[tuple[Annotated[str, Limit(320)], ...], Limit(16)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Fields are ANDed, values of a field ORed; ``not_*`` must not match. Value syntax: istio-semantics 1.4, 1.5."""

    principals: tuple[str, ...] = ()
    not_principals: tuple[str, ...] = ()
    request_principals: tuple[str, ...] = ()
    not_request_principals: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    not_namespaces: tuple[str, ...] = ()
    service_accounts: ServiceAccounts = ()
    not_service_accounts: ServiceAccounts = ()
    ip_blocks: tuple[str, ...] = ()
    not_ip_blocks: tuple[str, ...] = ()
    remote_ip_blocks: tuple[str, ...] = ()
    not_remote_ip_blocks: tuple[str, ...] = ()
    trust_domains: tuple[str, ...] = ()
    not_trust_domains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    hosts: tuple[str, ...] = ()
    not_hosts: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    not_ports: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    not_methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    not_paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    key: str
    values: tuple[str, ...] = ()
    not_values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleFrom:
    source: Source


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleTo:
    operation: Operation


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """``from`` AND ``to`` AND ``when``; an empty rule matches everything."""

    from_: Annotated[tuple[RuleFrom, ...], Limit(512)] = ()
    to: tuple[RuleTo, ...] = ()
    when: tuple[Condition, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyProvider:
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationPolicy:
    """No ``rules``: never matches (with ALLOW: denies everything)."""

    selector: WorkloadSelector | None = None
    target_ref: PolicyTargetReference | None = None
    target_refs: Annotated[tuple[PolicyTargetReference, ...], Limit(16)] = ()
    rules: Annotated[tuple[Rule, ...], Limit(512)] = ()
    action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"] = "ALLOW"
    provider: PolicyProvider | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MutualTLS:
    mode: Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"] = "UNSET"


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerAuthentication:
    """``port_level_mtls`` is by workload port."""

    selector: WorkloadSelector | None = None
    mtls: MutualTLS | None = None
    port_level_mtls: Mapping[int, MutualTLS] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class JWTHeader:
    name: str
    prefix: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimToHeader:
    header: str
    claim: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JWTRule:
    issuer: str = ""
    audiences: tuple[str, ...] = ()
    jwks_uri: str = ""
    jwks: str = ""
    from_headers: tuple[JWTHeader, ...] = ()
    from_params: tuple[str, ...] = ()
    output_payload_to_header: str = ""
    from_cookies: tuple[str, ...] = ()
    forward_original_token: bool = False
    output_claim_to_headers: tuple[ClaimToHeader, ...] = ()
    timeout: Duration | None = None
    space_delimited_claims: tuple[str, ...] = ()
    presence: Literal["UNSPECIFIED", "OPTIONAL", "REQUIRED"] = "UNSPECIFIED"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAuthentication:
    selector: WorkloadSelector | None = None
    target_ref: PolicyTargetReference | None = None
    target_refs: Annotated[tuple[PolicyTargetReference, ...], Limit(16)] = ()
    jwt_rules: Annotated[tuple[JWTRule, ...], Limit(4096)] = ()
