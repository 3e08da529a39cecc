"""The loop that does what `core.call` says, and what is counted, logged and traced about a call. Any client library.

An adapter makes an `OutboundExchange`, runs it on an engine of its colour, and hands out what it gets:

    Deliver      `exchange.response` has begun; read it by `exchange.body` or `exchange.chunks`, which end the call
    Reply, Fail  the call is over
    Passthrough  use ordinary transport, and say with `passed` what came of it
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from proxyless.core.call import Action, Attempt, Deliver, OutboundCall, Wait
from proxyless.engine.outcomes import answered, body_broken, failed
from proxyless.engine.timeouts import UNLIMITED, Timeouts
from proxyless.errors import EngineError
from proxyless.telemetry import access_log, families
from proxyless.telemetry.labels import Service
from proxyless.telemetry.spans import hook

if TYPE_CHECKING:
    from proxyless.core.learned import Learned
    from proxyless.core.request import Address, Request
    from proxyless.core.rng import Rng
    from proxyless.core.snapshot import Snapshot
    from proxyless.engine import AsyncExchange, SyncEngine, SyncExchange
    from proxyless.telemetry.recorder import Telemetry
    from proxyless.telemetry.spans import ClientSpan, Spans

__all__ = ["Attempts", "OutboundExchange"]

log = logging.getLogger("proxyless.outbound")

monotonic = time.monotonic

PASSTHROUGH = Service("PassthroughCluster", "PassthroughCluster", "unknown")  # Istio's name for what is not the mesh's

#: Kinds of EngineError that are the caller's own doing: they end the call and blame no endpoint.
CALLERS_OWN = frozenset({"request", "pool_timeout"})


class Attempts(Protocol):
    """What the loop needs of an engine. What it returns has `status`, `headers`, `body`, `reused`, `peer` and `close`."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop: ...
    async def exchange(self, attempt: Attempt, body: Any, timeouts: Timeouts, /) -> Any: ...


class OutboundExchange:
    """One call, from its request to the end of its response. One task or thread at a time.

    Attributes:
        call: the decisions; `call.record` names what was decided.
        error: of the last attempt that had no response.
        response: of the engine, once `Deliver` was returned.
        peer: verified SPIFFE ID of the endpoint that answered; empty for plain text.
        sent, received: bytes of request and response bodies.
    """

    __slots__ = (
        "_began",
        "_ended",
        "_loop",
        "_seconds",
        "_span",
        "_telemetry",
        "_wall",
        "call",
        "error",
        "peer",
        "received",
        "request",
        "response",
        "sent",
    )

    def __init__(
        self,
        telemetry: Telemetry,
        snapshot: Snapshot,
        request: Request,
        learned: Learned,
        rng: Rng,
        *,
        timeout: float | None = None,
        began: float | None = None,
    ) -> None:
        """`timeout`: seconds for the whole call, None: the route's. `began`: when the caller asked (monotonic)."""
        self._telemetry, self.request = telemetry, request
        self._began, self._wall = monotonic() if began is None else began, time.time()
        self.call = OutboundCall(snapshot, request, learned, now=self._began, rng=rng, timeout=timeout)
        self.error: EngineError | None = None
        self.response: Any = None
        self.sent = self.received = 0
        self.peer = ""
        self._span: ClientSpan | None = None
        self._ended = False
        self._loop: asyncio.AbstractEventLoop | None = None

    # ---------------------------------------------------------------------------------------------------------- loops

    async def run_async(
        self, engine: Attempts, body: bytes | AsyncIterable[bytes], timeouts: Timeouts = UNLIMITED
    ) -> Action:
        """-> Deliver, Reply, Fail or Passthrough.

        Raises:
            EngineError: of a kind in `CALLERS_OWN`.
            Exception: whatever the body's iterator raised.
        """
        call, self._loop = self.call, engine.loop
        sending: bytes | AsyncIterable[bytes] = body
        if isinstance(body, bytes):
            self.sent = len(body)
        else:
            sending = _AsyncCounted(self, body)
        try:
            action = call.next(self._began)
            while True:
                if type(action) is Attempt:
                    if hook.active is not None:
                        self._start_span(hook.active, action)
                    try:
                        exchange = await engine.exchange(action, sending, timeouts)
                    except EngineError as error:
                        action = self._failed(action, error)
                        continue
                    action = self._answered(exchange)
                    if type(action) is Deliver:
                        return action
                    exchange.close()
                elif type(action) is Wait:
                    await asyncio.sleep(action.until - monotonic())
                    action = call.next(monotonic())
                else:
                    return self._over(action)
        except BaseException as error:
            self.abandon(error)
            raise

    def run(self, engine: SyncEngine, body: bytes | Iterable[bytes], timeouts: Timeouts = UNLIMITED) -> Action:
        """The same, blocking."""
        call = self.call
        sending: bytes | Iterable[bytes] = body
        if isinstance(body, bytes):
            self.sent = len(body)
        else:
            sending = self._counted(body)
        try:
            action = call.next(self._began)
            while True:
                if type(action) is Attempt:
                    if hook.active is not None:
                        self._start_span(hook.active, action)
                    try:
                        exchange = engine.exchange(action, sending, timeouts)
                    except EngineError as error:
                        action = self._failed(action, error)
                        continue
                    action = self._answered(exchange)
                    if type(action) is Deliver:
                        return action
                    exchange.close()
                elif type(action) is Wait:
                    time.sleep(max(0.0, action.until - monotonic()))
                    action = call.next(monotonic())
                else:
                    return self._over(action)
        except BaseException as error:
            self.abandon(error)
            raise

    # ------------------------------------------------------------------------------------------------------- the body

    @property
    def body(self) -> bytes | None:
        """The whole body, when it had arrived with the head: the call is then over. None: read `chunks`."""
        body: bytes | None = self.response.body
        return body

    async def chunks_async(self) -> AsyncGenerator[bytes, None]:
        """The body, piece by piece; EngineError where it breaks. The call ends with it."""
        response: AsyncExchange = self.response
        try:
            async for chunk in response:
                self.received += len(chunk)
                yield chunk
        except BaseException as error:  # also when whoever iterates leaves early
            response.close()
            self.body_ended(error)
            raise
        self.body_ended(None)

    def chunks(self) -> Iterator[bytes]:
        """The same, blocking."""
        response: SyncExchange = self.response
        try:
            for chunk in response:
                self.received += len(chunk)
                yield chunk
        except BaseException as error:
            response.close()
            self.body_ended(error)
            raise
        self.body_ended(None)

    def close(self) -> None:
        """The caller is done with the response; idempotent. A body that was not read to its end was not wanted."""
        self.response.close()  # whatever was recorded: the connection is given back once, by its own count
        self.body_ended(GeneratorExit())

    def body_ended(self, error: BaseException | None) -> None:
        """The delivered body ended, or broke."""
        if not self._ended:
            self.call.on_body_end(None if error is None else body_broken(error), monotonic())
            if isinstance(error, EngineError):
                self.error = error
            self._end(error)

    # ----------------------------------------------------------------------------------------------------------- ends

    def passed(self, status: int, error: BaseException | None = None) -> None:
        """Ordinary transport answered with `status`, or raised."""
        record = self.call.record
        record.status = status
        if not record.cluster:
            record.cluster = PASSTHROUGH.host
        self._end(error)

    def refused(self, status: int, details: str) -> None:
        """Instead of `run`: the caller may not make this call, and gets this status."""
        self.call.record.status, self.call.record.details = status, details
        self._end(None)

    def abandon(self, error: BaseException | None = None) -> None:
        """The caller went away, or is itself to blame."""
        self.call.abandon(monotonic())
        self._end(error)

    def _answered(self, exchange: Any) -> Action:
        outcome = answered(exchange.status, exchange.headers, reused=exchange.reused, grpc=self.call.record.grpc)
        self.peer = exchange.peer
        action = self.call.on_outcome(outcome, monotonic())
        if type(action) is not Deliver:
            self._end_span(exchange.status, None)
            return action
        self.response, self.error = exchange, None
        if exchange.body is None:
            exchange.limit(action.deadline)
        else:
            self.received = len(exchange.body)
            self.body_ended(None)
        return action

    def _failed(self, attempt: Attempt, error: EngineError) -> Action:
        self.error = error
        self._end_span(0, error)
        if error.kind in CALLERS_OWN:
            raise error
        return self.call.on_outcome(failed(attempt, error), monotonic())

    def _over(self, action: Action) -> Action:
        if self.call.record.status:  # not so for what is passed through, which has only begun
            self._end(self.error)
        return action

    def _counted(self, body: Iterable[bytes]) -> Iterator[bytes]:
        for chunk in body:
            self.sent += len(chunk)
            yield chunk

    # ------------------------------------------------------------------------------------------------------ telemetry

    def _start_span(self, spans: Spans, attempt: Attempt) -> None:
        request = self.request
        self._span = spans.client(
            attempt.method,
            request.scheme,
            request.authority,
            attempt.target.decode("latin-1"),
            cluster=attempt.upstream.cluster.name,
            address=str(attempt.endpoint.address),
            resend=attempt.number - 1,
        )
        attempt.headers = self._span.inject(attempt.headers)

    def _end_span(self, status: int, error: BaseException | None) -> None:
        span, self._span = self._span, None
        if span is not None:
            span.end(status, self.call.record.flags, error, self.peer)

    def _end(self, error: BaseException | None) -> None:
        """Once. Never raises: telemetry is no reason to fail a call."""
        if self._ended:
            return
        self._ended = True
        self._seconds = monotonic() - self._began
        try:
            if self._span is not None:
                self._end_span(self.call.record.status, None if isinstance(error, GeneratorExit) else error)
            if self._loop is not None:
                # The caller goes on first; its next request travels while this one is written down.
                self._telemetry.soon(self._loop, self._record)
            else:
                self._record()
        except Exception:
            log.exception("a call could not be recorded")

    def _record(self) -> None:
        record, telemetry = self.call.record, self._telemetry
        telemetry.metrics.outbound(
            record.workload,
            self.peer,
            _service(record.service or record.cluster, record.service_namespace),
            "grpc" if record.grpc else "http",
            record.status,
            record.grpc_status,
            record.flags,
            self._seconds,
            self.sent,
            self.received,
        )
        if record.ejections:
            self._ejected()
        sink = telemetry.access_log
        if sink is not None:
            sink.write(self._line())

    def _ejected(self) -> None:
        record = self.call.record
        for ejection in record.ejections:
            if ejection.enforced:
                self._telemetry.metrics.add(families.OUTBOUND_EJECTIONS)
                log.warning(
                    "ejected %s of %s: %s, ejection number %d",
                    ejection.address,
                    record.cluster,
                    ejection.detector,
                    ejection.ejections,
                )

    def _line(self) -> str:
        request, record, error, seconds = self.request, self.call.record, self.error, self._seconds
        endpoint = record.endpoint
        return access_log.line(
            _ends(record.route, None if endpoint is None else endpoint.address, record.cluster, request.sni, self.peer),
            self._wall,
            seconds,
            method=request.method,
            path=f"{request.path}?{request.query}" if request.query else request.path,
            authority=request.authority,
            status=record.status,
            flags=record.flags,
            details=record.details or "",
            received=self.sent,
            sent=self.received,
            upstream_seconds=seconds if endpoint is not None and error is None else None,
            upstream_failure=str(error) if error is not None else "",
            headers=access_log.LoggedHeaders.find(request.headers),
            attempts=record.attempts,
        )


class _AsyncCounted:
    """A request body whose bytes are counted as they leave."""

    __slots__ = ("_body", "_exchange")

    def __init__(self, exchange: OutboundExchange, body: AsyncIterable[bytes]) -> None:
        self._exchange, self._body = exchange, body

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._body:
            self._exchange.sent += len(chunk)
            yield chunk


@lru_cache(1024)
def _service(host: str, namespace: str) -> Service:
    return PASSTHROUGH if host == PASSTHROUGH.host else Service.of_host(host, namespace)


@lru_cache(1024)
def _ends(route: str, address: Address | None, cluster: str, sni: str, peer: str) -> str:
    host = "" if address is None else str(address)
    return access_log.fixed("outbound", route=route, upstream_host=host, upstream_cluster=cluster, sni=sni, peer=peer)
