"""One inbound request from its decision to its end: what is counted, logged and traced about it. Any server, any framework."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from proxyless.core.replies import BODILESS, parse_grpc_status
from proxyless.telemetry import access_log, families
from proxyless.telemetry.spans import hook

if TYPE_CHECKING:
    from proxyless.core.inbound import Admission
    from proxyless.core.request import Request
    from proxyless.runtime.inbound import Connection
    from proxyless.telemetry.recorder import Telemetry

__all__ = ["InboundExchange"]

log = logging.getLogger("proxyless.inbound")

RawHeader = tuple[bytes, bytes]

_REASONS = {  # response code details -> label of proxyless_inbound_denied_total
    "mesh_not_ready": "not_ready",
    "filter_chain_not_found": "mode",
    "policy_evaluation_failed": "error",
}


class InboundExchange:
    """Made when a request is judged; `end` exactly once. Belongs to the task or thread that serves the request.

    Attributes:
        status: of the response, 0 until it starts.
        received, sent: bytes of the bodies so far.
        complete: the last byte of the response was handed to the server.
        awaits_trailers: the end of the body is not the end of the response.
    """

    __slots__ = (
        "_began",
        "_details",
        "_error",
        "_flags",
        "_grpc",
        "_grpc_status",
        "_http_version",
        "_recorded",
        "_seconds",
        "_span",
        "_telemetry",
        "_wall",
        "admission",
        "awaits_trailers",
        "complete",
        "connection",
        "received",
        "request",
        "sent",
        "status",
    )

    def __init__(
        self, telemetry: Telemetry, connection: Connection, request: Request, admission: Admission, http_version: str
    ) -> None:
        self._began, self._wall = time.perf_counter(), time.time()
        self._telemetry, self.connection, self.request, self.admission = telemetry, connection, request, admission
        self._http_version = http_version
        self.status = self.received = self.sent = 0
        self.complete = self._recorded = self.awaits_trailers = False
        self._error: BaseException | None = None
        self._grpc = request.method == "POST" and request.is_grpc  # a GET need not index its headers
        self._grpc_status: int | None = None
        self._flags, self._details = "-", "via_upstream"
        self._span = None
        spans = hook.active
        if spans is not None:
            peer = connection.peer
            self._span = spans.server(
                request.method,
                request.scheme,
                request.authority,
                request.path,
                request.headers,
                peer=str(peer.identity or ""),
                client=peer.address.host,
            )
        if not admission.allowed:
            self._refused(admission)
        for verdict in admission.shadow:
            if not verdict.allowed:
                log.info("dry run would deny %s policy=%s (%s)", ascii(request.path), verdict.policy, verdict.prefix)

    def refuse(self, admission: Admission) -> None:
        """The adapter found a reason of its own to refuse an admitted request, before the application ran."""
        self.admission = admission
        self._refused(admission)

    def started(self, status: int, headers: Iterable[RawHeader]) -> list[RawHeader] | None:
        """The response starts. Returns the headers to send instead when the connection must end after it, else None."""
        self.status = status
        if self._grpc:
            self.trailers(headers)
        if self.connection.ends_soon(time.time()):
            return [*headers, (b"connection", b"close")]
        return None

    def trailers(self, headers: Iterable[RawHeader]) -> None:
        """Look for the gRPC status in headers or trailers."""
        for name, value in headers:
            if name.lower() == b"grpc-status":
                self._grpc_status = parse_grpc_status(value)

    def disconnected(self) -> None:
        """The caller went away; after the end of the response that is nothing unusual."""
        if not self.complete:
            self._flags, self._details = "DC", "downstream_remote_disconnect"

    def failed(self, error: BaseException) -> None:
        """The application raised; the server answers 500 when nothing was sent."""
        self._error = error
        if isinstance(error, asyncio.CancelledError):
            self.disconnected()
        elif not self.status:
            self.status, self._details = 500, "application_error"

    def refusal_headers(self) -> list[RawHeader]:
        """Headers of a refusal. What cannot be served on this connection at all closes it."""
        admission = self.admission
        headers = [*admission.headers]
        if admission.status not in BODILESS:
            headers.insert(0, (b"content-length", b"%d" % len(admission.body)))
        if admission.body:
            headers.append((b"content-type", b"text/plain"))
        if admission.details == "filter_chain_not_found" or admission.status == 400:
            headers.append((b"connection", b"close"))
        return headers

    def finish(self) -> None:
        """The last byte is about to be handed over: count and log now, so that who has the response finds it counted."""
        self.complete = True
        self._record()

    def finish_soon(self) -> None:
        """The same in an event loop, where the response goes out first: see `telemetry.recorder`."""
        self.complete = True
        if not self._recorded:
            self._recorded, self._seconds = True, time.perf_counter() - self._began
            self._telemetry.soon(asyncio.get_running_loop(), self._count)

    def end(self) -> None:
        """The application is done with the request."""
        self._record()
        if self._span is not None:
            self._span.end(self.status, self._flags, self._error)

    def _refused(self, admission: Admission) -> None:
        self.status, self.sent, self.complete = admission.status, len(admission.body), True
        self._flags, self._details = admission.flag, admission.details
        policy = admission.details.startswith("rbac_access_denied")
        reason = "policy" if policy else "malformed" if admission.status == 400 else _REASONS.get(admission.details)
        if reason is not None:  # a redirect or a missing route is an answer, no refusal
            self._telemetry.metrics.add(families.INBOUND_DENIED, reason)
        if policy:
            request, peer = self.request, self.connection.peer
            log.info(
                "denied %s %s peer=%s policy=%s details=%s",
                ascii(request.method),
                ascii(request.path),
                peer.identity or "anonymous",
                admission.policy or "none",
                admission.details,
            )

    def _record(self) -> None:
        """Once. Never raises: telemetry is no reason to fail a request."""
        if not self._recorded:
            self._recorded, self._seconds = True, time.perf_counter() - self._began
            try:
                self._count()
            except Exception:
                log.exception("a request could not be recorded")

    def _count(self) -> None:
        connection = self.connection
        identity, seconds = connection.identity, self._seconds
        self._telemetry.metrics.inbound(
            identity,
            self.request.authority,
            "grpc" if self._grpc else "http",
            self.status,
            self._grpc_status,
            self._flags,
            seconds,
            self.received,
            self.sent,
            tls=bool(identity),
        )
        sink = self._telemetry.access_log
        if sink is None:
            return
        request, admission = self.request, self.admission
        sink.write(
            access_log.line(
                connection.log_ends if admission.allowed else connection.log_refused,
                self._wall,
                seconds,
                method=request.method,
                path=f"{request.path}?{request.query}" if request.query else request.path,
                protocol=f"HTTP/{self._http_version}",
                authority=request.authority,
                status=self.status,
                flags=self._flags,
                details=self._details,
                received=self.received,
                sent=self.sent,
                upstream_seconds=seconds if admission.allowed and self.status else None,
                headers=access_log.LoggedHeaders.find(request.headers),
                policy=admission.policy,
            )
        )
