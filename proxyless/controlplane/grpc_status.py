"""Status codes of gRPC by name, as Istio's YAML has them (gRPC `statuscodes.md`). grpcio has them too, at the price of its import."""

from __future__ import annotations

from typing import Final

__all__ = ["GRPC_STATUS"]

GRPC_STATUS: Final = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
"""In the order of their numbers, from 0."""
