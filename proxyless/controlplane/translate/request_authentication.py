"""RequestAuthentication into Envoy's jwt_authn filter (istio-semantics 3).

Keys that would have to be fetched (`jwksUri`, or discovery from the issuer) are not fetched here: such a rule gets a key that
nobody holds, so every token of that issuer is refused with 401, as istiod does when it cannot fetch them.
"""

from __future__ import annotations

from collections.abc import Mapping

from proxyless.controlplane.manifest.model import JWTRule
from proxyless.controlplane.translate.build import Tree, extension
from proxyless.controlplane.translate.world import World, selects

__all__ = ["jwt_filter", "jwt_rules_for"]

# Envoy refuses an empty key set. The x coordinate of this P-256 point is SHA-256("proxyless: nobody holds this key/1") and y
# the smaller of its two solutions: chosen by a hash, so its private half is unknown to everyone.
KEY_OF_NOBODY = (
    '{"keys":[{"kty":"EC","crv":"P-256","alg":"ES256","kid":"nobody",'
    '"x":"ZfkC5oTkIY0ZRxX18g4L-5vnA-SNMFx6lcfMyaN-78w","y":"YLa2m8AxIkbDkWVBZLxWb8gUamVMcJCPn6NaKECAT-s"}]}'
)
_ALWAYS_SPLIT = ("permission", "scope")


def jwt_rules_for(world: World, namespace: str, labels: Mapping[str, str]) -> tuple[JWTRule, ...]:
    """The rules of all policies that select the workload, merged and sorted by issuer."""
    scopes = {namespace, world.mesh.root_namespace}
    rules = [
        rule
        for policy in world.request_authentications
        if policy.namespace in scopes
        and policy.spec.target_ref is None
        and not policy.spec.target_refs
        and selects(policy.spec.selector, labels)
        for rule in policy.spec.jwt_rules
    ]
    return tuple(sorted(rules, key=lambda rule: rule.issuer))


def jwt_filter(rules: tuple[JWTRule, ...]) -> list[Tree]:
    """The filter, or nothing when there are no rules. A token that is missing passes; the policy decides about that."""
    if not rules:
        return []
    providers = {f"origins-{index}": _provider(rule) for index, rule in enumerate(rules)}
    return [
        extension(
            "envoy.filters.http.jwt_authn",
            "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            {
                "providers": providers,
                "rules": [{"match": {"prefix": "/"}, "requires": _requirement(list(providers))}],
                "bypass_cors_preflight": True,
            },
        )
    ]


def _requirement(names: list[str]) -> Tree:
    """One of them verifies; or each is either right or missing."""

    def or_missing(name: str) -> Tree:
        return {"requires_any": {"requirements": [{"provider_name": name}, {"allow_missing": {}}]}}

    if len(names) == 1:
        return or_missing(names[0])
    every = {"requires_all": {"requirements": [or_missing(name) for name in names]}}
    return {"requires_any": {"requirements": [*({"provider_name": name} for name in names), every]}}


def _provider(rule: JWTRule) -> Tree:
    split = sorted({*_ALWAYS_SPLIT, *rule.space_delimited_claims})
    return {
        "issuer": rule.issuer,
        "audiences": list(rule.audiences),
        "local_jwks": {"inline_string": rule.jwks or KEY_OF_NOBODY},
        "forward": rule.forward_original_token,
        "forward_payload_header": rule.output_payload_to_header,
        "claim_to_headers": [
            {"header_name": claim.header, "claim_name": claim.claim} for claim in rule.output_claim_to_headers
        ],
        "from_headers": [{"name": header.name, "value_prefix": header.prefix} for header in rule.from_headers],
        "from_params": list(rule.from_params),
        "from_cookies": list(rule.from_cookies),
        "payload_in_metadata": "payload",
        "normalize_payload_in_metadata": {"space_delimited_claims": split},
    }
