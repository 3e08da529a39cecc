"""What resources can refer to: hosts, subsets, gateways, workloads; gathered once per configuration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxyless.controlplane.hosts import HostSet, expand, is_wildcard

from .meshconfig import MeshConfig
from .model import AnyResource, DestinationRule, Gateway, Resource, ServiceEntry, WorkloadEntry

__all__ = ["Catalog", "KnownService"]


@dataclass(slots=True)
class KnownService:
    """A host that can be called.

    Attributes:
        ports: numbers that a ServiceEntry declares; empty when only the operator's list has it.
        endpoints: number of declared endpoints; None when others may come (DNS, registration).
        identities: (namespace, service account) of everyone whom the operator lets serve it.
    """

    host: str
    ports: frozenset[int] = frozenset()
    endpoints: int | None = None
    identities: tuple[tuple[str, str], ...] = ()


@dataclass(slots=True)
class Catalog:
    """The look-ups of reference checks."""

    mesh: MeshConfig
    services: dict[str, KnownService] = field(default_factory=dict)
    wildcards: HostSet = field(default_factory=HostSet)
    rules: dict[str, list[Resource[DestinationRule]]] = field(default_factory=lambda: defaultdict(list))
    rule_hosts: HostSet = field(default_factory=HostSet)
    gateways: dict[str, Resource[Gateway]] = field(default_factory=dict)
    workloads: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    _subsets: dict[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of(cls, resources: Iterable[AnyResource], mesh: MeshConfig, known_hosts: Iterable[str] = ()) -> Catalog:
        catalog = cls(mesh)
        for resource in resources:
            catalog._add(resource)
        for host in known_hosts:
            catalog._service(host)
        for grant in mesh.proxyless.workloads:
            if grant.labels:
                catalog.workloads.append((grant.namespace, grant.labels))
            for name in grant.services:
                service = catalog._service(expand(name, grant.namespace))
                service.endpoints = None
                service.identities += ((grant.namespace, grant.service_account),)
        return catalog

    def _service(self, host: str) -> KnownService:
        if is_wildcard(host):
            self.wildcards.add(host.lower())
        return self.services.setdefault(host.lower(), KnownService(host.lower()))

    def _add(self, resource: Resource[Any]) -> None:
        spec = resource.spec
        if isinstance(spec, DestinationRule):
            host = expand(spec.host, resource.namespace)
            self.rules[host].append(resource)
            self.rule_hosts.add(host)
        elif isinstance(spec, Gateway):
            self.gateways[f"{resource.namespace}/{resource.name}"] = resource
        elif isinstance(spec, WorkloadEntry):
            self.workloads.append((resource.namespace, {**resource.labels, **spec.labels}))
        elif isinstance(spec, ServiceEntry):
            self._add_service_entry(resource.namespace, spec)

    def _add_service_entry(self, namespace: str, spec: ServiceEntry) -> None:
        for host in spec.hosts:
            service = self._service(expand(host, namespace))
            service.ports |= {port.number for port in spec.ports}
            if spec.resolution == "STATIC" and spec.endpoints:
                service.endpoints = (service.endpoints or 0) + len(spec.endpoints)
        self.workloads += [(namespace, endpoint.labels) for endpoint in spec.endpoints]

    def service(self, host: str) -> KnownService | None:
        """The service that a full host name stands for, through wildcards too."""
        found = self.services.get(host)
        if found is None and (covering := self.wildcards.covering(host)) is not None:
            return self.services.get(covering)
        return found

    def rules_for(self, host: str) -> list[Resource[DestinationRule]]:
        """The DestinationRules of the most specific host that covers this one, of any namespace."""
        covering = self.rule_hosts.covering(host)
        return self.rules[covering] if covering is not None else []

    def has_subset(self, host: str, name: str) -> bool:
        known = self._subsets.get(host)
        if known is None:
            known = frozenset(subset.name for rule in self.rules_for(host) for subset in rule.spec.subsets)
            self._subsets[host] = known
        return name in known
