"""AuthorizationPolicy into Envoy RBAC filters (istio-semantics 1).

One filter for each of AUDIT, DENY and ALLOW, in that order, holding the policies of all resources. CUSTOM asks an external
service, which this release does not: what such a policy matches is denied, as istiod does when the provider is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from proxyless.controlplane.manifest.model import AuthorizationPolicy, Resource, Rule
from proxyless.controlplane.translate.build import Tree, extension
from proxyless.controlplane.translate.rbac_values import Principals, UnusableError, permissions, principals
from proxyless.controlplane.translate.world import World, selects

__all__ = ["http_filters", "network_filters", "policies_for"]

DRY_RUN = "istio.io/dry-run"

_HTTP = ("envoy.filters.http.rbac", "envoy.extensions.filters.http.rbac.v3.RBAC")
_NETWORK = ("envoy.filters.network.rbac", "envoy.extensions.filters.network.rbac.v3.RBAC")
_ACTIONS = {"AUDIT": "LOG", "DENY": "DENY", "ALLOW": "ALLOW"}
_ANY: Tree = {"any": True}


def policies_for(world: World, namespace: str, labels: Mapping[str, str]) -> tuple[Resource[AuthorizationPolicy], ...]:
    """The policies that select a workload: those of its namespace and of the root namespace. Policies attached to a
    Gateway, Service or ServiceEntry resource select no workload."""
    scopes = {namespace, world.mesh.root_namespace}
    return tuple(
        policy
        for policy in world.authorization_policies
        if policy.namespace in scopes
        and policy.spec.target_ref is None
        and not policy.spec.target_refs
        and selects(policy.spec.selector, labels)
    )


def http_filters(world: World, policies: Sequence[Resource[AuthorizationPolicy]]) -> list[Tree]:
    """The HTTP filters of these policies, in the order in which they run."""
    return [extension(*_HTTP, tree) for tree in _filters(world, policies, tcp=False)]


def network_filters(world: World, policies: Sequence[Resource[AuthorizationPolicy]]) -> list[Tree]:
    """The same for a connection that is not HTTP."""
    return [extension(*_NETWORK, {"stat_prefix": "tcp.", **tree}) for tree in _filters(world, policies, tcp=True)]


def _filters(world: World, policies: Sequence[Resource[AuthorizationPolicy]], tcp: bool) -> Iterable[Tree]:
    custom = [policy for policy in policies if policy.spec.action == "CUSTOM"]
    if custom:
        yield {"rules": {"action": "DENY", "policies": _policies(world, custom, tcp)}}
    for action in ("AUDIT", "DENY", "ALLOW"):
        of_action = [policy for policy in policies if policy.spec.action == action]
        dry = [policy for policy in of_action if action != "AUDIT" and _is_dry_run(policy)]
        enforced = [policy for policy in of_action if policy not in dry]
        if enforced or dry:
            yield _filter(world, action, enforced, dry, tcp)


def _is_dry_run(policy: Resource[AuthorizationPolicy]) -> bool:
    return policy.annotations.get(DRY_RUN, "").lower() == "true"


def _filter(
    world: World,
    action: str,
    enforced: Sequence[Resource[AuthorizationPolicy]],
    dry: Sequence[Resource[AuthorizationPolicy]],
    tcp: bool,
) -> Tree:
    result: Tree = {"shadow_rules_stat_prefix": "istio_dry_run_allow_"}
    if enforced:
        result["rules"] = {"action": _ACTIONS[action], "policies": _policies(world, enforced, tcp)}
    if dry:
        result["shadow_rules"] = {"action": _ACTIONS[action], "policies": _policies(world, dry, tcp)}
        result["shadow_rules_stat_prefix"] = f"istio_dry_run_{action.lower()}_"
    return result


def _policies(world: World, policies: Sequence[Resource[AuthorizationPolicy]], tcp: bool) -> Tree:
    result: Tree = {}
    for policy in policies:
        name = f"ns[{policy.namespace}]-policy[{policy.name}]"
        suffix = ""
        if policy.spec.action == "CUSTOM":
            provider = policy.spec.provider.name if policy.spec.provider else ""
            name, suffix = f"istio-ext-authz-{provider}-{name}", "-deny-due-to-bad-CUSTOM-action"
        if not policy.spec.rules:
            # Never matches, but must be seen: with ALLOW it denies everything.
            result[f"{name}-rule[0]{suffix}"] = {
                "permissions": [{"not_rule": _ANY}],
                "principals": [{"not_id": _ANY}],
            }
        for index, rule in enumerate(policy.spec.rules):
            compiled = _rule(world, policy, rule, tcp)
            if compiled is not None:
                result[f"{name}-rule[{index}]{suffix}"] = compiled
    return result


def _rule(world: World, policy: Resource[AuthorizationPolicy], rule: Rule, tcp: bool) -> Tree | None:
    """One RBAC policy; None when the rule has to go. What cannot be evaluated (HTTP fields on a TCP port, a bad address)
    narrows: an ALLOW rule goes as a whole, of the others only the field does."""
    lenient = policy.spec.action != "ALLOW"
    context = Principals(world, policy.namespace)
    try:
        who = [principals(context, entry.source, rule.when, tcp, lenient) for entry in rule.from_] or [
            principals(context, None, rule.when, tcp, lenient)
        ]
        what = [permissions(entry.operation, rule.when, tcp, lenient) for entry in rule.to] or [
            permissions(None, rule.when, tcp, lenient)
        ]
    except UnusableError:
        return None
    return {
        "permissions": [{"and_rules": {"rules": rules or [_ANY]}} for rules in what],
        "principals": [{"and_ids": {"ids": ids or [_ANY]}} for ids in who],
    }
