"""Names that clients build on: istiod's, letter by letter."""

from __future__ import annotations

from proxyless.controlplane.registry import Service

__all__ = [
    "BLACK_HOLE",
    "INBOUND_PASSTHROUGH",
    "PASSTHROUGH",
    "domains",
    "inbound_cluster",
    "outbound_cluster",
    "resource_path",
    "sni",
    "spiffe",
]

PASSTHROUGH = "PassthroughCluster"
BLACK_HOLE = "BlackHoleCluster"
INBOUND_PASSTHROUGH = "InboundPassthroughCluster"

_PATHS = {"VirtualService": "virtual-service", "DestinationRule": "destination-rule"}


def outbound_cluster(port: int, subset: str, host: str) -> str:
    return f"outbound|{port}|{subset}|{host}"


def inbound_cluster(port: int) -> str:
    return f"inbound|{port}||"


def sni(port: int, subset: str, host: str) -> str:
    """Server name of mutual TLS inside the mesh."""
    return f"outbound_.{port}_.{subset}_.{host}"


def spiffe(trust_domain: str, namespace: str, service_account: str) -> str:
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


def resource_path(kind: str, namespace: str, name: str) -> str:
    """What istiod writes into `metadata.filter_metadata.istio.config`."""
    return f"/apis/networking.istio.io/v1/namespaces/{namespace}/{_PATHS[kind]}/{name}"


def domains(service: Service, dns_domain: str) -> list[str]:
    """Hosts under which a client whose DNS domain is ``<namespace>.svc.<domain>`` reaches the service."""
    host = service.host
    found = [host, f"{host}."]
    namespace, _, suffix = dns_domain.partition(".")
    parts = host.removesuffix(f".{suffix}").split(".") if suffix and host.endswith(f".{suffix}") else []
    if len(parts) == 2 and suffix.startswith("svc."):
        name, own = parts
        found += [name] if own == namespace else []
        found += [f"{name}.{own}", f"{name}.{own}.svc"]
    found += [f"[{ip}]" if ":" in ip else ip for ip in service.addresses if "/" not in ip]
    return found
