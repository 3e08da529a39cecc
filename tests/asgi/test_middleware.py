"""MeshMiddleware on any server: what policy sees, what the application gets, what is refused."""

from __future__ import annotations

import asyncio
from typing import Any
from urllib.parse import unquote

import pytest
from fastapi import FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from proxyless.asgi import MeshMiddleware, mesh_peer
from proxyless.core.request import Address, Peer
from proxyless.core.resources import EscapedSlashes, PathNormalization
from proxyless.errors import ProxylessError
from proxyless.runtime.inbound import Connection
from proxyless.settings import Disabled
from proxyless.spiffe import SpiffeId
from tests.asgi.helpers import (
    Fixture,
    Server,
    World,
    allow,
    deny,
    echo,
    file_lines,
    get,
    identity,
    paths,
    policy,
    principal,
)

DENY_ADMIN = deny(policy("deny-admin", paths("/admin", "/admin/*")))
ALLOW_PUBLIC = allow(policy("allow-public", paths("/public", "/public/*")))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture
def fixture(world) -> Fixture:
    fixture = Fixture(world)
    fixture.configure("PERMISSIVE")
    return fixture


def http_scope(target: str, **changes: Any) -> dict[str, Any]:
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(target),
        "raw_path": target.encode("latin-1"),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"app")],
        "client": ("192.0.2.7", 50000),
        "server": ("127.0.0.1", 8000),
    }
    return {**scope, **changes}


def call(app: Any, scope: dict[str, Any]) -> tuple[int, bytes]:
    """Status and body of one request without a server; a websocket's close counts as 403."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        if scope["type"] == "websocket":
            return {"type": "websocket.connect"}
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    if sent[0]["type"] == "websocket.close":
        return 403, b""
    return sent[0].get("status", 101), b"".join(message.get("body", b"") for message in sent)


class Recorder:
    """An application that remembers the scopes that reached it."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"reached"})


def judged(fixture: Fixture, *rbac: Any, **options: Any) -> tuple[MeshMiddleware, Recorder]:
    fixture.configure("PERMISSIVE", *rbac, **options)
    app = Recorder()
    return MeshMiddleware(app, mesh=fixture.mesh), app


@pytest.mark.parametrize(
    "path",
    [
        "/admin", "/admin/", "/admin/users", "//admin", "////admin", "/admin//users", "/public/../admin", "/%61dmin",
        "/public/%2e%2e/admin", "/public/.%2E/admin", "/admin%2Fusers", "/public%2f..%2fadmin", "/./admin", "/x/../admin?a=b",
        "/\\admin", "/public\\..\\admin", "/admin%5Cusers",
    ],
)  # fmt: skip
def test_a_denied_path_is_denied_in_every_spelling(fixture, path):
    app, reached = judged(fixture, DENY_ADMIN)
    raw, _, query = path.partition("?")
    assert call(app, http_scope(raw, query_string=query.encode()))[0] == 403
    assert reached.scopes == []


@pytest.mark.parametrize("byte", [byte for byte in range(0x21, 0x100) if byte not in b"#%/?\\\x7f"])
def test_an_escaped_character_is_no_way_around_a_denial(fixture, byte):
    """Frameworks decode every escape before they route; a policy names the character, or its escape where it needs one."""
    plain = (
        chr(byte)
        if chr(byte) in "!$&'()*+,-.0123456789:;=@_~[]" or (chr(byte).isascii() and chr(byte).isalpha())
        else ""
    )
    named = plain or f"%{byte:02X}"
    app, reached = judged(fixture, deny(policy("p", paths(f"/v1/a{named}b"))))
    for spelling in {named, f"%{byte:02X}", f"%{byte:02x}"}:
        assert call(app, http_scope(f"/v1/a{spelling}b"))[0] == 403, spelling
    assert reached.scopes == []


@pytest.mark.parametrize("path", ["/files/a%20b", "/caf%C3%A9", "/users/@me"])
def test_what_is_allowed_as_callers_escape_it_is_allowed(fixture, path):
    app, _ = judged(fixture, allow(policy("p", paths(path))))
    assert call(app, http_scope(path))[0] == 200


@pytest.mark.parametrize(
    "path", ["/admin%00", "/admin%0a", "/%0aadmin", "/admin%7f", "/admin#f", "admin", "http://other/admin"]
)
def test_a_malformed_path_is_400(fixture, path):
    app, reached = judged(fixture)
    assert call(app, http_scope(path))[0] == 400
    assert reached.scopes == []


@pytest.mark.parametrize("path", ["/public", "/public/a", "/public/./a", "/public/a%20b"])
def test_an_allowed_path_is_allowed(fixture, path):
    app, _ = judged(fixture, ALLOW_PUBLIC)
    assert call(app, http_scope(path))[0] == 200


@pytest.mark.parametrize(
    "path", ["/admin", "/public/../admin", "/public%2f..%2f..%2fadmin", "/public/..", "/other/public"]
)
def test_an_allow_rule_does_not_stretch(fixture, path):
    app, _ = judged(fixture, ALLOW_PUBLIC)
    assert call(app, http_scope(path))[0] == 403


def test_the_application_gets_the_path_that_policy_saw(fixture):
    app, reached = judged(fixture)
    call(app, http_scope("/a/../b%41/%2e/c%20d"))
    scope = reached.scopes[0]
    assert (scope["raw_path"], scope["path"]) == (b"/bA/c%20d", "/bA/c d")


def test_without_normalization_the_application_gets_the_path_as_sent(fixture):
    app, reached = judged(fixture, normalization=PathNormalization())
    call(app, http_scope("/a/../b"))
    assert reached.scopes[0]["path"] == "/a/../b"


def test_escaped_slashes_follow_the_configured_mode(fixture):
    modes = {
        EscapedSlashes.REJECT_REQUEST: 400,
        EscapedSlashes.UNESCAPE_AND_REDIRECT: 307,
        EscapedSlashes.UNESCAPE_AND_FORWARD: 200,
    }
    for mode, status in modes.items():
        app, _ = judged(fixture, normalization=PathNormalization(normalize=True, escaped_slashes=mode))
        assert call(app, http_scope("/a%2Fb"))[0] == status


def test_a_missing_raw_path_is_made_from_the_path(fixture):
    app, reached = judged(fixture, DENY_ADMIN)
    scope = http_scope("/admin")
    del scope["raw_path"]
    assert call(app, scope)[0] == 403
    for path in ("/a b/%", "/é"):
        scope = http_scope("/", path=path)
        del scope["raw_path"]
        assert call(app, scope)[0] == 200
        assert reached.scopes[-1]["path"] == path


def test_a_path_changed_between_server_and_middleware_must_be_admitted_too(fixture):
    app, _ = judged(fixture, DENY_ADMIN)
    assert call(app, http_scope("/public", path="/admin"))[0] == 403
    assert call(app, http_scope("/admin", path="/public"))[0] == 403


def test_a_root_path_hides_nothing(fixture):
    app, _ = judged(fixture, DENY_ADMIN)
    assert call(app, http_scope("/api/admin", root_path="/api"))[0] == 403
    assert call(app, http_scope("/admin", root_path="/api"))[0] == 403
    assert call(app, http_scope("/admin/x", root_path="/admin"))[0] == 403
    assert call(app, http_scope("/%61pi/admin", root_path="/api"))[0] == 403


def test_a_path_that_only_begins_like_the_root_path_is_not_below_it(fixture):
    app, reached = judged(fixture, DENY_ADMIN)
    assert call(app, http_scope("/apis/x", root_path="/api"))[0] == 200
    assert reached.scopes[-1]["path"] == "/apis/x"


def test_a_mounted_application_is_judged_by_the_whole_path(fixture):
    fixture.configure("PERMISSIVE", deny(policy("d", paths("/sub/admin"))))

    async def endpoint(request: Any) -> PlainTextResponse:
        return PlainTextResponse("reached")

    inner = Starlette(
        routes=[Route("/admin", endpoint), Route("/ok", endpoint)],
        middleware=[Middleware(MeshMiddleware, mesh=fixture.mesh)],
    )
    app = Starlette(routes=[Mount("/sub", inner)])
    assert call(app, http_scope("/sub/admin"))[0] == 403
    assert call(app, http_scope("/sub/ok"))[0] == 200


def test_missing_or_doubtful_hosts_are_400(fixture):
    app, _ = judged(fixture)
    for headers in (
        [],
        [(b"host", b"a"), (b"host", b"b")],
        [(b"host", b"user@app")],
        [(b"host", b"app:")],
        [(b"host", b"app/x")],
        [(b"host", b"a b")],
    ):
        assert call(app, http_scope("/", headers=headers))[0] == 400, headers
    for host in (b"app", b"app:8080", b"[::1]:80", b"", b"a_b.example"):
        assert call(app, http_scope("/", headers=[(b"host", host)]))[0] == 200, host


def test_an_unknown_scope_type_is_refused(fixture):
    app, reached = judged(fixture)
    with pytest.raises(ProxylessError, match="webtransport"):
        call(app, {"type": "webtransport"})
    assert reached.scopes == []


def test_a_websocket_is_judged_as_a_get(fixture):
    app, reached = judged(fixture, DENY_ADMIN)
    scope = {**http_scope("/admin/ws"), "type": "websocket"}
    del scope["method"]
    assert call(app, scope)[0] == 403
    assert call(app, {**scope, "extensions": {"websocket.http.response": {}}}) == (403, b"RBAC: access denied")
    assert reached.scopes == []
    assert call(app, {**scope, "path": "/ws", "raw_path": b"/ws"})[0] == 101


def test_strict_mode_refuses_a_server_that_shows_no_peer(fixture):
    app, reached = judged(fixture)
    fixture.configure("STRICT")
    for claims in ({}, {"scheme": "https"}, {"extensions": {"tls": {"client_cert_name": identity("billing")}}}):
        assert call(app, http_scope("/", **claims)) == (403, b"RBAC: access denied")
    assert reached.scopes == []


def test_nothing_but_our_own_object_makes_an_identity(fixture):
    app, _ = judged(fixture, allow(policy("p", who=principal("billing"))))
    forged = Peer(identity=SpiffeId.parse(identity("billing")), tls=True)
    for value in (forged, {"peer": forged}, identity("billing")):
        assert call(app, http_scope("/", extensions={"proxyless": value}))[0] == 403


def test_a_client_address_from_a_header_is_no_peer_address(fixture):
    app, reached = judged(fixture)
    call(app, http_scope("/", client=("203.0.113.9", 0)))  # what uvicorn's ProxyHeadersMiddleware leaves
    assert mesh_peer(reached.scopes[0]).address == Address("", 0)
    call(app, http_scope("/", client=("203.0.113.9", 4711)))
    assert mesh_peer(reached.scopes[1]).address == Address("203.0.113.9", 4711)


def test_no_header_switches_enforcement_off(fixture):
    app, _ = judged(fixture, DENY_ADMIN)
    headers = [
        (b"host", b"app"),
        (b"x-middleware-subrequest", b"1"),
        (b"x-proxyless-internal", b"1"),
        (b"x-original-url", b"/public"),
    ]
    assert call(app, http_scope("/admin", headers=headers))[0] == 403


def test_a_fault_in_evaluation_refuses(fixture, caplog):
    class Broken:
        def matches(self, request: Any, peer: Any) -> bool:
            raise ZeroDivisionError

    app, reached = judged(fixture, deny(policy("d", Broken())))
    assert call(app, http_scope("/"))[0] in (403, 503)
    assert reached.scopes == []


def test_the_middleware_twice_judges_and_counts_once(fixture):
    fixture.configure("PERMISSIVE")
    app = MeshMiddleware(MeshMiddleware(Recorder(), mesh=fixture.mesh), mesh=fixture.mesh)
    assert call(app, http_scope("/"))[0] == 200
    assert fixture.value("istio_requests_total") == 1


def test_two_meshes_must_both_admit(fixture, world):
    other = Fixture(world)
    other.configure("PERMISSIVE", DENY_ADMIN)
    fixture.configure("PERMISSIVE")
    app = MeshMiddleware(MeshMiddleware(Recorder(), mesh=other.mesh), mesh=fixture.mesh)
    assert call(app, http_scope("/admin"))[0] == 403
    assert call(app, http_scope("/public"))[0] == 200


def test_the_kill_switch_passes_everything_and_says_so(world, caplog):
    fixture = Fixture(world, disabled=Disabled.ALL)
    app = MeshMiddleware(Recorder(), mesh=fixture.mesh)
    assert call(app, http_scope("/admin"))[0] == 200
    assert "PROXYLESS_DISABLED=all" in caplog.text
    assert fixture.value("proxyless_disabled", scope="inbound") == 1


def test_outbound_alone_off_does_not_open_inbound(world):
    fixture = Fixture(world, disabled=Disabled.OUTBOUND)
    fixture.configure("STRICT")
    assert call(MeshMiddleware(Recorder(), mesh=fixture.mesh), http_scope("/"))[0] == 403


def test_before_the_first_configuration_everything_is_503_and_the_reason_is_logged_once(world, caplog):
    fixture = Fixture(world)
    app = MeshMiddleware(Recorder(), mesh=fixture.mesh)
    for _ in range(5):
        assert call(app, http_scope("/")) == (503, b"service is not ready")
    assert sum("refused with 503" in record.message for record in caplog.records) == 1


def test_a_refusal_tells_the_peer_nothing_and_the_log_everything(fixture, caplog):
    caplog.set_level("INFO", "proxyless.inbound")
    app, _ = judged(fixture, deny(policy("ns[default]-policy[secret-name]-rule[0]")))
    status, body = call(app, http_scope("/x"))
    assert (status, body) == (403, b"RBAC: access denied")
    assert "ns[default]-policy[secret-name]-rule[0]" in caplog.text


def test_peer_accessor_needs_the_mesh():
    with pytest.raises(ProxylessError, match="MeshMiddleware"):
        mesh_peer({"type": "http"})


def test_fastapi_sees_the_peer_by_the_request(fixture, world):
    app = FastAPI()
    app.add_middleware(MeshMiddleware, mesh=fixture.mesh)

    @app.get("/who")
    def who(request: Request) -> dict[str, str]:
        return {"peer": str(mesh_peer(request).identity)}

    from proxyless.uvicorn import MeshProtocol

    fixture.configure("STRICT", allow(policy("p", paths("/who"), principal("billing"))))
    with Server(app, MeshProtocol) as server:
        assert get(server.port, "/who", world.client("billing"))[1] == {"peer": identity("billing")}
        assert get(server.port, "/docs", world.client("billing"))[0] == 403


def test_stock_uvicorn_serves_plain_text_under_policy(fixture):
    fixture.configure("PERMISSIVE", DENY_ADMIN)
    with Server(MeshMiddleware(echo, mesh=fixture.mesh), "httptools") as server:
        assert get(server.port, "/")[0] == 200
        assert get(server.port, "/admin")[0] == 403
        forged = "X-Forwarded-For: 10.0.0.1\r\nX-Forwarded-Proto: https\r\n"
        assert get(server.port, "/", extra=forged)[0] == 200
        fixture.configure("STRICT")
        assert get(server.port, "/", extra=forged)[0] == 403


# ------------------------------------------------------------------------------------------------------- telemetry


def test_requests_are_counted_with_istios_labels(fixture):
    app, _ = judged(fixture, DENY_ADMIN)
    call(app, http_scope("/"))
    call(app, http_scope("/admin"))
    labels = {
        "reporter": "destination",
        "destination_workload": "payments",
        "destination_service": "payments.default.svc.cluster.local",
        "destination_service_name": "payments",
        "destination_service_namespace": "default",
        "source_principal": "unknown",
        "connection_security_policy": "none",
        "request_protocol": "http",
        "response_flags": "-",
    }
    assert fixture.value("istio_requests_total", response_code="200", **labels) == 1
    assert fixture.value("istio_requests_total", response_code="403", **labels) == 1
    assert fixture.value("istio_response_bytes_sum", response_code="200") == len(b"reached")
    assert fixture.value("proxyless_inbound_denied_total", reason="policy") == 1


def test_the_access_log_has_envoys_keys_and_one_line_for_each_request(world, tmp_path):
    fixture = Fixture(world, access_log=str(tmp_path / "access.log"))
    app, _ = judged(fixture, DENY_ADMIN)
    headers = [(b"host", b"app"), (b"user-agent", b'curl"\n\x1b[31m'), (b"x-request-id", b"id-1")]
    call(app, http_scope("/a%20b", query_string=b"q=1", headers=headers))
    call(app, http_scope("/admin"))
    fixture.mesh.telemetry.close()
    first, second = file_lines(tmp_path / "access.log")
    assert first["path"] == "/a%20b?q=1"
    assert (first["response_code"], first["response_flags"], first["response_code_details"]) == (
        200,
        "-",
        "via_upstream",
    )
    assert (first["request_id"], first["authority"], first["peer"]) == ("id-1", "app", None)
    assert first["upstream_cluster"] == "inbound|8000||"
    assert first["downstream_remote_address"] == "192.0.2.7:50000"
    assert second["response_code_details"] == "rbac_access_denied_matched_policy[deny-admin]"
    assert second["policy"] == "deny-admin"


def test_a_caller_that_leaves_is_flagged(world, tmp_path):
    fixture = Fixture(world, access_log=str(tmp_path / "access.log"))
    fixture.configure("PERMISSIVE")

    async def waits_for_the_caller(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    async def run() -> None:
        messages = iter([{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}])

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            raise AssertionError(message)

        await MeshMiddleware(waits_for_the_caller, mesh=fixture.mesh)(http_scope("/"), receive, send)

    asyncio.run(run())
    fixture.mesh.telemetry.close()
    line = file_lines(tmp_path / "access.log")[0]
    assert (line["response_code"], line["response_flags"]) == (0, "DC")
    assert fixture.value("istio_requests_total", response_code="0", response_flags="DC") == 1


def test_an_exception_of_the_application_is_counted_as_500_and_stays_its_own(fixture):
    fixture.configure("PERMISSIVE")

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        call(MeshMiddleware(fails, mesh=fixture.mesh), http_scope("/"))
    assert fixture.value("istio_requests_total", response_code="500") == 1


def test_grpc_status_is_read_from_headers_and_trailers(fixture):
    fixture.configure("PERMISSIVE")

    def app(headers: Any, trailers: Any) -> Any:
        async def serve(scope: Any, receive: Any, send: Any) -> None:
            await send(
                {"type": "http.response.start", "status": 200, "headers": headers, "trailers": trailers is not None}
            )
            await send({"type": "http.response.body", "body": b""})
            if trailers is not None:
                await send({"type": "http.response.trailers", "headers": trailers})

        return MeshMiddleware(serve, mesh=fixture.mesh)

    scope = http_scope("/p.S/M", method="POST", headers=[(b"host", b"a"), (b"content-type", b"application/grpc")])
    call(app([(b"grpc-status", b"5")], None), scope)
    call(app([], [(b"grpc-status", b"0")]), scope)
    assert fixture.value("istio_requests_total", request_protocol="grpc", grpc_response_status="5") == 1
    assert fixture.value("istio_requests_total", request_protocol="grpc", grpc_response_status="0") == 1


def test_strangers_cannot_grow_the_metrics(fixture):
    app, _ = judged(fixture)
    fixture.mesh.telemetry.metrics.service = type(
        fixture.mesh.telemetry.metrics.service
    )()  # not registered: Host is the fallback
    middleware = app
    for number in range(300):
        call(middleware, http_scope(f"/{number}", headers=[(b"host", b"host-%d" % number)]))
    series = {
        sample.labels["destination_service"]
        for family in fixture.registry.collect()
        for sample in family.samples
        if sample.name == "istio_requests_total"
    }
    assert len(series) <= 101
    assert fixture.value("istio_requests_total") == 300


# -------------------------------------------------------------------------------------------------------- lifespan


def lifespan(app: Any) -> tuple[list[dict[str, Any]], BaseException | None]:
    """Start and stop an application as a server does; what it answered and what it raised."""
    sent: list[dict[str, Any]] = []

    async def run() -> BaseException | None:
        queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        await queue.put({"type": "lifespan.startup"})

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "lifespan.startup.complete":
                await queue.put({"type": "lifespan.shutdown"})

        try:
            await app({"type": "lifespan", "asgi": {}, "state": {}}, queue.get, send)
        except BaseException as error:
            return error
        return None

    error = asyncio.run(run())
    return sent, error


def kinds(sent: list[dict[str, Any]]) -> list[str]:
    return [message["type"].removeprefix("lifespan.") for message in sent]


@pytest.mark.field("FC-58")
def test_lifespan_starts_and_closes_the_mesh(fixture):
    sent, error = lifespan(MeshMiddleware(echo, mesh=fixture.mesh))
    assert (kinds(sent), error) == (["startup.complete", "shutdown.complete"], None)
    assert fixture.mesh._started is False


def test_an_application_that_is_still_starting_is_not_ready(fixture):
    """A probe of the mesh must not say more than the application does."""
    seen: list[list[str]] = []

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        seen.append(fixture.mesh.not_ready_reasons())
        await send({"type": "lifespan.startup.complete"})
        seen.append(fixture.mesh.not_ready_reasons())
        await receive()
        await send({"type": "lifespan.shutdown.complete"})

    lifespan(MeshMiddleware(slow, mesh=fixture.mesh))
    assert seen == [["application: its start-up is not complete"], []]


@pytest.mark.field("FC-58")
def test_an_application_that_does_not_know_lifespan_works(fixture):
    async def http_only(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

    async def ignores(scope: Any, receive: Any, send: Any) -> None:
        return

    for app in (http_only, ignores):
        sent, error = lifespan(MeshMiddleware(app, mesh=fixture.mesh))
        assert (kinds(sent), error) == (["startup.complete", "shutdown.complete"], None)


@pytest.mark.field("FC-58")
def test_the_applications_start_up_error_is_reported_as_its_own(fixture):
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("database is down")

    sent, error = lifespan(MeshMiddleware(fails, mesh=fixture.mesh))
    assert kinds(sent) == ["startup.failed"]
    assert sent[0]["message"] == "RuntimeError: database is down"
    assert isinstance(error, RuntimeError)
    assert fixture.mesh._started is False


@pytest.mark.field("FC-58")
def test_a_wrong_setting_fails_the_start_up_with_one_message(monkeypatch):
    from proxyless.runtime.mesh import Mesh

    monkeypatch.setenv("PROXYLESS_XDS", "nonsense")
    monkeypatch.setattr(Mesh, "_default", None)
    sent, error = lifespan(MeshMiddleware(echo))
    assert kinds(sent) == ["startup.failed"]
    assert "PROXYLESS_XDS" in sent[0]["message"]
    assert error is None


@pytest.mark.field("FC-58")
def test_without_lifespan_the_mesh_starts_with_the_first_request(fixture):
    with Server(MeshMiddleware(echo, mesh=fixture.mesh), "h11", lifespan="off") as server:
        assert fixture.mesh._started is False
        assert get(server.port, "/")[0] == 200
        assert fixture.mesh._started is True
    fixture.mesh.close()


@pytest.mark.field("FC-58")
def test_uvicorn_ends_when_the_applications_start_up_fails(fixture):
    async def fails(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        raise RuntimeError("database is down")

    with Server(MeshMiddleware(fails, mesh=fixture.mesh), "h11", lifespan="auto") as server:
        assert server.failures
        assert server.server.started is False


def test_a_connection_object_has_no_chain_in_a_snapshot_without_inbound(fixture):
    from proxyless.core.snapshot import Resources, compile_snapshot

    snapshot = compile_snapshot(Resources(), None, 9)
    assert Connection.plaintext(Address("127.0.0.1", 1), Address("127.0.0.1", 2)).chain(snapshot) is None
