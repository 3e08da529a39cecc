"""Answers of the mesh itself, as Envoy's `sendLocalReply` makes them (recorded from Envoy 1.40).

A gRPC request gets HTTP 200 with `grpc-status` and `grpc-message`; everybody else the status, with a text body or none.
"""

from __future__ import annotations

__all__ = ["BODILESS", "grpc_to_http_status", "http_to_grpc_status", "local_reply_parts", "parse_grpc_status"]

BODILESS = frozenset((204, 304))  # no Content-Length, RFC 9110 section 8.6
_GRPC_OF_HTTP = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}
_HTTP_OF_GRPC = (200, 499, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401)
_UNKNOWN = 2


def parse_grpc_status(value: bytes) -> int | None:
    """The value of a `grpc-status` header; None when it is no number that one could be."""
    return int(value) if value.isdigit() and len(value) <= 3 else None


def http_to_grpc_status(status: int) -> int:
    """Envoy `Grpc::Utility::httpToGrpcStatus`."""
    return _GRPC_OF_HTTP.get(status, _UNKNOWN)


def grpc_to_http_status(status: int) -> int:
    """Envoy `Grpc::Utility::grpcToHttpStatus`; what outlier detection counts for a gRPC response."""
    return _HTTP_OF_GRPC[status] if 0 <= status < len(_HTTP_OF_GRPC) else 500


def local_reply_parts(
    status: int, body: bytes, *, grpc: bool, grpc_status: int | None = None
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body. Content-Length is left to whoever writes the response."""
    if not grpc:
        return status, [(b"content-type", b"text/plain")] if body else [], body
    number = http_to_grpc_status(status) if grpc_status is None else grpc_status
    headers = [(b"content-type", b"application/grpc"), (b"grpc-status", b"%d" % number)]
    if body:
        headers.append((b"grpc-message", _percent_encoded(body)))
    return 200, headers, b""


def _percent_encoded(text: bytes) -> bytes:
    """gRPC's encoding of Status-Message: printable ASCII but `%` stands for itself."""
    return b"".join(bytes((byte,)) if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in text)
