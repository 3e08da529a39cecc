"""What happened on a connection, in the words of `core`."""

from __future__ import annotations

from proxyless.core.actions import Attempt
from proxyless.core.replies import parse_grpc_status
from proxyless.core.request import Outcome, OutcomeKind, RawHeaders
from proxyless.errors import EngineError

__all__ = ["answered", "body_broken", "failed"]

_KINDS = {
    "connect": OutcomeKind.CONNECT_FAILURE,
    "connect_timeout": OutcomeKind.CONNECT_FAILURE,
    "tls": OutcomeKind.CONNECT_FAILURE,
    "identity": OutcomeKind.CONNECT_FAILURE,
    "pool_overflow": OutcomeKind.OVERFLOW,
    "read": OutcomeKind.RESET,
    "closed": OutcomeKind.RESET,
    "protocol": OutcomeKind.PROTOCOL_ERROR,
    # The caller's own patience: over for the whole call, whatever the route's retries could still try.
    "read_timeout": OutcomeKind.TIMEOUT,
    "write_timeout": OutcomeKind.TIMEOUT,
    "deadline": OutcomeKind.TIMEOUT,
    # Neither is the endpoint's fault; callers end the call instead of reporting these.
    "pool_timeout": OutcomeKind.CANCELLED,
    "request": OutcomeKind.CANCELLED,
}


def failed(attempt: Attempt, error: EngineError) -> Outcome:
    """An attempt without an answer."""
    kind = _KINDS[error.kind]
    if kind is OutcomeKind.RESET and not error.request_sent:
        kind = OutcomeKind.RESET_BEFORE_REQUEST
    elif attempt.per_try and error.kind == "deadline":
        kind = OutcomeKind.PER_TRY_TIMEOUT
    return Outcome(
        kind=kind,
        reused=error.reused,
        bytes_seen=error.bytes_seen,
        detail=str(error),
        timed_out=error.kind == "connect_timeout",
        identity_refused=error.kind == "identity",
    )


def answered(status: int, headers: RawHeaders, *, reused: bool, grpc: bool) -> Outcome:
    """An attempt whose answer has begun. `grpc`: look for the status of a trailers-only answer."""
    grpc_status = None
    if grpc:
        for name, value in headers:
            if name.lower() == b"grpc-status":
                grpc_status = parse_grpc_status(value)
    return Outcome(
        kind=OutcomeKind.RESPONSE,
        status=status,
        grpc_status=grpc_status,
        headers=headers,
        reused=reused,
        bytes_seen=True,
    )


def body_broken(error: BaseException) -> OutcomeKind:
    """Why a body that was being delivered ended before its end."""
    if not isinstance(error, EngineError):
        return OutcomeKind.CANCELLED
    return _KINDS[error.kind]
