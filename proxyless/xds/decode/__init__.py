"""xDS resources as protobuf bytes -> `proxyless.core.resources`: the trust boundary, validated once and typed from here on.

Each function takes the bytes of one resource and returns the value and the names of set fields that nobody acts on. It raises
`InvalidResourceError` with the field's path for what Envoy would refuse, for what would weaken a policy if it were skipped, and
for bytes that do not parse; it raises nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from proxyless import protos
from proxyless.core.resources import Cluster, Listener, LoadAssignment, RouteConfiguration
from proxyless.errors import InvalidResourceError
from proxyless.xds.decode.clusters import cluster
from proxyless.xds.decode.endpoints import load_assignment
from proxyless.xds.decode.errors import guarded
from proxyless.xds.decode.listeners import listener
from proxyless.xds.decode.routes import route_configuration
from proxyless.xds.decode.unsupported import unsupported_fields

__all__ = ["decode_cluster", "decode_listener", "decode_load_assignment", "decode_route_configuration"]

T = TypeVar("T")


def decode_listener(raw: bytes) -> tuple[Listener, tuple[str, ...]]:
    return _decode(protos.LISTENER, "name", listener, raw)


def decode_route_configuration(raw: bytes) -> tuple[RouteConfiguration, tuple[str, ...]]:
    return _decode(protos.ROUTE, "name", route_configuration, raw)


def decode_cluster(raw: bytes) -> tuple[Cluster, tuple[str, ...]]:
    return _decode(protos.CLUSTER, "name", cluster, raw)


def decode_load_assignment(raw: bytes) -> tuple[LoadAssignment, tuple[str, ...]]:
    return _decode(protos.ENDPOINT, "cluster_name", load_assignment, raw)


def _decode(type_url: str, name_field: str, decode: Callable[[Any], T], raw: bytes) -> tuple[T, tuple[str, ...]]:
    from google.protobuf.message import DecodeError

    try:
        message = protos.message(protos.type_name(type_url)).FromString(raw)
    except DecodeError as error:
        raise InvalidResourceError(type_url, "", "", f"does not parse: {error}") from None
    name = getattr(message, name_field)
    return guarded(type_url, name, decode, message), unsupported_fields(message)
