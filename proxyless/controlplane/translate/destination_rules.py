"""DestinationRules: which one applies to a client and a service, and what it says for one port and subset."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    memo = ("destination_rules", node.namespace, node.labels, service.host, service.namespace)
    if memo not in world.memo:
        world.memo[memo] = next(
            (rule for level in _levels(world, node, service) if (rule := _best(level, service))), None
        )
    found: Rule | None = world.memo[memo]
    return found


def _levels(world: World, node: ProxyNode, service: Service) -> Iterator[list[Resource[DestinationRule]]]:
    root = world.mesh.root_namespace
    if node.namespace != root:
        yield _candidates(world, node, node.namespace)
    else:
        yield [rule for rule in _candidates(world, node, root) if rule.spec.export_to == (".",)]
    for namespace in dict.fromkeys((service.namespace, root)):
        yield [
            rule
            for rule in _candidates(world, node, namespace)
            if exported(_export_to(world, rule), rule.namespace, node.namespace)
        ]


def _export_to(world: World, rule: Resource[DestinationRule]) -> tuple[str, ...]:
    return rule.spec.export_to or tuple(world.mesh.default_destination_rule_export_to)


def _candidates(world: World, node: ProxyNode, namespace: str) -> list[Resource[DestinationRule]]:
    """Rules of a namespace; those with a workload selector count only for the workloads they select, in their own."""
    labels = node.label_map
    return [
        rule
        for rule in world.destination_rules
        if rule.namespace == namespace
        and (
            rule.spec.workload_selector is None
            or (namespace == node.namespace and selects(rule.spec.workload_selector, labels))
        )
    ]


def _best(level: Iterable[Resource[DestinationRule]], service: Service) -> Rule | None:
    by_host: dict[str, list[Resource[DestinationRule]]] = {}
    for rule in level:
        by_host.setdefault(hosts.expand(rule.spec.host, rule.namespace), []).append(rule)
    host = hosts.most_specific(service.host, by_host)
    if host is None:
        return None
    rules = by_host[host]
    selecting = [rule for rule in rules if rule.spec.workload_selector is not None]
    if selecting:  # replaces the others, their subsets included
        oldest = selecting[0]
        return Rule(oldest.name, oldest.namespace, oldest.spec.traffic_policy, oldest.spec.subsets, True)
    return _merged(rules)


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
