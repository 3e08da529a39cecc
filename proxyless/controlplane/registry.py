"""What can be called: services and their endpoints.

Built anew, as a value, from ServiceEntry and WorkloadEntry documents, from the operator's list (each service on it exists,
with or without endpoints) and from the workloads that have registered themselves.
"""

from __future__ import annotations

import ipaddress
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from proxyless.controlplane.hosts import expand
from proxyless.controlplane.manifest.meshconfig import WorkloadGrant
from proxyless.controlplane.manifest.model import Resource, ServiceEntry, WorkloadEntry
from proxyless.spiffe import SpiffeId

__all__ = ["Endpoint", "Port", "RegisteredWorkload", "Registry", "Service", "build_registry"]

TLS_MODE_LABEL = "security.istio.io/tlsMode"
HEALTHY, UNHEALTHY, DRAINING = "HEALTHY", "UNHEALTHY", "DRAINING"

_HTTP = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY"})
_HTTP2 = frozenset({"HTTP2", "GRPC", "GRPC-WEB"})
_TLS = frozenset({"HTTPS", "TLS"})
_ALL_PROTOCOLS = _HTTP | _TLS | {"TCP", "MONGO", "REDIS", "MYSQL", "UDP"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """A port of a service: `number` is what callers use, `target` what endpoints listen on unless they say otherwise."""

    number: int
    name: str
    protocol: str = "HTTP"
    target: int

    @property
    def is_http(self) -> bool:
        return self.protocol in _HTTP

    @property
    def is_http2(self) -> bool:
        return self.protocol in _HTTP2

    @property
    def is_tls(self) -> bool:
        """Callers bring their own TLS; routed by server name."""
        return self.protocol in _TLS


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One address behind a service.

    Attributes:
        ports: port name to port, where it differs from the service's target.
        serves: numbers of the service ports that lead here; None: all of them.
        locality: ``region/zone/subzone``, parts from the right may be missing.
        health: ``HEALTHY``, ``UNHEALTHY``, ``DRAINING``, or empty when nobody knows.
        registered: the workload registered itself; its address alone then does not identify it.
    """

    address: str
    namespace: str
    workload: str
    ports: Mapping[str, int] = field(default_factory=dict)
    serves: frozenset[int] | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    service_account: str = ""
    weight: int = 1
    locality: str = ""
    network: str = ""
    health: str = ""
    registered: bool = False

    def port_of(self, port: Port) -> int:
        return self.ports.get(port.name) or port.target

    @property
    def tls_mode(self) -> str:
        """``istio`` when the endpoint takes mutual TLS of the mesh, else ``disabled``."""
        return self.labels.get(TLS_MODE_LABEL) or ("istio" if self.service_account else "disabled")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One host. `external`: outside of the mesh, so no automatic mutual TLS. `age_key` sorts the oldest first."""

    host: str
    namespace: str
    ports: tuple[Port, ...]
    resolution: str = "STATIC"
    external: bool = False
    addresses: tuple[str, ...] = ()
    export_to: tuple[str, ...] = ()
    subject_alt_names: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    age_key: tuple[float, str] = (float("inf"), "")

    def port(self, number: int) -> Port | None:
        return next((port for port in self.ports if port.number == number), None)

    def endpoints_of(self, port: Port) -> tuple[Endpoint, ...]:
        return tuple(e for e in self.endpoints if e.serves is None or port.number in e.serves)

    def port_for(self, workload_port: int) -> Port | None:
        """The service port that leads to a workload listening on `workload_port`: the one with that target port, else
        the first HTTP port, else the first."""
        by_target = (port for port in self.ports if port.target == workload_port)
        by_protocol = (port for port in self.ports if port.is_http)
        return next(by_target, None) or next(by_protocol, None) or next(iter(self.ports), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class RegisteredWorkload:
    """What a workload said about itself and was allowed to say. `health`: see `Endpoint`."""

    identity: SpiffeId
    service: str
    address: str
    port: int
    labels: Mapping[str, str] = field(default_factory=dict)
    health: str = HEALTHY


class Registry:
    """Services with the look-ups that translation needs. Immutable."""

    def __init__(self, services: Iterable[Service], grants: Sequence[WorkloadGrant] = ()) -> None:
        self.services = tuple(sorted(services, key=lambda service: (service.host, service.age_key, service.namespace)))
        self._visible: dict[str, Mapping[str, Service]] = {}
        self._grants = grants
        self._identities: dict[str, tuple[tuple[str, str], ...]] = {}
        self._by_address: dict[str, list[tuple[Service, Endpoint]]] = defaultdict(list)
        for service in self.services:
            for endpoint in service.endpoints:
                if not endpoint.registered:
                    self._by_address[endpoint.address].append((service, endpoint))

    def visible(self, namespace: str) -> Mapping[str, Service]:
        """By host, in order of hosts: what a client of this namespace may call. Of several services with one host its
        own namespace's comes first, then the oldest."""
        found = self._visible.get(namespace)
        if found is None:
            result: dict[str, Service] = {}
            for service in self.services:
                if not exported(service.export_to, service.namespace, namespace):
                    continue
                present = result.get(service.host)
                if present is None or (service.namespace == namespace != present.namespace):
                    result[service.host] = service
            found = self._visible[namespace] = result
        return found

    def lookup(self, host: str) -> Service | None:
        """The oldest service of that host, whoever may see it."""
        return next((service for service in self.services if service.host == host), None)

    def at(self, ips: Iterable[str]) -> list[tuple[Service, Endpoint]]:
        """The declared endpoints with one of these addresses, by which istiod recognises a workload. A loopback address
        belongs to every process of a host, so it identifies none."""
        return [found for ip in ips if not _is_loopback(ip) for found in self._by_address.get(ip, ())]

    def identities_of(self, host: str) -> tuple[tuple[str, str], ...]:
        """(namespace, service account) of everyone whom the operator lets serve `host`, sorted."""
        if not self._identities:
            found: dict[str, set[tuple[str, str]]] = defaultdict(set)
            for grant in self._grants:
                for name in grant.services:
                    found[expand(name, grant.namespace)].add((grant.namespace, grant.service_account))
            self._identities = {name: tuple(sorted(identities)) for name, identities in found.items()}
        return self._identities.get(host, ())

    def grant_labels(self, namespace: str, service_account: str) -> Mapping[str, str]:
        """Labels that the operator gives to this identity; they win over what a workload says."""
        labels: dict[str, str] = {}
        for grant in self._grants:
            if (grant.namespace, grant.service_account) == (namespace, service_account):
                labels.update(grant.labels)
        return labels


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def exported(export_to: Sequence[str], owner: str, namespace: str) -> bool:
    """Whether `exportTo` of a resource in namespace `owner` makes it visible in `namespace`; empty is everywhere."""
    if not export_to:
        return True
    return any(entry == "*" or entry == namespace or (entry == "." and owner == namespace) for entry in export_to)


def build_registry(
    entries: Iterable[Resource[ServiceEntry]],
    workloads: Iterable[Resource[WorkloadEntry]] = (),
    grants: Sequence[WorkloadGrant] = (),
    registered: Iterable[RegisteredWorkload] = (),
    default_export_to: Sequence[str] = (),
) -> Registry:
    """Put the sources together. Of several entries for one host in one namespace the oldest decides; ports and endpoints
    of the others are added."""
    workloads = sorted(workloads, key=lambda resource: resource.name)
    services: dict[tuple[str, str], Service] = {}
    for entry in sorted(entries, key=lambda resource: resource.age_key):
        for host in entry.spec.hosts:
            service = _declared(entry, host, workloads, default_export_to)
            key = (service.host, service.namespace)
            services[key] = _merge(services[key], service) if key in services else service
    for grant in grants:
        for name in grant.services:
            _imply(services, expand(name, grant.namespace), grant.namespace)
    for workload in sorted(registered, key=lambda w: (str(w.identity), w.service, w.address, w.port)):
        _add_registered(services, workload, grants)
    return Registry(services.values(), grants)


def _declared(
    resource: Resource[ServiceEntry],
    host: str,
    workloads: Sequence[Resource[WorkloadEntry]],
    default_export_to: Sequence[str],
) -> Service:
    entry = resource.spec
    ports = tuple(
        Port(
            number=port.number,
            name=port.name,
            protocol=_protocol(port.protocol),
            target=port.target_port or port.number,
        )
        for port in entry.ports
    )
    return Service(
        host=expand(host, resource.namespace),
        namespace=resource.namespace,
        ports=ports,
        resolution=entry.resolution,
        external=entry.location == "MESH_EXTERNAL",
        addresses=entry.addresses,
        export_to=entry.export_to or tuple(default_export_to),
        subject_alt_names=entry.subject_alt_names,
        endpoints=tuple(_endpoints(resource, host, workloads)),
        age_key=resource.age_key,
    )


def _protocol(text: str) -> str:
    upper = text.upper()
    return upper if upper in _ALL_PROTOCOLS else "TCP"


def _endpoints(
    resource: Resource[ServiceEntry], host: str, workloads: Sequence[Resource[WorkloadEntry]]
) -> Iterable[Endpoint]:
    entry = resource.spec
    if entry.workload_selector is not None:
        wanted = entry.workload_selector.labels.items()
        for workload in workloads:
            if workload.namespace == resource.namespace and wanted <= _labels(workload).items():
                yield replace(_endpoint(workload.spec, resource.namespace, workload.name), labels=_labels(workload))
    elif entry.endpoints:
        for index, inline in enumerate(entry.endpoints):
            yield _endpoint(inline, resource.namespace, f"{resource.name}-{index}")
    elif entry.resolution.startswith("DNS") and not host.startswith("*"):
        yield Endpoint(address=host, namespace=resource.namespace, workload=resource.name)


def _labels(workload: Resource[WorkloadEntry]) -> dict[str, str]:
    return {**workload.labels, **workload.spec.labels}


def _endpoint(entry: WorkloadEntry, namespace: str, workload: str) -> Endpoint:
    return Endpoint(
        address=entry.address,
        namespace=namespace,
        workload=workload,
        ports=entry.ports,
        labels=entry.labels,
        service_account=entry.service_account,
        weight=entry.weight or 1,
        locality=entry.locality,
        network=entry.network,
    )


def _merge(older: Service, newer: Service) -> Service:
    """Endpoints of the newer entry serve the newer entry's ports only."""
    own = frozenset(port.number for port in newer.ports)
    known = {port.number for port in older.ports}
    serves_older = frozenset(known)
    return replace(
        older,
        ports=older.ports + tuple(port for port in newer.ports if port.number not in known),
        addresses=tuple(dict.fromkeys(older.addresses + newer.addresses)),
        endpoints=tuple(e if e.serves is not None else replace(e, serves=serves_older) for e in older.endpoints)
        + tuple(replace(e, serves=own) for e in newer.endpoints),
    )


def _imply(services: dict[tuple[str, str], Service], host: str, namespace: str) -> Service:
    """The service of that host: declared in this namespace, else in any other, else made with port 80, HTTP."""
    present = services.get((host, namespace)) or next((s for s in services.values() if s.host == host), None)
    if present is not None:
        return present
    port = Port(number=80, name="http", protocol="HTTP", target=80)
    made = services[host, namespace] = Service(host=host, namespace=namespace, ports=(port,))
    return made


def _add_registered(
    services: dict[tuple[str, str], Service], workload: RegisteredWorkload, grants: Sequence[WorkloadGrant]
) -> None:
    namespace, account = workload.identity.namespace or "", workload.identity.service_account or ""
    service = _imply(services, workload.service, namespace)
    port = service.port_for(workload.port)
    if port is None:
        return
    # Who registers has our data plane in it and takes mutual TLS; one that does not says so by the label.
    labels = {TLS_MODE_LABEL: "istio", **workload.labels}
    for grant in grants:
        if (grant.namespace, grant.service_account) == (namespace, account):
            labels.update(grant.labels)
    endpoint = Endpoint(
        address=workload.address,
        namespace=namespace,
        workload=account,
        ports={port.name: workload.port},
        serves=frozenset({port.number}),
        labels=labels,
        service_account=account,
        health=workload.health,
        registered=True,
    )
    services[service.host, service.namespace] = replace(service, endpoints=(*service.endpoints, endpoint))
