"""OpenTelemetry: `ProxylessInstrumentor().instrument()` or `opentelemetry-instrument` switches spans on.

The API only; provider, sampler, exporter and propagator belong to the app. Spans follow the stable HTTP conventions: one
client span for each attempt (`http.request.resend_count` from the second on), one server span for each inbound request.
Where another instrumentation has a span for the same hop, ours is left out: inbound when a recording server span is current
already, outbound when the suppression context of `opentelemetry-instrumentation` is set.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextvars import Token
from typing import Any

from opentelemetry import context as otel_context
from opentelemetry import propagate, trace
from opentelemetry.context import Context
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]  # that module opts out of type checking
from opentelemetry.instrumentation.utils import is_http_instrumentation_enabled
from opentelemetry.trace import Span, SpanKind, Status, StatusCode

from proxyless import __version__
from proxyless.telemetry.spans import hook

__all__ = ["ProxylessInstrumentor"]

RawHeaders = Sequence[tuple[bytes, bytes]]


class _HeadersGetter:
    """Reads raw header pairs for a propagator."""

    def get(self, carrier: RawHeaders, key: str) -> list[str] | None:
        wanted = key.lower().encode("latin-1")
        found = [value.decode("latin-1") for name, value in carrier if name.lower() == wanted]
        return found or None

    def keys(self, carrier: RawHeaders) -> list[str]:
        return [name.decode("latin-1").lower() for name, _ in carrier]


_GETTER: Any = _HeadersGetter()  # matches opentelemetry's Getter, which is an abstract class and no protocol


class _Client:
    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def inject(self, headers: RawHeaders) -> list[tuple[bytes, bytes]]:
        added: dict[str, str] = {}
        propagate.inject(added, context=trace.set_span_in_context(self._span))
        names = {name.lower().encode("latin-1") for name in added}
        kept = [pair for pair in headers if pair[0].lower() not in names]
        return kept + [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in added.items()]

    def end(self, status: int, flags: str = "-", error: BaseException | None = None, peer: str = "") -> None:
        _finish(self._span, status, flags, error, failed=status >= 400 or status == 0)
        if peer:
            self._span.set_attribute("proxyless.peer.principal", peer)
        self._span.end()


class _Suppressed(_Client):
    """Outbound while another instrumentation covers the hop: its context travels, its span is left to it."""

    __slots__ = ()

    def end(self, status: int, flags: str = "-", error: BaseException | None = None, peer: str = "") -> None:
        pass


class _Server:
    __slots__ = ("_span", "_token")

    def __init__(self, span: Span, token: Token[Context]) -> None:
        self._span, self._token = span, token

    def end(self, status: int, flags: str = "-", error: BaseException | None = None) -> None:
        _finish(self._span, status, flags, error, failed=status >= 500)
        self._span.end()
        otel_context.detach(self._token)


def _finish(span: Span, status: int, flags: str, error: BaseException | None, *, failed: bool) -> None:
    if not span.is_recording():
        return
    if status:
        span.set_attribute("http.response.status_code", status)
    if flags != "-":
        span.set_attribute("response_flags", flags)
    if error is not None:
        span.record_exception(error)
    if failed or error is not None:
        span.set_attribute("error.type", type(error).__name__ if error is not None else str(status))
        span.set_status(Status(StatusCode.ERROR))


class _Spans:
    """What `hook.active` holds."""

    def __init__(self, tracer_provider: trace.TracerProvider | None) -> None:
        self._tracer = trace.get_tracer("proxyless", __version__, tracer_provider)

    def client(
        self,
        method: str,
        scheme: str,
        authority: str,
        path: str,
        *,
        cluster: str = "",
        address: str = "",
        resend: int = 0,
    ) -> _Client:
        if not is_http_instrumentation_enabled():
            return _Suppressed(trace.get_current_span())
        host, _, port = authority.rpartition(":") if authority.rpartition(":")[2].isdigit() else (authority, "", "")
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "url.full": f"{scheme}://{authority}{path}",
            "server.address": host,
            "server.port": int(port) if port else 443 if scheme == "https" else 80,
        }
        if cluster:
            attributes["upstream_cluster"] = cluster
        if address:
            attributes["network.peer.address"] = address
        if resend:
            attributes["http.request.resend_count"] = resend
        return _Client(self._tracer.start_span(method, kind=SpanKind.CLIENT, attributes=attributes))

    def server(
        self,
        method: str,
        scheme: str,
        authority: str,
        path: str,
        headers: RawHeaders,
        *,
        peer: str = "",
        client: str = "",
    ) -> _Server | None:
        if trace.get_current_span().is_recording():
            return None
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "url.scheme": scheme,
            "url.path": path,
            "server.address": authority,
        }
        if peer:
            attributes["proxyless.peer.principal"] = peer
        if client:
            attributes["client.address"] = client
        parent = propagate.extract(headers, getter=_GETTER)
        span = self._tracer.start_span(method, context=parent, kind=SpanKind.SERVER, attributes=attributes)
        return _Server(span, otel_context.attach(trace.set_span_in_context(span, parent)))


class ProxylessInstrumentor(BaseInstrumentor):  # type: ignore[misc]  # its base is Any for the same reason
    """Entry point `opentelemetry_instrumentor`. `instrument(tracer_provider=...)` takes the app's provider."""

    def instrumentation_dependencies(self) -> Collection[str]:
        return ()

    def _instrument(self, **kwargs: Any) -> None:
        hook.active = _Spans(kwargs.get("tracer_provider"))

    def _uninstrument(self, **kwargs: Any) -> None:
        hook.active = None
