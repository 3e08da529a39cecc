"""Flag, details, status and exception type of an attempt that ended without a response, as Envoy names them.

Source: Envoy `Filter::streamResetReasonToResponseFlag`, RESPONSE_CODE_DETAILS and local reply texts; recordings of Envoy 1.40.
Recorded as well: a body that breaks off is `upstream_reset_after_response_started{protocol_error}` with UPE, whether the
connection was reset or closed.
"""

from __future__ import annotations

from typing import NamedTuple

from proxyless.core.request import Outcome, OutcomeKind
from proxyless.errors import (
    ConnectFailureError,
    ConnectionTerminatedError,
    RequestError,
    UpstreamProtocolError,
    UpstreamTimeoutError,
)

__all__ = ["BODY_BROKEN", "Failure", "describe_failure"]


class Failure(NamedTuple):
    """How one kind of failure is named."""

    flag: str
    details: str
    status: int
    error: type[RequestError]
    message: str


_REASONS: dict[OutcomeKind, tuple[str, str, int, type[RequestError]]] = {
    OutcomeKind.CONNECT_FAILURE: ("UF", "remote_connection_failure", 503, ConnectFailureError),
    OutcomeKind.RESET_BEFORE_REQUEST: ("UC", "connection_termination", 503, ConnectionTerminatedError),
    OutcomeKind.RESET: ("UC", "connection_termination", 503, ConnectionTerminatedError),
    OutcomeKind.REFUSED_STREAM: ("UR", "remote_refused_stream_reset", 503, ConnectionTerminatedError),
    OutcomeKind.PROTOCOL_ERROR: ("UPE", "protocol_error", 502, UpstreamProtocolError),
}
_PER_TRY_TIMEOUT = Failure("UT", "upstream_per_try_timeout", 504, UpstreamTimeoutError, "upstream request timeout")
_TIMEOUT = Failure("UT", "response_timeout", 504, UpstreamTimeoutError, "upstream request timeout")
_MAX_DURATION = Failure("-", "max_duration_timeout", 504, UpstreamTimeoutError, "downstream duration timeout")
_CANCELLED = Failure("DC", "downstream_remote_disconnect", 499, ConnectionTerminatedError, "the caller went away")

BODY_BROKEN = "upstream_reset_after_response_started{protocol_error}"


def describe_failure(kind: OutcomeKind, outcome: Outcome | None, attempts: int, *, max_duration: bool) -> Failure:
    """`outcome` adds the transport's reason; `max_duration`: it was `max_stream_duration` that ended the call."""
    if kind is OutcomeKind.PER_TRY_TIMEOUT:
        return _PER_TRY_TIMEOUT
    if kind is OutcomeKind.TIMEOUT:
        return _MAX_DURATION if max_duration else _TIMEOUT
    if kind is OutcomeKind.CANCELLED:
        return _CANCELLED
    flag, reason, status, error = _REASONS[kind]
    text = detail = outcome.detail if outcome is not None else ""
    if kind is OutcomeKind.CONNECT_FAILURE and outcome is not None and outcome.timed_out:
        reason, detail = "connection_timeout", ""
    again = "retried and the latest reset reason" if attempts > 1 else "reset reason"
    message = f"upstream connect error or disconnect/reset before headers. {again}: {reason.replace('_', ' ')}"
    if text:
        message = f"{message}, transport failure reason: {text}"
    details = f"{reason}|{'_'.join(detail.split())}" if detail and flag == "UF" else reason
    return Failure(flag, f"upstream_reset_before_response_started{{{details}}}", status, error, message)
