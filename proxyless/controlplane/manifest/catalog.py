"""What resources can refer to: hosts, subsets, gateways, workloads; gathered once per configuration."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from proxyless.controlplane.hosts import expand, is_wildcard, most_specific

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
    wildcards: list[str] = field(default_factory=list)
    rules: dict[str, list[Resource[DestinationRule]]] = field(default_factory=lambda: defaultdict(list))
    gateways: dict[str, Resource[Gateway]] = field(default_factory=dict)
    workloads: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)

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
            self.wildcards.append(host)
        return self.services.setdefault(host.lower(), KnownService(host.lower()))

    def _add(self, resource: Resource[Any]) -> None:
        spec = resource.spec
        if isinstance(spec, DestinationRule):
            self.rules[expand(spec.host, resource.namespace)].append(resource)
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
        if found is None and (covering := most_specific(host, self.wildcards)) is not None:
            return self.services.get(covering)
        return found

    def rules_for(self, host: str) -> list[Resource[DestinationRule]]:
        """Every DestinationRule whose host covers this one, whichever would win."""
        exact = self.rules.get(host, [])
        return exact or [
            rule for pattern, rules in self.rules.items() if is_wildcard(pattern) and host.endswith(pattern[1:])
            for rule in rules
        ]  # fmt: skip
