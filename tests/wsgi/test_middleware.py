"""MeshWSGIMiddleware on any server: paths, header names, streaming, and a server of the standard library that folds names."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote_to_bytes
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
from wsgiref.validate import validator

import pytest

from proxyless.core.matchers import HeaderMatcher, StringMatcher
from proxyless.core.rbac import HeaderRule
from proxyless.errors import ProxylessError
from proxyless.wsgi import MeshWSGIMiddleware, mesh_peer
from tests.asgi.helpers import Fixture, World, allow, deny, file_lines, get, paths, policy

DENY_ADMIN = deny(policy("deny-admin", paths("/admin", "/admin/*")))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture
def fixture(world) -> Fixture:
    fixture = Fixture(world)
    fixture.configure("PERMISSIVE")
    return fixture


def environ(target: str = "/", **changes: Any) -> dict[str, Any]:
    """As gunicorn makes it, for a plain text connection without a socket."""
    path, _, query = target.partition("?")
    return {
        "REQUEST_METHOD": "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(path).decode("latin-1"),
        "QUERY_STRING": query,
        "RAW_URI": target,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_SOFTWARE": "gunicorn/27.0",
        "REMOTE_ADDR": "192.0.2.7",
        "HTTP_HOST": "app",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        "wsgi.multithread": False,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        **changes,
    }


class Recorder:
    def __init__(self) -> None:
        self.environs: list[dict[str, Any]] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> list[bytes]:
        self.environs.append(environ)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"reached"]


def call(app: Any, environ: dict[str, Any]) -> tuple[int, bytes]:
    started: list[str] = []

    def start_response(status: str, headers: Any, exc_info: Any = None) -> Any:
        started.append(status)
        return lambda data: None

    body = app(environ, start_response)
    try:
        data = b"".join(body)
    finally:
        if hasattr(body, "close"):
            body.close()
    return int(started[-1][:3]), data


def judged(fixture: Fixture, *rbac: Any) -> tuple[MeshWSGIMiddleware, Recorder]:
    fixture.configure("PERMISSIVE", *rbac)
    app = Recorder()
    return MeshWSGIMiddleware(app, mesh=fixture.mesh), app


@pytest.mark.parametrize(
    "target",
    ["/admin", "/admin?x", "//admin", "/public/../admin", "/%61dmin", "/admin%2Fx", "/public%2f..%2fadmin", "/admin/"],
)
def test_a_denied_path_is_denied_in_every_spelling(fixture, target):
    app, reached = judged(fixture, DENY_ADMIN)
    assert call(app, environ(target))[0] == 403
    assert reached.environs == []


def test_what_the_router_uses_counts_as_well_as_what_was_on_the_wire(fixture):
    app, _ = judged(fixture, DENY_ADMIN)
    assert call(app, environ("/public", PATH_INFO="/admin"))[0] == 403
    assert call(app, environ("/admin", PATH_INFO="/public"))[0] == 403
    assert call(app, environ("/public", REQUEST_URI="/public", PATH_INFO="/public/../admin"))[0] == 403


def test_without_a_raw_uri_the_path_is_that_of_the_router(fixture):
    app, _ = judged(fixture, DENY_ADMIN)
    for changes in (
        {"PATH_INFO": "/admin"},
        {"PATH_INFO": "/public/../admin"},
        {"SCRIPT_NAME": "/admin", "PATH_INFO": ""},
    ):
        values = environ("/", **changes)
        del values["RAW_URI"]
        assert call(app, values)[0] == 403


def test_an_absolute_target_is_judged_by_its_path(fixture):
    app, _ = judged(fixture, DENY_ADMIN)
    assert call(app, environ("http://other/admin", PATH_INFO="/admin"))[0] == 403


def test_an_absolute_target_that_is_none_is_400(fixture):
    app, _ = judged(fixture)
    assert call(app, environ("http://[other/admin", PATH_INFO="/admin"))[0] == 400


def test_the_application_gets_the_path_that_policy_saw(fixture):
    app, reached = judged(fixture)
    call(app, environ("/a/../b%41/%C3%A9"))
    assert reached.environs[0]["PATH_INFO"] == "/bA/" + "é".encode().decode("latin-1")
    call(app, environ("/app/x/../y", SCRIPT_NAME="/app", PATH_INFO="/x/../y"))
    assert (reached.environs[1]["SCRIPT_NAME"], reached.environs[1]["PATH_INFO"]) == ("/app", "/y")
    assert call(app, environ("/app/../y", SCRIPT_NAME="/app", PATH_INFO="/../y"))[0] == 400


@pytest.mark.parametrize("target", ["/admin%00", "/admin%0a", "/%7f"])
def test_control_characters_are_400(fixture, target):
    assert call(judged(fixture)[0], environ(target))[0] == 400


def test_hosts_that_are_missing_or_joined_are_400(fixture):
    app, _ = judged(fixture)
    values = environ("/")
    del values["HTTP_HOST"]
    assert call(app, values)[0] == 400
    assert call(app, environ("/", HTTP_HOST="a,b"))[0] == 400


def header_rule(name: str, value: str) -> HeaderRule:
    return HeaderRule(HeaderMatcher(name, StringMatcher("exact", value)))


def test_names_with_dashes_match_where_the_server_drops_underscores(fixture):
    app, _ = judged(fixture, allow(policy("p", header_rule("x-real", "c"))))
    assert call(app, environ("/", HTTP_X_REAL="c"))[0] == 200
    assert call(app, environ("/", HTTP_X_REAL="a"))[0] == 403


def test_names_of_several_words_match_no_allow_rule_where_underscores_may_arrive(fixture):
    app, _ = judged(fixture, allow(policy("p", header_rule("x-real", "c"))))
    assert call(app, environ("/", HTTP_X_REAL="c", SERVER_SOFTWARE="WSGIServer/0.2"))[0] == 403
    app, _ = judged(fixture, allow(policy("p", header_rule("role", "c"))))
    assert call(app, environ("/", HTTP_ROLE="c", SERVER_SOFTWARE="WSGIServer/0.2"))[0] == 200


def test_a_deny_rule_matches_an_ambiguous_name(fixture):
    app, _ = judged(fixture, deny(policy("p", header_rule("x-role", "admin"))))
    assert call(app, environ("/", HTTP_X_ROLE="admin", SERVER_SOFTWARE="WSGIServer/0.2"))[0] == 403


def test_no_header_makes_an_identity_and_the_scheme_is_that_of_the_socket(fixture):
    app, reached = judged(fixture)
    call(app, environ("/", HTTP_X_FORWARDED_CLIENT_CERT="URI=x", HTTP_X_MESH_PEER="spiffe://x/y"))
    seen = reached.environs[0]
    assert mesh_peer(seen).identity is None
    assert seen["wsgi.url_scheme"] == "http"
    assert "HTTP_X_FORWARDED_CLIENT_CERT" not in seen


def test_strict_mode_refuses_a_server_that_shows_no_peer(fixture):
    app, reached = judged(fixture)
    fixture.configure("STRICT")
    assert call(app, environ("/")) == (403, b"RBAC: access denied")
    assert reached.environs == []


def test_before_the_first_configuration_everything_is_503(world):
    app = MeshWSGIMiddleware(Recorder(), mesh=Fixture(world).mesh)
    assert call(app, environ("/")) == (503, b"service is not ready")


def test_the_middleware_twice_judges_and_counts_once(fixture):
    fixture.configure("PERMISSIVE")
    app = MeshWSGIMiddleware(MeshWSGIMiddleware(Recorder(), mesh=fixture.mesh), mesh=fixture.mesh)
    assert call(app, environ("/"))[0] == 200
    assert fixture.value("istio_requests_total") == 1


def test_a_streamed_response_is_recorded_when_it_is_closed(world, tmp_path):
    fixture = Fixture(world, access_log=str(tmp_path / "log"))
    fixture.configure("PERMISSIVE")
    closed = []

    def streams(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            yield b"a" * 10
            yield b"b" * 10
        finally:
            closed.append(True)

    app = MeshWSGIMiddleware(streams, mesh=fixture.mesh)
    body = app(environ("/whole"), lambda *_: lambda data: None)
    assert fixture.value("istio_requests_total") == 0
    assert b"".join(body) == b"a" * 10 + b"b" * 10
    body.close()
    body.close()
    left = app(environ("/left"), lambda *_: lambda data: None)
    next(iter(left))
    left.close()
    assert closed == [True, True]
    fixture.mesh.telemetry.close()
    whole, left = file_lines(tmp_path / "log")
    assert (whole["bytes_sent"], whole["response_flags"]) == (20, "-")
    assert (left["bytes_sent"], left["response_flags"]) == (10, "DC")


def test_an_exception_is_counted_and_stays_the_applications(fixture):
    fixture.configure("PERMISSIVE")

    def fails(environ: Any, start_response: Any) -> list[bytes]:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        call(MeshWSGIMiddleware(fails, mesh=fixture.mesh), environ("/"))
    assert fixture.value("istio_requests_total", response_code="500") == 1


def test_peer_accessor_needs_the_mesh():
    with pytest.raises(ProxylessError, match="MeshWSGIMiddleware"):
        mesh_peer({"HTTP_HOST": "a"})


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.field("FC-60")
def test_a_server_of_the_standard_library_and_its_validator_accept_us(fixture):
    """wsgiref keeps names with underscores: FC-60 on the wire."""

    def hello(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
        return [b"ok"]

    fixture.configure("PERMISSIVE", allow(policy("p", header_rule("x-real", "c")), policy("q", paths("/open"))))
    server = WSGIServer(("127.0.0.1", 0), Quiet)
    server.set_app(validator(MeshWSGIMiddleware(validator(hello), mesh=fixture.mesh)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        port = server.server_port
        assert get(port, "/open") == (200, b"ok")
        assert get(port, "/", extra="X-Real: c\r\n")[0] == 403
        assert get(port, "/", extra="X_Real: c\r\n")[0] == 403
        assert get(port, "/", extra="X-Real: a\r\nX-Real: b\r\nX_Real: c\r\n")[0] == 403
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
