"""Protobuf messages of xDS, of the SPIFFE Workload API and of workload registration, from one descriptor set.

The set (`descriptors.binpb.gz`) is made when the package is built (`hatch_build.py`) and loaded on first use into a private
`DescriptorPool`: our types never clash with those of `xds-protos` or any other package in the same process. Importing this
module imports no protobuf; the first `message()` costs about 10 ms beyond protobuf itself. Files of the set are decoded when a
message of them is first needed (`database`).
"""

from __future__ import annotations

import gzip
import os
import threading
from functools import cache
from importlib import resources
from typing import Any

from proxyless.protos.database import DescriptorDatabase

__all__ = [
    "CLUSTER",
    "DELTA_ADS_METHOD",
    "ENDPOINT",
    "FETCH_JWT_BUNDLES_METHOD",
    "FETCH_JWT_SVID_METHOD",
    "FETCH_X509_BUNDLES_METHOD",
    "FETCH_X509_SVID_METHOD",
    "LISTENER",
    "REGISTER_METHOD",
    "ROUTE",
    "SECRET",
    "STREAM_ADS_METHOD",
    "TYPE_PREFIX",
    "VALIDATE_JWT_SVID_METHOD",
    "any_to_message",
    "is_map",
    "message",
    "pack",
    "pool",
    "to_dict",
    "type_name",
    "type_url",
]

TYPE_PREFIX = "type.googleapis.com/"

LISTENER = TYPE_PREFIX + "envoy.config.listener.v3.Listener"
ROUTE = TYPE_PREFIX + "envoy.config.route.v3.RouteConfiguration"
CLUSTER = TYPE_PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINT = TYPE_PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET = TYPE_PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"

STREAM_ADS_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
DELTA_ADS_METHOD = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
REGISTER_METHOD = "/proxyless.registration.v1.WorkloadRegistration/Register"
FETCH_X509_SVID_METHOD = "/SpiffeWorkloadAPI/FetchX509SVID"
FETCH_X509_BUNDLES_METHOD = "/SpiffeWorkloadAPI/FetchX509Bundles"
FETCH_JWT_SVID_METHOD = "/SpiffeWorkloadAPI/FetchJWTSVID"
FETCH_JWT_BUNDLES_METHOD = "/SpiffeWorkloadAPI/FetchJWTBundles"
VALIDATE_JWT_SVID_METHOD = "/SpiffeWorkloadAPI/ValidateJWTSVID"

_DESCRIPTORS = "descriptors.binpb.gz"
_lock = threading.RLock()
_database: DescriptorDatabase | None = None
_pool: Any = None


def _renew_lock() -> None:
    global _lock
    _lock = threading.RLock()


# A thread of the parent may hold the lock at the instant of the fork.
os.register_at_fork(after_in_child=_renew_lock)


def pool() -> Any:
    """The private `DescriptorPool` with every file of the set, for `json_format`, which looks types up by itself."""
    with _lock:
        database, pool = _loaded()
        for path in database:
            database.load(pool, path)
    return pool


def _loaded() -> tuple[DescriptorDatabase, Any]:
    """The set, and a pool that has of it what was asked for so far. Under `_lock`."""
    global _database, _pool
    if _database is None:
        from google.protobuf import descriptor_pool

        source = resources.files(__name__).joinpath(_DESCRIPTORS)
        try:
            packed = source.read_bytes()
        except FileNotFoundError:
            raise ImportError(
                f"proxyless: {source} is missing. It is made when the package is built: "
                "run `pip install -e .` in the source checkout."
            ) from None
        _pool = descriptor_pool.DescriptorPool()
        _database = DescriptorDatabase(gzip.decompress(packed))
    return _database, _pool


@cache
def message(full_name: str) -> type[Any]:
    """The message class of a full name, such as ``envoy.config.listener.v3.Listener``.

    Raises:
        LookupError: the descriptor set has no such message.
    """
    from google.protobuf import message_factory

    try:
        with _lock:
            database, pool = _loaded()
            database.load(pool, database.declares(full_name))
            descriptor = pool.FindMessageTypeByName(full_name)
    except KeyError:
        raise LookupError(f"no message {full_name!r} in the descriptor set") from None
    found: type[Any] = message_factory.GetMessageClass(descriptor)
    return found


def type_url(value: Any) -> str:
    """``type.googleapis.com/<full name>`` of a message or a message class."""
    return TYPE_PREFIX + str(value.DESCRIPTOR.full_name)


def type_name(url: str) -> str:
    """The full name in a type URL: what follows the last slash (any.proto)."""
    return url.rpartition("/")[2]


def pack(value: Any) -> Any:
    """The message in a `google.protobuf.Any`, serialised deterministically: equal messages have equal bytes."""
    return message("google.protobuf.Any")(type_url=type_url(value), value=value.SerializeToString(deterministic=True))


def any_to_message(packed: Any) -> Any | None:
    """The message inside a `google.protobuf.Any`; None when its type is not in the descriptor set.

    Raises:
        ValueError: the type is known and the bytes do not parse.
    """
    from google.protobuf.message import DecodeError

    try:
        kind = message(type_name(packed.type_url))
    except LookupError:
        return None
    try:
        return kind.FromString(packed.value)
    except DecodeError as error:
        raise ValueError(f"not a valid {type_name(packed.type_url)}: {error}") from None


def to_dict(value: Any) -> dict[str, Any]:
    """The message as JSON-ready dict with proto field names, for dumps.

    An `Any` of an unknown type becomes a `google.protobuf.Struct` that names the type and its size.
    """
    from google.protobuf import json_format

    copy = type(value)()
    copy.CopyFrom(value)
    _replace_unknown(copy)  # which has loaded the type of every `Any` that is left
    result: dict[str, Any] = json_format.MessageToDict(copy, preserving_proto_field_name=True, descriptor_pool=_pool)
    return result


def is_map(content: Any) -> bool:
    """The value of a map field. (`GetOptions().map_entry` of the field says it too, and loads `descriptor_pb2`: 0.8 MiB.)"""
    return hasattr(content, "GetEntryClass")


def _replace_unknown(value: Any) -> None:
    """Replace, in place and at any depth, each `Any` that JSON cannot show."""
    if value.DESCRIPTOR.full_name == "google.protobuf.Any":
        if not value.type_url:
            return
        try:
            inner = any_to_message(value)
        except ValueError:
            inner = None
        if inner is None:
            inner = message("google.protobuf.Struct")()
            inner.update({"unknown_type": value.type_url, "size": len(value.value)})
        else:
            _replace_unknown(inner)
        value.CopyFrom(pack(inner))
        return
    for field, content in value.ListFields():
        if field.message_type is None:
            continue
        if is_map(content):
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in content:
                    _replace_unknown(content[key])
        elif hasattr(content, "DESCRIPTOR"):
            _replace_unknown(content)
        else:
            for item in content:
                _replace_unknown(item)
