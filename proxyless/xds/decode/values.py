"""Small pieces that many resources share: durations, percentages, addresses, metadata, extensions."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

from proxyless import protos
from proxyless.core.request import Address
from proxyless.core.resources import Fraction

__all__ = [
    "address",
    "duration",
    "fraction",
    "metadata_text",
    "optional",
    "present_or",
    "short_type",
    "struct_text",
    "typed",
    "unwrap",
]

_DENOMINATORS = (100, 10_000, 1_000_000)
_MAX_SECONDS = 315_576_000_000
_TYPED_STRUCTS = frozenset({"udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"})


def duration(value: Any) -> float:
    """Seconds of a google.protobuf.Duration. Raises ValueError when negative or out of its range."""
    seconds: float = value.seconds + value.nanos / 1e9
    if value.seconds < 0 or value.nanos < 0:
        raise ValueError(f"a duration is not negative, got {seconds:g}s")
    if value.seconds > _MAX_SECONDS or value.nanos >= 1_000_000_000:
        raise ValueError("a duration is out of range")
    return seconds


def optional(message: Any, name: str) -> Any | None:
    """The sub-message `name`, None when it is not set."""
    return getattr(message, name) if message.HasField(name) else None


def present_or(message: Any, name: str, default: Any) -> Any:
    """The value in a wrapper field (UInt32Value, BoolValue, ...), `default` when it is not set."""
    return getattr(message, name).value if message.HasField(name) else default


def fraction(value: Any) -> Fraction:
    """A type.v3.FractionalPercent."""
    return Fraction(value.numerator, _DENOMINATORS[value.denominator])


def address(value: Any) -> Address:
    """A core.v3.Address: socket address with a numeric port, or a pipe. Raises ValueError for other kinds."""
    kind = value.WhichOneof("address")
    if kind == "pipe":
        if not value.pipe.path:
            raise ValueError("pipe.path is empty")
        return Address(value.pipe.path, 0)
    if kind != "socket_address":
        raise ValueError(f"address of kind {kind or 'unset'} is not supported")
    socket = value.socket_address
    if not socket.address:
        raise ValueError("socket_address.address is empty")
    if socket.protocol != 0:
        raise ValueError("socket_address.protocol must be TCP")
    if socket.WhichOneof("port_specifier") == "named_port":
        raise ValueError("socket_address.named_port is not supported")
    if socket.port_value > 65535:
        raise ValueError(f"socket_address.port_value {socket.port_value} is out of range")
    return Address(socket.address, socket.port_value)


def is_ip_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def metadata_text(metadata: Any, namespace: str) -> Mapping[str, str]:
    """String values of one `filter_metadata` namespace of a core.v3.Metadata; others are left out."""
    if namespace not in metadata.filter_metadata:
        return {}
    return struct_text(metadata.filter_metadata[namespace])


def struct_text(struct: Any) -> Mapping[str, str]:
    """String values of a google.protobuf.Struct; others are left out."""
    return {
        key: value.string_value for key, value in struct.fields.items() if value.WhichOneof("kind") == "string_value"
    }


def unwrap(packed: Any) -> tuple[str, Any | None]:
    """Full type name and message of an Any; a TypedStruct counts as the type it names. None: the type is not known to us."""
    name = protos.type_name(packed.type_url)
    found = protos.any_to_message(packed)
    if name in _TYPED_STRUCTS and found is not None:
        return protos.type_name(found.type_url), None
    return name, found


def typed(packed: Any, full_name: str) -> Any:
    """The message in an Any that must hold `full_name`. Raises ValueError."""
    name, found = unwrap(packed)
    if name != full_name or found is None:
        raise ValueError(f"expected {full_name}, got {name or 'nothing'}")
    return found


def short_type(full_name: str) -> str:
    """``envoy.extensions.filters.http.cors.v3.Cors`` as ``cors.v3.Cors``: enough to know it by."""
    return ".".join(full_name.split(".")[-3:])
