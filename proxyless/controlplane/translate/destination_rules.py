"""DestinationRules: which one applies to a client and a service, and what it says for one port and subset."""

from __future__ import annotations

from dataclasses import dataclass, replace

from proxyless.controlplane import hosts
from proxyless.controlplane.manifest.model import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    DestinationRule,
    LoadBalancerSettings,
    OutlierDetection,
    Resource,
    RetryBudget,
    Subset,
    TrafficPolicy,
)
from proxyless.controlplane.registry import Service, exported
from proxyless.controlplane.translate.node import ProxyNode
from proxyless.controlplane.translate.world import World, selects

__all__ = ["Policy", "Rule", "policy_for", "rule_for"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One or several DestinationRules for the same host, merged. `name` and `namespace` are those of the oldest."""

    name: str
    namespace: str
    policy: TrafficPolicy | None
    subsets: tuple[Subset, ...]
    selects_workload: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A traffic policy for one port and subset, with every inheritance resolved; None is "as by default"."""

    load_balancer: LoadBalancerSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTLSSettings | None = None
    retry_budget: RetryBudget | None = None


def rule_for(world: World, node: ProxyNode, service: Service) -> Rule | None:
    """The rule that governs calls of this client to this service (istio-semantics 5.1).

    The client's namespace is asked first, then the service's, then the root namespace; the first that has a rule decides.
    """
    root = world.mesh.root_namespace
    levels = [(node.namespace, "private" if node.namespace == root else "own")]
    levels += [(service.namespace, "exported"), (root, "exported")]
    for owner, which in levels:
        found = _rules(world, node, owner, which).best(service.host)
        if found is not None:
            return found
    return None


def _rules(world: World, node: ProxyNode, owner: str, which: str) -> _Rules:
    key = ("rule_for", node.namespace, node.labels, owner, which)
    return world.remember(key, lambda: _Rules(world, node, owner, which))


class _Rules:
    """The rules of one namespace that a client may go by, by host."""

    def __init__(self, world: World, node: ProxyNode, owner: str, which: str) -> None:
        self._by_host: dict[str, list[Resource[DestinationRule]]] = {}
        for rule in world.destination_rules:
            if rule.namespace == owner and _usable(world, node, rule, which):
                self._by_host.setdefault(hosts.expand(rule.spec.host, owner), []).append(rule)
        self._hosts = hosts.HostSet(self._by_host)

    def best(self, host: str) -> Rule | None:
        """The rules for the host itself, else for the longest wildcard."""
        found = self._hosts.covering(host)
        if found is None:
            return None
        rules = self._by_host[found]
        selecting = [rule for rule in rules if rule.spec.workload_selector is not None]
        if selecting:  # replaces the others, their subsets included
            oldest = selecting[0]
            return Rule(oldest.name, oldest.namespace, oldest.spec.traffic_policy, oldest.spec.subsets, True)
        return _merged(rules)


def _usable(world: World, node: ProxyNode, rule: Resource[DestinationRule], which: str) -> bool:
    """``own``: every rule; ``private``: those that are exported nowhere; ``exported``: those that the client's namespace
    sees. A rule with a workload selector counts only for the workloads of its namespace that it selects."""
    spec = rule.spec
    if spec.workload_selector is not None and not (
        rule.namespace == node.namespace and selects(spec.workload_selector, node.label_map)
    ):
        return False
    if which == "own":
        return True
    if which == "private":
        return spec.export_to == (".",)
    default = tuple(world.mesh.default_destination_rule_export_to)
    return exported(spec.export_to or default, rule.namespace, node.namespace)


def _merged(rules: list[Resource[DestinationRule]]) -> Rule:
    subsets: dict[str, Subset] = {}
    policy: TrafficPolicy | None = None
    for rule in rules:
        policy = policy if policy is not None else rule.spec.traffic_policy
        for subset in rule.spec.subsets:
            subsets.setdefault(subset.name, subset)
    return Rule(rules[0].name, rules[0].namespace, policy, tuple(subsets.values()))


def policy_for(world: World, rule: Rule | None, port: int, subset: Subset | None = None) -> Policy:
    """Settings for one service port (istio-semantics 5.2): a port-level block replaces what is above it as a whole, a
    subset overrides field by field."""
    result = _at_port(rule.policy if rule else None, port, Policy())
    if subset is not None and subset.traffic_policy is not None:
        result = _at_port(subset.traffic_policy, port, result)
    default = world.mesh.default_traffic_policy
    if default is not None:
        result = replace(
            result,
            connection_pool=result.connection_pool or default.connection_pool,
            outlier_detection=result.outlier_detection or default.outlier_detection,
        )
    return result


def _at_port(policy: TrafficPolicy | None, port: int, inherited: Policy) -> Policy:
    if policy is None:
        return inherited
    retry_budget = policy.retry_budget or inherited.retry_budget
    for setting in policy.port_level_settings:
        if setting.port is not None and setting.port.number == port:
            return Policy(
                load_balancer=setting.load_balancer,
                connection_pool=setting.connection_pool,
                outlier_detection=setting.outlier_detection,
                tls=setting.tls,
                retry_budget=retry_budget,
            )
    return Policy(
        load_balancer=policy.load_balancer or inherited.load_balancer,
        connection_pool=policy.connection_pool or inherited.connection_pool,
        outlier_detection=policy.outlier_detection or inherited.outlier_detection,
        tls=policy.tls or inherited.tls,
        retry_budget=retry_budget,
    )
