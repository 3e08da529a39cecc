"""Spans: only when the instrumentor is on, below the caller's, one for each hop."""

from __future__ import annotations

import asyncio
from importlib.metadata import entry_points
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_http_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import SpanKind

from proxyless.asgi import MeshMiddleware
from proxyless.telemetry.spans import hook
from proxyless.telemetry.tracing import ProxylessInstrumentor
from tests.asgi.helpers import Fixture, World, deny, paths, policy
from tests.asgi.test_middleware import Recorder, call, http_scope

PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    instrumentor = ProxylessInstrumentor()
    instrumentor.instrument(tracer_provider=provider, skip_dep_check=True)
    yield exporter, provider
    instrumentor.uninstrument()


@pytest.fixture
def fixture() -> Fixture:
    fixture = Fixture(World())
    fixture.configure("PERMISSIVE", deny(policy("d", paths("/admin"))))
    return fixture


def test_nothing_is_traced_until_instrumented():
    assert hook.active is None


def test_the_entry_point_names_the_instrumentor():
    (entry,) = [each for each in entry_points(group="opentelemetry_instrumentor") if each.name == "proxyless"]
    assert entry.load() is ProxylessInstrumentor


def test_an_inbound_request_is_a_server_span_below_the_callers(spans, fixture):
    exporter, _ = spans
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(trace.get_current_span().get_span_context().span_id)
        await Recorder()(scope, receive, send)

    call(
        MeshMiddleware(app, mesh=fixture.mesh), http_scope("/a", headers=[(b"host", b"app"), (b"traceparent", PARENT)])
    )
    (span,) = exporter.get_finished_spans()
    assert span.kind is SpanKind.SERVER
    assert span.parent is not None
    assert (f"{span.context.trace_id:x}", f"{span.parent.span_id:x}") == (
        "af7651916cd43dd8448eb211c80319c",
        "b7ad6b7169203331",
    )
    assert seen == [span.context.span_id]
    assert span.attributes["http.response.status_code"] == 200
    assert span.attributes["url.path"] == "/a"


def test_a_refused_request_is_traced_and_an_exception_is_recorded(spans, fixture):
    exporter, _ = spans
    call(MeshMiddleware(Recorder(), mesh=fixture.mesh), http_scope("/admin"))

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError):
        call(MeshMiddleware(fails, mesh=fixture.mesh), http_scope("/"))
    refused, failed = exporter.get_finished_spans()
    assert refused.attributes["http.response.status_code"] == 403
    assert failed.attributes["error.type"] == "KeyError"
    assert not failed.status.is_ok


def test_no_second_server_span_below_another_instrumentation(spans, fixture):
    exporter, provider = spans
    app = MeshMiddleware(Recorder(), mesh=fixture.mesh)
    with provider.get_tracer("other").start_as_current_span("theirs", kind=SpanKind.SERVER):
        asyncio.run(_in_this_context(app))
    assert [span.name for span in exporter.get_finished_spans()] == ["theirs"]


async def _in_this_context(app: Any) -> None:
    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        pass

    await app(http_scope("/"), receive, send)


def test_a_client_span_carries_its_context_to_the_endpoint(spans):
    exporter, _ = spans
    span = hook.active.client(
        "GET", "http", "payments:8080", "/pay", cluster="outbound|8080||payments", address="10.0.0.1:8080", resend=1
    )
    headers = span.inject([(b"Accept", b"*/*"), (b"Traceparent", PARENT)])
    span.end(503, "UC", None, peer="spiffe://a/b")
    (finished,) = exporter.get_finished_spans()
    accept, (name, value) = headers
    assert (accept, name) == ((b"Accept", b"*/*"), b"traceparent")
    assert value.startswith(f"00-{finished.context.trace_id:032x}-{finished.context.span_id:016x}-".encode())
    assert finished.kind is SpanKind.CLIENT
    assert {
        "http.request.method": "GET",
        "url.full": "http://payments:8080/pay",
        "server.address": "payments",
        "server.port": 8080,
        "http.request.resend_count": 1,
        "http.response.status_code": 503,
        "response_flags": "UC",
        "error.type": "503",
        "upstream_cluster": "outbound|8080||payments",
        "proxyless.peer.principal": "spiffe://a/b",
    }.items() <= finished.attributes.items()


def test_outbound_suppression_leaves_the_span_to_the_other_instrumentation(spans):
    exporter, provider = spans
    with provider.get_tracer("other").start_as_current_span("theirs"), suppress_http_instrumentation():
        span = hook.active.client("GET", "http", "a", "/")
        assert dict(span.inject([]))[b"traceparent"]
        span.end(200)
        assert exporter.get_finished_spans() == ()
    assert [each.name for each in exporter.get_finished_spans()] == ["theirs"]


def test_an_unsampled_trace_still_travels():
    instrumentor = ProxylessInstrumentor()
    instrumentor.instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF), skip_dep_check=True)
    try:
        ((name, value),) = hook.active.client("GET", "http", "a", "/").inject([])
    finally:
        instrumentor.uninstrument()
    assert name == b"traceparent"
    assert int(value[-2:], 16) & 1 == 0
