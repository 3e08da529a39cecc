"""ServiceEntry, WorkloadEntry and WorkloadGroup."""

from __future__ import annotations

import ipaddress
from typing import Final

from proxyless.controlplane.hosts import is_wildcard
from proxyless.controlplane.manifest.context import Context, child_path
from proxyless.controlplane.manifest.model import ServiceEntry, WorkloadEntry, WorkloadGroup

from .checks import (
    check_cidrs,
    check_export_to,
    check_labels,
    check_one_of,
    check_port_name,
    check_protocol,
    duplicates,
    is_host,
    is_ip,
)

__all__ = ["check_service_entry", "check_workload_entry", "check_workload_group"]

_UNIX: Final = "unix://"
_DNS: Final = ("DNS", "DNS_ROUND_ROBIN")
_ROUTED_BY_NAME: Final = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTPS", "TLS"})


def check_service_entry(context: Context, spec: ServiceEntry) -> None:
    _check_hosts(context, spec)
    check_cidrs(context, "spec.addresses", spec.addresses)
    _check_ports(context, spec)
    if spec.workload_selector is not None:
        if context.has("spec.endpoints"):
            context.error("spec.endpoints", "excludes workloadSelector")
        check_labels(context, "spec.workloadSelector.labels", spec.workload_selector.labels)
        if not spec.workload_selector.labels:
            context.warn("spec.workloadSelector", "an empty selector selects every workload of the namespace")
    names = {port.name for port in spec.ports}
    for index, endpoint in enumerate(spec.endpoints):
        path = f"spec.endpoints[{index}]"
        _check_address(context, path, endpoint)
        for name in endpoint.ports:
            if name not in names:
                here = child_path(f"{path}.ports", name)
                context.error(here, f"no port {name!r} in spec.ports", f"ports: {', '.join(sorted(names))}")
    {
        "NONE": _check_none,
        "STATIC": _check_static,
        "DNS": _check_dns,
        "DNS_ROUND_ROBIN": _check_dns,
        "DYNAMIC_DNS": _check_dynamic_dns,
    }[spec.resolution](context, spec)
    _warn_addresses(context, spec)
    check_export_to(context, spec.export_to, none_allowed=True)


def _check_hosts(context: Context, spec: ServiceEntry) -> None:
    for index, host in enumerate(spec.hosts):
        path = f"spec.hosts[{index}]"
        if host == "*":
            context.error(path, "a ServiceEntry cannot stand for every host", "for example *.example.com")
        elif not is_host(host, wildcard=True):
            context.error(path, f"{host[:80]!r} is no host name", "a star is allowed at the beginning only")
        elif is_wildcard(host) and not host.startswith("*."):
            context.warn(path, f"{host!r}: the star stands for a part of a name", "usually *.example.com is meant")


def _check_ports(context: Context, spec: ServiceEntry) -> None:
    for index, port in enumerate(spec.ports):
        path = f"spec.ports[{index}]"
        if port.name:
            check_port_name(context, f"{path}.name", port.name)
        check_protocol(context, f"{path}.protocol", port.protocol)
        if port.target_port is not None and spec.resolution == "NONE":
            reason = "has no effect with resolution NONE"
            context.warn(f"{path}.targetPort", reason, "connections keep their port", code="no-effect")
    for field, values in (
        ("name", [port.name for port in spec.ports]),
        ("number", [port.number for port in spec.ports]),
    ):
        for index in duplicates(values):
            context.error(f"spec.ports[{index}].{field}", f"{values[index]} stands twice")


def _check_none(context: Context, spec: ServiceEntry) -> None:
    if spec.endpoints:
        reason = "resolution NONE forwards to the address that was called and has no endpoints"
        context.error("spec.endpoints", reason, "set resolution: STATIC or DNS")


def _check_static(context: Context, spec: ServiceEntry) -> None:
    if not spec.endpoints and spec.workload_selector is None:
        reason = "no endpoints and no workloadSelector: only workloads that register themselves serve it"
        context.warn("spec.resolution", reason, code="no-endpoints")
    for index, endpoint in enumerate(spec.endpoints):
        path = f"spec.endpoints[{index}].address"
        if endpoint.address.startswith(_UNIX):
            if len(spec.ports) > 1:
                context.error(path, "a Unix socket serves one port, the service has several")
        elif endpoint.address and not is_ip(endpoint.address):
            context.error(path, f"{endpoint.address[:80]!r} is no IP address", "set resolution: DNS for names")


def _check_dns(context: Context, spec: ServiceEntry) -> None:
    for index, host in enumerate(spec.hosts):
        if not spec.endpoints and spec.workload_selector is None and is_wildcard(host):
            reason = f"{host!r} cannot be looked up in DNS"
            context.error(f"spec.hosts[{index}]", reason, "give endpoints, or resolution NONE or DYNAMIC_DNS")
    if spec.resolution == "DNS_ROUND_ROBIN" and len(spec.endpoints) > 1:
        context.error("spec.endpoints", "DNS_ROUND_ROBIN has one endpoint at most", "set resolution: DNS")
    for index, address in enumerate(spec.addresses):
        if "/" in address:
            context.error(f"spec.addresses[{index}]", "CIDR blocks go with resolution NONE or STATIC only")
    for index, endpoint in enumerate(spec.endpoints):
        if endpoint.address.startswith(_UNIX):
            context.error(f"spec.endpoints[{index}].address", "a Unix socket needs resolution STATIC")
    if spec.addresses and len(spec.hosts) > 1 and spec.ports:
        context.warn("spec.hosts", "several hosts share the addresses: by address they cannot be told apart")


def _check_dynamic_dns(context: Context, spec: ServiceEntry) -> None:
    for index, host in enumerate(spec.hosts):
        if not is_wildcard(host):
            context.error(f"spec.hosts[{index}]", "DYNAMIC_DNS is for wildcards", "set resolution: DNS")
    if spec.endpoints or spec.workload_selector is not None:
        field = "endpoints" if spec.endpoints else "workloadSelector"
        context.error(f"spec.{field}", "DYNAMIC_DNS looks up the name that was called and has no endpoints")
    for index, port in enumerate(spec.ports):
        if port.protocol.upper() not in _ROUTED_BY_NAME:
            reason = "DYNAMIC_DNS needs a protocol that carries the host name"
            context.error(f"spec.ports[{index}].protocol", reason, "HTTP, HTTP2, GRPC, HTTPS or TLS")
    if spec.location == "MESH_INTERNAL" and "istio.io/use-waypoint" in context.labels:
        context.error("spec.location", "DYNAMIC_DNS with a waypoint must be MESH_EXTERNAL")


def _warn_addresses(context: Context, spec: ServiceEntry) -> None:
    for index, port in enumerate(spec.ports):
        if not spec.addresses and port.protocol.upper() not in _ROUTED_BY_NAME:
            reason = "no spec.addresses: TCP connections to this port cannot be told from those of other services"
            context.warn(f"spec.ports[{index}].protocol", reason, "give addresses, or a protocol that carries the name")


def check_workload_entry(context: Context, spec: WorkloadEntry) -> None:
    _check_address(context, "spec", spec)


def _check_address(context: Context, path: str, entry: WorkloadEntry) -> None:
    here, address = f"{path}.address", entry.address
    if not address:
        if entry.network:
            context.warn(here, "no address: reached through the gateways of its network")
        else:
            context.error(
                here, "required field is missing", "an IP address, a DNS name or unix:///path", code="required"
            )
    elif address.startswith(_UNIX):
        socket = address.removeprefix(_UNIX)
        if not socket.startswith(("/", "@")) or len(socket) < 2:
            context.error(here, "no path of a socket", "unix:///absolute/path or unix://@name")
        if entry.ports:
            context.error(f"{path}.ports", "a Unix socket has no ports")
    elif not is_ip(address) and not is_host(address, wildcard=False):
        hint = "ports stand in ports" if ":" in address else ""
        context.error(here, f"{address[:80]!r} is no IP address and no DNS name", hint)
    elif is_ip(address) and ipaddress.ip_address(address).is_unspecified:
        context.error(here, f"{address} is not an address that can be called")
    for name in entry.ports:
        check_port_name(context, child_path(f"{path}.ports", name), name)
    check_labels(context, f"{path}.labels", entry.labels)


def check_workload_group(context: Context, spec: WorkloadGroup) -> None:
    if spec.metadata is not None:
        check_labels(context, "spec.metadata.labels", spec.metadata.labels)
    check_labels(context, "spec.template.labels", spec.template.labels)
    for name in spec.template.ports:
        check_port_name(context, child_path("spec.template.ports", name), name)
    if spec.probe is not None:
        checks = {
            "httpGet": spec.probe.http_get is not None,
            "tcpSocket": spec.probe.tcp_socket is not None,
            "exec": spec.probe.exec is not None,
            "grpc": spec.probe.grpc is not None,
        }
        check_one_of(context, "spec.probe", checks, required=True)
