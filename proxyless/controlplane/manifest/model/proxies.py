"""Gateway and Sidecar (istio.networking.v1alpha3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from .common import LabelSelector, Limit, UInt32
from .destination import ConnectionPoolSettings
from .routing import Destination

__all__ = [
    "Gateway",
    "IstioEgressListener",
    "IstioIngressListener",
    "OutboundTrafficPolicy",
    "Port",
    "Server",
    "ServerTLSSettings",
    "Sidecar",
    "SidecarPort",
    "TLSCertificate",
]

TLSProtocol = Literal["TLS_AUTO", "TLSV1_0", "TLSV1_1", "TLSV1_2", "TLSV1_3"]
CaptureMode = Literal["DEFAULT", "IPTABLES", "NONE"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """``number`` is 0 only for a server bound to a Unix socket."""

    number: UInt32
    protocol: str
    name: str
    target_port: UInt32 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSCertificate:
    server_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTLSSettings:
    https_redirect: bool = False
    mode: Literal["PASSTHROUGH", "SIMPLE", "MUTUAL", "AUTO_PASSTHROUGH", "ISTIO_MUTUAL", "OPTIONAL_MUTUAL"] = (
        "PASSTHROUGH"
    )
    server_certificate: str = ""
    private_key: str = ""
    ca_certificates: str = ""
    ca_crl: str = ""
    credential_name: str = ""
    credential_names: Annotated[tuple[str, ...], Limit(2)] = ()
    ca_cert_credential_name: str = ""
    tls_certificates: Annotated[tuple[TLSCertificate, ...], Limit(2)] = ()
    subject_alt_names: tuple[str, ...] = ()
    verify_certificate_spki: tuple[str, ...] = ()
    verify_certificate_hash: tuple[str, ...] = ()
    min_protocol_version: TLSProtocol = "TLS_AUTO"
    max_protocol_version: TLSProtocol = "TLS_AUTO"
    cipher_suites: tuple[str, ...] = ()
    insecure_skip_verify: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    port: Port
    bind: str = ""
    hosts: tuple[str, ...]
    tls: ServerTLSSettings | None = None
    default_endpoint: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    servers: tuple[Server, ...]
    selector: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SidecarPort:
    number: UInt32 | None = None
    protocol: str = ""
    name: str = ""
    target_port: UInt32 | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IstioIngressListener:
    port: SidecarPort
    bind: str = ""
    capture_mode: CaptureMode = "DEFAULT"
    default_endpoint: str = ""
    tls: ServerTLSSettings | None = None
    connection_pool: ConnectionPoolSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IstioEgressListener:
    port: SidecarPort | None = None
    bind: str = ""
    capture_mode: CaptureMode = "DEFAULT"
    hosts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundTrafficPolicy:
    """``mode`` absent is the proto default REGISTRY_ONLY once the message is there."""

    mode: Literal["REGISTRY_ONLY", "ALLOW_ANY"] = "REGISTRY_ONLY"
    egress_proxy: Destination | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    workload_selector: LabelSelector | None = None
    ingress: tuple[IstioIngressListener, ...] = ()
    egress: tuple[IstioEgressListener, ...] = ()
    inbound_connection_pool: ConnectionPoolSettings | None = None
    outbound_traffic_policy: OutboundTrafficPolicy | None = None
