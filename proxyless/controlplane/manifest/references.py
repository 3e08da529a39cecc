"""Resources compared with each other: references to what is not there, and settings that together mean something else
than they seem to. All findings are warnings and notices; the configuration stays usable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from proxyless.controlplane.hosts import HostSet, expand, is_wildcard, matches

from .catalog import Catalog
from .meshconfig import MeshConfig
from .messages import Message, Severity, Subject, sorted_messages
from .model import (
    AnyResource,
    AuthorizationPolicy,
    Destination,
    DestinationRule,
    HTTPRoute,
    OutlierDetection,
    PeerAuthentication,
    RequestAuthentication,
    Resource,
    ServiceEntry,
    TCPRoute,
    TLSRoute,
    TrafficPolicy,
    VirtualService,
)
from .rules.destination import hosts_until_ejection, never_ejects
from .rules.reach import Reach
from .rules.routing import MESH

__all__ = ["check_references"]

_FEW_HOSTS = 10


def check_references(
    resources: Iterable[AnyResource], mesh: MeshConfig | None = None, known_hosts: Iterable[str] = ()
) -> list[Message]:
    """Findings over a whole configuration.

    Args:
        resources: everything that was accepted.
        mesh: settings, with the operator's list of workloads; defaults when None.
        known_hosts: full names of services that exist beside the ServiceEntries and that list.
    """
    everything = list(resources)
    catalog = Catalog.of(everything, mesh or MeshConfig(), known_hosts)
    found: list[Message] = []
    for resource in everything:
        found += _check(catalog, resource)
    services = [resource for resource in everything if isinstance(resource.spec, VirtualService)]
    found += _competing_routes(services)
    found += _competing_peer_authentications(everything, catalog.mesh.root_namespace)
    return list(sorted_messages(found))


def _check(catalog: Catalog, resource: Resource[Any]) -> Iterator[Message]:
    match resource.spec:
        case VirtualService():
            yield from _virtual_service(catalog, resource)
        case DestinationRule():
            yield from _destination_rule(catalog, resource)
        case AuthorizationPolicy():
            yield from _principals(catalog, resource)
            yield from _selector(catalog, resource)
        case PeerAuthentication() | RequestAuthentication():
            yield from _selector(catalog, resource)
        case ServiceEntry() if resource.spec.workload_selector is not None:
            labels = resource.spec.workload_selector.labels
            yield from _no_workload(catalog, resource, "spec.workloadSelector", labels, resource.namespace)


def _say(resource: Resource[Any], severity: Severity, code: str, path: str, reason: str, hint: str = "") -> Message:
    subject = Subject(resource.kind, resource.namespace, resource.name)
    return Message(severity, code, resource.place_of(path), path, reason, hint, subject)


# VirtualService ------------------------------------------------------------------------------------------------------


def _virtual_service(catalog: Catalog, resource: Resource[VirtualService]) -> Iterator[Message]:
    spec = resource.spec
    for index, name in enumerate(spec.gateways):
        if name != MESH:
            yield from _gateway(catalog, resource, f"spec.gateways[{index}]", name)
    for index, http in enumerate(spec.http):
        path = f"spec.http[{index}]"
        for where, destination in _destinations(path, http):
            yield from _destination(catalog, resource, where, destination)
        yield from _retries(catalog, resource, path, http)
        yield from _split_of_hash(catalog, resource, path, http)
    layer4: list[tuple[str, tuple[TLSRoute | TCPRoute, ...]]] = [("tls", spec.tls), ("tcp", spec.tcp)]
    for field, routes in layer4:
        for index, route in enumerate(routes):
            for number, target in enumerate(route.route):
                where = f"spec.{field}[{index}].route[{number}].destination"
                yield from _destination(catalog, resource, where, target.destination)


def _destinations(path: str, http: HTTPRoute) -> Iterator[tuple[str, Destination]]:
    for number, target in enumerate(http.route):
        yield f"{path}.route[{number}].destination", target.destination
    if http.mirror is not None:
        yield f"{path}.mirror", http.mirror
    for number, mirror in enumerate(http.mirrors):
        yield f"{path}.mirrors[{number}].destination", mirror.destination


def _destination(catalog: Catalog, resource: Resource[Any], path: str, target: Destination) -> Iterator[Message]:
    host = expand(target.host, resource.namespace)
    if is_wildcard(host):
        return
    service = catalog.service(host)
    if service is None:
        reason = f"host {host!r} is no known service: requests to it get 503 NC"
        hint = "declare it by a ServiceEntry, or in proxyless.workloads of mesh.yaml"
        yield _say(resource, "warning", "host-not-found", f"{path}.host", reason, hint)
    elif target.port is not None and service.ports and target.port.number not in service.ports:
        ports = ", ".join(map(str, sorted(service.ports)))
        reason = f"{host} has no port {target.port.number}: requests to it get 503 NC"
        yield _say(resource, "warning", "port-not-found", f"{path}.port.number", reason, f"ports: {ports}")
    rules = catalog.rules_for(host)
    if target.subset and not catalog.has_subset(host, target.subset):
        reason = f"no DestinationRule declares subset {target.subset!r} of {host}: requests to it get 503 NC"
        hint = f"add it to {rules[0].kind} {rules[0].namespace}/{rules[0].name}" if rules else "add a DestinationRule"
        yield _say(resource, "warning", "subset-not-found", f"{path}.subset", reason, hint)


def _gateway(catalog: Catalog, resource: Resource[VirtualService], path: str, name: str) -> Iterator[Message]:
    gateway = catalog.gateways.get(_gateway_key(name, resource.namespace))
    if gateway is None:
        reason = f"no Gateway {name!r} here: these routes are served nowhere through it"
        yield _say(resource, "warning", "gateway-not-found", path, reason)
        return
    offered = [host.rpartition("/")[2] for server in gateway.spec.servers for host in server.hosts]
    wanted = HostSet(offered)
    for index, host in enumerate(resource.spec.hosts):
        if wanted.covering(host) is None and not (is_wildcard(host) and any(matches(host, o) for o in offered)):
            reason = f"{host!r} is none of the hosts of Gateway {gateway.namespace}/{gateway.name}"
            yield _say(
                resource, "warning", "host-not-in-gateway", f"spec.hosts[{index}]", reason, ", ".join(offered[:5])
            )


def _gateway_key(name: str, namespace: str) -> str:
    home, slash, bare = name.rpartition("/")
    if not slash:
        return f"{namespace}/{name}"
    return f"{namespace if home == '.' else home}/{bare}"


def _retries(catalog: Catalog, resource: Resource[Any], path: str, http: HTTPRoute) -> Iterator[Message]:
    retries, default = http.retries, catalog.mesh.default_http_retry_policy
    if retries is None or not retries.attempts or retries.retry_on or (default is not None and default.retry_on):
        return
    reason = "no retryOn: refused connections are repeated, as in Istio; a 503 or a slow answer is not"
    hint = "set retryOn: 5xx,reset here; defaultHttpRetryPolicy in mesh.yaml is for routes without retries"
    yield _say(resource, "notice", "retry-default", f"{path}.retries", reason, hint)


def _split_of_hash(catalog: Catalog, resource: Resource[Any], path: str, http: HTTPRoute) -> Iterator[Message]:
    weighted = [target for target in http.route if target.weight]
    if len(weighted) < 2:
        return
    for rule in (
        found for t in weighted for found in catalog.rules_for(expand(t.destination.host, resource.namespace))
    ):
        policies = [rule.spec.traffic_policy, *(subset.traffic_policy for subset in rule.spec.subsets)]
        if any(policy and policy.load_balancer and policy.load_balancer.consistent_hash for policy in policies):
            reason = "the split is drawn for each request, before consistentHash: a caller changes between versions"
            hint = f"consistentHash stands in DestinationRule {rule.namespace}/{rule.name}"
            yield _say(resource, "warning", "split-of-hash", f"{path}.route", reason, hint)
            return


# DestinationRule -----------------------------------------------------------------------------------------------------


def _destination_rule(catalog: Catalog, resource: Resource[DestinationRule]) -> Iterator[Message]:
    spec = resource.spec
    host = expand(spec.host, resource.namespace)
    service = catalog.service(host)
    if service is None and not is_wildcard(host):
        reason = f"host {host!r} is no known service: the rule binds to nothing"
        hint = "declare it by a ServiceEntry, or in proxyless.workloads of mesh.yaml"
        yield _say(resource, "warning", "host-not-found", "spec.host", reason, hint)
    for path, outlier in _outliers(spec):
        needed = hosts_until_ejection(outlier)
        count = service.endpoints if service is not None else None
        if never_ejects(outlier) or (count is None and needed < _FEW_HOSTS) or (count is not None and count >= needed):
            continue
        have = f"; {host} has {count}" if count is not None else ""
        reason = f"nothing is ejected while there are fewer than {needed} endpoints{have}"
        hint = f"maxEjectionPercent is {outlier.max_ejection_percent or 10}, of all endpoints"
        yield _say(resource, "warning", "never-ejects", f"{path}.maxEjectionPercent", reason, hint)


def _outliers(spec: DestinationRule) -> Iterator[tuple[str, OutlierDetection]]:
    policies: list[tuple[str, TrafficPolicy | None]] = [("spec.trafficPolicy", spec.traffic_policy)]
    policies += [(f"spec.subsets[{i}].trafficPolicy", subset.traffic_policy) for i, subset in enumerate(spec.subsets)]
    for path, policy in policies:
        if policy is None:
            continue
        if policy.outlier_detection is not None:
            yield f"{path}.outlierDetection", policy.outlier_detection
        for index, level in enumerate(policy.port_level_settings):
            if level.outlier_detection is not None:
                yield f"{path}.portLevelSettings[{index}].outlierDetection", level.outlier_detection


# Policies ------------------------------------------------------------------------------------------------------------


def _principals(catalog: Catalog, resource: Resource[AuthorizationPolicy]) -> Iterator[Message]:
    for index, rule in enumerate(resource.spec.rules):
        for number, origin in enumerate(rule.from_):
            path = f"spec.rules[{index}].from[{number}].source"
            for field, values in (
                ("principals", origin.source.principals),
                ("notPrincipals", origin.source.not_principals),
            ):
                for position, value in enumerate(values):
                    yield from _principal(catalog, resource, f"{path}.{field}[{position}]", value)
        for number, condition in enumerate(rule.when):
            if condition.key == "source.principal":
                for position, value in enumerate(condition.values):
                    path = f"spec.rules[{index}].when[{number}].values[{position}]"
                    yield from _principal(catalog, resource, path, value)


def _principal(catalog: Catalog, resource: Resource[Any], path: str, value: str) -> Iterator[Message]:
    if "*" in value or value.startswith("spiffe://"):
        return
    parts = value.split("/")
    if len(parts) > 1:
        if not (len(parts) == 5 and parts[1] == "ns" and parts[3] == "sa"):
            reason = f"{value!r} is not the form of identities in this mesh"
            hint = f"{catalog.mesh.trust_domain}/ns/<namespace>/sa/<service account>"
            yield _say(resource, "notice", "foreign-principal", path, reason, hint)
        return
    service = catalog.services.get(expand(value, resource.namespace))
    domain = catalog.mesh.trust_domain
    if service is None:
        reason = f"{value!r} can match no identity: it is no SPIFFE ID and no host of a known service"
        yield _say(resource, "warning", "principal", path, reason, f"{domain}/ns/<namespace>/sa/<service account>")
    elif not catalog.mesh.proxyless.principals_named_by_host:
        reason = f"{value!r} is a host, no identity: it can never match"
        hint = "set proxyless.principalsNamedByHost, or write the identities of that service"
        yield _say(resource, "warning", "principal", path, reason, hint)
    elif not service.identities:
        reason = f"{value!r} is the host of a service that the operator's list gives to nobody: it can never match"
        hint = "add the service to proxyless.workloads of mesh.yaml"
        yield _say(resource, "warning", "principal", path, reason, hint)
    else:
        names = ", ".join(f"{domain}/ns/{namespace}/sa/{account}" for namespace, account in service.identities)
        reason = f"{value!r} is the host of a service; it is read as {names}"
        hint = "this is wider than Istio; proxyless.principalsNamedByHost: false turns it off"
        yield _say(resource, "warning", "principal-by-host", path, reason, hint)


def _selector(
    catalog: Catalog, resource: Resource[AuthorizationPolicy | PeerAuthentication | RequestAuthentication]
) -> Iterator[Message]:
    selector = resource.spec.selector
    if selector is not None and selector.match_labels:
        root = resource.namespace == catalog.mesh.root_namespace
        namespace = None if root else resource.namespace
        yield from _no_workload(catalog, resource, "spec.selector", selector.match_labels, namespace)


def _no_workload(
    catalog: Catalog, resource: Resource[Any], path: str, labels: Mapping[str, str], namespace: str | None
) -> Iterator[Message]:
    for home, own in catalog.workloads:
        if namespace in (None, home) and labels.items() <= own.items():
            return
    wanted = ", ".join(f"{key}={value}" for key, value in labels.items())
    may_register = any(namespace in (None, grant.namespace) for grant in catalog.mesh.proxyless.workloads)
    reason = f"no declared workload has the labels {wanted}"
    hint = "one that registers itself with them will be selected" if may_register else "the resource has no effect"
    yield _say(resource, "notice" if may_register else "warning", "selects-nothing", path, reason, hint)


# Several resources for one thing -------------------------------------------------------------------------------------


def _competing_routes(services: list[Resource[VirtualService]]) -> Iterator[Message]:
    by_binding: dict[tuple[str, str], list[Resource[VirtualService]]] = {}
    for service in sorted(services, key=lambda resource: resource.age_key):
        for gateway in service.spec.gateways or (MESH,):
            key = MESH if gateway == MESH else _gateway_key(gateway, service.namespace)
            for host in service.spec.hosts:
                by_binding.setdefault((key, expand(host, service.namespace)), []).append(service)
    for (gateway, host), bound in by_binding.items():
        if gateway == MESH:
            yield from _same_mesh_host(host, bound)
        else:
            yield from _same_gateway_host(bound)


def _same_mesh_host(host: str, bound: list[Resource[VirtualService]]) -> Iterator[Message]:
    first = bound[0]
    for other in bound[1:]:
        reason = f"{host!r} is routed by {first.namespace}/{first.name} ({first.place}) already, which is older"
        hint = "inside the mesh they are not merged: put the routes into one"
        yield _say(other, "warning", "competing", "spec.hosts", reason, hint)


def _same_gateway_host(bound: list[Resource[VirtualService]]) -> Iterator[Message]:
    """At a gateway the routes of several are joined, oldest first."""
    reach: Reach[tuple[Resource[VirtualService], str]] = Reach()
    for resource in bound:
        for index, http in enumerate(resource.spec.http):
            for number, match in enumerate(http.match):
                path = f"spec.http[{index}].match[{number}]"
                owner = reach.taker(match)
                if owner is not None and owner[0] is not resource:
                    older = f"{owner[0].namespace}/{owner[0].name}"
                    reason = f"never reached: {owner[1]} of {older} takes these requests before"
                    hint = "the older resource comes first, prefixes are plain text"
                    yield _say(resource, "warning", "unreachable", path, reason, hint)
                reach.add(match, (resource, path))


def _competing_peer_authentications(resources: list[AnyResource], root_namespace: str) -> Iterator[Message]:
    first: dict[tuple[str, tuple[tuple[str, str], ...]], Resource[Any]] = {}
    found = [resource for resource in resources if isinstance(resource.spec, PeerAuthentication)]
    for resource in sorted(found, key=lambda resource: resource.age_key):
        selector = resource.spec.selector.match_labels if resource.spec.selector else {}
        if selector and resource.namespace == root_namespace:
            reason = "a PeerAuthentication with a selector is ignored in the root namespace"
            yield _say(
                resource, "warning", "no-effect", "spec.selector", reason, "put it into the workload's namespace"
            )
        scope = (resource.namespace, tuple(sorted(selector.items())))
        older = first.setdefault(scope, resource)
        if older is not resource:
            reason = f"{older.name} ({older.place}) has the same scope and is older: this one is ignored"
            yield _say(resource, "warning", "competing", "spec", reason)
