"""Protobuf messages out of plain trees.

A tree is a dict of proto field names; nested messages are dicts too, an `Any` is made by `packed`. Only the outermost message
of a resource is built by class, which keeps the translators short and one conversion per resource.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from proxyless.protos import message, pack

__all__ = ["Tree", "duration", "extension", "fraction", "packed", "serialized", "struct"]

Tree = dict[str, Any]

MILLION = 1_000_000


def serialized(type_name: str, tree: Tree) -> bytes:
    """The bytes of a message; equal trees give equal bytes."""
    value: bytes = message(type_name)(**tree).SerializeToString(deterministic=True)
    return value


def packed(type_name: str, tree: Tree | None = None) -> Any:
    """A `google.protobuf.Any` that holds the message."""
    return pack(message(type_name)(**(tree or {})))


def extension(name: str, type_name: str, tree: Tree | None = None) -> Tree:
    """A named extension: an HTTP filter, a transport socket, a listener filter."""
    return {"name": name, "typed_config": packed(type_name, tree)}


def duration(seconds: float) -> Tree:
    """google.protobuf.Duration, exact to the microsecond."""
    micros = round(seconds * 1_000_000)
    return {"seconds": micros // 1_000_000, "nanos": micros % 1_000_000 * 1000}


def fraction(percent: float) -> Tree:
    """envoy.type.v3.FractionalPercent with Istio's resolution of 1e-4 percent."""
    return {"numerator": round(percent * MILLION / 100), "denominator": "MILLION"}


def struct(value: Mapping[str, Any]) -> Any:
    """A google.protobuf.Struct."""
    result = message("google.protobuf.Struct")()
    result.update(value)
    return result
