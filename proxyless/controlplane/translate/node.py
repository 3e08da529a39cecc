"""Who asks: an Envoy `Node` as istiod reads it.

Node id: ``<type>~<ip>~<workload>.<namespace>~<dns domain>``. Metadata keys used: NAMESPACE, LABELS, INSTANCE_IPS (one
string, comma-separated), SERVICE_ACCOUNT, WORKLOAD_NAME, GENERATOR, and our own PROXYLESS ``{"SERVICE": host, "PORT": port}``
of a workload that registers itself: many of those share 127.0.0.1, so the address alone does not say who is who.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["InvalidNodeError", "ProxyNode", "parse_node"]

SIDECAR = "sidecar"
ROUTER = "router"
_TYPES = (SIDECAR, ROUTER)


class InvalidNodeError(ValueError):
    """The node cannot be served; the text tells the client what to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxyNode:
    """One client of the control plane.

    Attributes:
        type: ``sidecar`` or ``router`` (a gateway).
        ips: its addresses, normalised; the first is the one of the id unless INSTANCE_IPS says otherwise.
        namespace: NAMESPACE of the metadata, else the one in the id.
        labels: sorted pairs, so that a node is hashable.
        service_account: empty when the node does not say.
        service, port: what the workload registers as; empty and 0 when it does not.
        trusted_proxies: PROXY_CONFIG gatewayTopology.numTrustedProxies: how many addresses at the end of X-Forwarded-For a
            gateway believes.
    """

    id: str
    type: str
    ips: tuple[str, ...]
    workload: str
    namespace: str
    dns_domain: str
    labels: tuple[tuple[str, str], ...] = ()
    service_account: str = ""
    service: str = ""
    port: int = 0
    trusted_proxies: int = 0

    @property
    def label_map(self) -> Mapping[str, str]:
        return dict(self.labels)

    @property
    def is_gateway(self) -> bool:
        return self.type == ROUTER


def parse_node(node: Any) -> ProxyNode:
    """Read an ``envoy.config.core.v3.Node``.

    Raises:
        InvalidNodeError: as istiod, which closes the stream with INVALID_ARGUMENT and the same reason.
    """
    if not node.id:
        raise InvalidNodeError("missing node information")
    parts = node.id.split("~")
    if len(parts) != 4:
        raise InvalidNodeError(f"missing parts in the service node {node.id!r}: type~ip~workload.namespace~domain")
    kind, ip, workload, domain = parts
    if kind not in _TYPES:
        raise InvalidNodeError(f"invalid node type (valid types: {', '.join(_TYPES)}) in the service node {node.id!r}")
    metadata = _Metadata(node.metadata)
    generator = metadata.text("GENERATOR")
    if generator:
        raise InvalidNodeError(
            f"GENERATOR {generator!r} is not served: leave it out, and the sidecar form is sent, which carries the whole policy"
        )
    name, _, id_namespace = workload.rpartition(".")
    own = metadata.struct("PROXYLESS")
    return ProxyNode(
        id=node.id,
        type=kind,
        ips=_addresses(metadata.text("INSTANCE_IPS"), ip),
        workload=metadata.text("WORKLOAD_NAME") or name or workload,
        namespace=metadata.text("NAMESPACE") or id_namespace or domain.partition(".")[0],
        dns_domain=domain,
        labels=tuple(sorted(metadata.strings("LABELS").items())),
        service_account=metadata.text("SERVICE_ACCOUNT"),
        service=own.text("SERVICE"),
        port=own.integer("PORT"),
        trusted_proxies=metadata.struct("PROXY_CONFIG").struct("gatewayTopology").integer("numTrustedProxies"),
    )


def _addresses(instance_ips: str, fallback: str) -> tuple[str, ...]:
    """Usable addresses of INSTANCE_IPS, else the one of the id; unusable ones are passed over, as istiod does."""
    for text in (instance_ips, fallback):
        found = [address for part in text.split(",") if (address := _address(part.strip()))]
        if found:
            return tuple(dict.fromkeys(found))
    raise InvalidNodeError("no valid IP address in the service node id or metadata")


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        return ""


class _Metadata:
    """Typed access to a `google.protobuf.Struct`; a wrong type is an error that names the key."""

    def __init__(self, struct: Any, path: str = "") -> None:
        self._struct, self._path = struct, path

    def text(self, key: str) -> str:
        return str(self._value(key, "string_value", default=""))

    def integer(self, key: str) -> int:
        value = self._field(key)
        if value is None:
            return 0
        text = value.string_value
        if text.isascii() and text.isdigit() and len(text) < 10:
            return int(text)
        return int(self._value(key, "number_value", default=0))

    def struct(self, key: str) -> _Metadata:
        empty = type(self._struct)()
        return _Metadata(self._value(key, "struct_value", default=empty), f"{self._path}{key}.")

    def strings(self, key: str) -> dict[str, str]:
        inner = self.struct(key)
        return {name: inner.text(name) for name in inner._struct.fields}

    def _field(self, key: str) -> Any:
        return self._struct.fields.get(key, None)

    def _value(self, key: str, kind: str, default: Any) -> Any:
        value = self._field(key)
        if value is None or value.WhichOneof("kind") in (None, "null_value"):
            return default
        if value.WhichOneof("kind") != kind:
            expected = kind.removesuffix("_value")
            raise InvalidNodeError(f"failed to unmarshal node metadata ({self._path}{key} must be a {expected})")
        return getattr(value, kind)
