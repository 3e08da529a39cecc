"""ServiceEntry, WorkloadEntry and WorkloadGroup (istio.networking.v1alpha3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from .common import Int32, LabelSelector, Limit, PortNumber, UInt32

__all__ = [
    "ExecHealthCheck",
    "GrpcHealthCheck",
    "HTTPHealthCheck",
    "HTTPProbeHeader",
    "ReadinessProbe",
    "ServiceEntry",
    "ServicePort",
    "TCPHealthCheck",
    "WorkloadEntry",
    "WorkloadGroup",
    "WorkloadGroupMeta",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServicePort:
    """``protocol`` has any case; empty and unknown ones are TCP. ``target_port`` absent: ``number``."""

    number: PortNumber
    protocol: Annotated[str, Limit(256)] = ""
    name: Annotated[str, Limit(256)]
    target_port: PortNumber | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadEntry:
    """``address``: IP, DNS name or ``unix:///path``; may be empty with a ``network``. ``weight`` absent or 0: 1."""

    address: Annotated[str, Limit(256)] = ""
    ports: Mapping[str, PortNumber] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    network: Annotated[str, Limit(2048)] = ""
    locality: Annotated[str, Limit(2048)] = ""
    weight: UInt32 | None = None
    service_account: Annotated[str, Limit(253)] = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceEntry:
    """``export_to`` empty is the mesh's default; ``subject_alt_names`` are the SANs expected of the endpoints."""

    hosts: Annotated[tuple[str, ...], Limit(256)]
    addresses: Annotated[tuple[Annotated[str, Limit(64)], ...], Limit(256)] = ()
    ports: Annotated[tuple[ServicePort, ...], Limit(256)] = ()
    location: Literal["MESH_EXTERNAL", "MESH_INTERNAL"] = "MESH_EXTERNAL"
    resolution: Literal["NONE", "STATIC", "DNS", "DNS_ROUND_ROBIN", "DYNAMIC_DNS"] = "NONE"
    endpoints: Annotated[tuple[WorkloadEntry, ...], Limit(4096)] = ()
    workload_selector: LabelSelector | None = None
    export_to: tuple[str, ...] = ()
    subject_alt_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPProbeHeader:
    name: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPHealthCheck:
    path: str = ""
    port: PortNumber
    host: str = ""
    scheme: str = ""
    http_headers: tuple[HTTPProbeHeader, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TCPHealthCheck:
    host: str = ""
    port: PortNumber


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecHealthCheck:
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GrpcHealthCheck:
    port: PortNumber | None = None
    service: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadinessProbe:
    """One of the four checks; the numbers are seconds or counts."""

    initial_delay_seconds: Int32 | None = None
    timeout_seconds: Int32 | None = None
    period_seconds: Int32 | None = None
    success_threshold: Int32 | None = None
    failure_threshold: Int32 | None = None
    http_get: HTTPHealthCheck | None = None
    tcp_socket: TCPHealthCheck | None = None
    exec: ExecHealthCheck | None = None
    grpc: GrpcHealthCheck | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadGroupMeta:
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadGroup:
    metadata: WorkloadGroupMeta | None = None
    template: WorkloadEntry
    probe: ReadinessProbe | None = None
