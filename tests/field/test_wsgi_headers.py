"""FC-60: header names that WSGI folds into one, under gunicorn as it comes and under a server that keeps them all."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from wsgiref.simple_server import WSGIServer

import httpx
import pytest

from proxyless.httpx import MeshTransport
from proxyless.testing import LocalMesh
from proxyless.wsgi import MeshWSGIMiddleware
from tests.asgi.helpers import ask, eventually, raw
from tests.cli.helpers import Process, free_port
from tests.field.apps import _echo
from tests.runtime.helpers import endpoints
from tests.wsgi.test_middleware import Quiet

pytestmark = pytest.mark.field("FC-60")

POLICY = """
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: payments}
spec:
  selector: {matchLabels: {app: payments}}
  rules:
  - when: [{key: "request.headers[x-real]", values: [c]}]
  - to: [{operation: {paths: [/open/*]}}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: never}
spec:
  selector: {matchLabels: {app: payments}}
  action: DENY
  rules: [{to: [{operation: {paths: [/c]}}]}]
"""
WORKLOADS = {"billing": [], "payments": ["payments"]}
Pairs = list[tuple[str, str]]
FORGED: Pairs = [
    ("X-Mesh-Peer", "spiffe://evil.test/ns/a/sa/b"),
    ("X_Forwarded_Client_Cert", "URI=spiffe://evil.test/x"),
    ("X-Forwarded-Client-Cert", "URI=spiffe://evil.test/x"),
]


class Caller:
    """billing, over mutual TLS."""

    def __init__(self, client: httpx.Client) -> None:
        self._client = client

    def get(self, path: str, headers: Pairs) -> httpx.Response:
        return self._client.get(f"http://payments{path}", headers=headers)


@pytest.fixture(scope="module")
def gunicorn(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Caller, int]]:
    port = free_port()
    with LocalMesh(POLICY, workloads=WORKLOADS) as local:
        env = local.environment("payments", service="payments", port=str(port), labels="app=payments")
        command = ["-c", "python:proxyless.gunicorn", "-b", f"127.0.0.1:{port}", "tests.field.apps:wsgi"]
        with Process(tmp_path_factory.mktemp("gunicorn") / "log", *command, env=env, module="gunicorn") as server:
            eventually(server.ready, 20)
            mesh = local.mesh("billing")
            eventually(lambda: endpoints(mesh, "payments") == [port])
            with httpx.Client(transport=MeshTransport(mesh), timeout=10) as client:
                yield Caller(client), port


def test_fc_60_no_header_says_who_calls(gunicorn: tuple[Caller, int]) -> None:
    answer = gunicorn[0].get("/open/a", FORGED)
    assert answer.json()["peer"] == "spiffe://cluster.local/ns/default/sa/billing"
    assert "evil.test/x" not in answer.text


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("X-Real", "c")], 200),
        ([("X_Real", "c")], 403),
        ([("X-Real", "a"), ("X_Real", "c")], 403),
        ([("X-Real", "a"), ("X-Real", "b"), ("X_Real", "c")], 403),
    ],
)
def test_fc_60_a_name_with_underscores_is_never_the_one_with_dashes(
    gunicorn: tuple[Caller, int], headers: Pairs, status: int
) -> None:
    assert gunicorn[0].get("/", headers).status_code == status


def test_fc_60_repeated_values_are_seen_together(gunicorn: tuple[Caller, int]) -> None:
    assert gunicorn[0].get("/open/a", [("X-Real", "a"), ("X-Real", "b")]).json()["HTTP_X_REAL"] == "a,b"


def test_fc_60_the_path_is_the_one_that_was_sent(gunicorn: tuple[Caller, int]) -> None:
    with raw(gunicorn[1]) as sock:
        assert ask(sock, b"GET /a%2Fb/../c HTTP/1.1\r\nHost: app\r\nX-Real: c\r\n\r\n")[0] == 403, "/c is denied"
    with raw(gunicorn[1]) as sock:
        status, body = ask(sock, b"GET /open/a%2Fb HTTP/1.1\r\nHost: app\r\n\r\n")
        assert status == 200
        assert b'"PATH_INFO": "/open/a/b"' in body


@contextlib.contextmanager
def keeping(app: Any) -> Iterator[int]:
    """wsgiref: names with underscores arrive, and overwrite the others."""
    server = WSGIServer(("127.0.0.1", 0), Quiet)
    server.set_app(app)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


@pytest.mark.parametrize(
    "headers", [[("X-Real", "c")], [("X_Real", "c")], [("X-Real", "a"), ("X-Real", "b"), ("X_Real", "c")]]
)
def test_fc_60_where_both_arrive_as_one_name_it_allows_nothing(headers: Pairs, tmp_path: Path) -> None:
    with LocalMesh(POLICY, workloads=WORKLOADS) as local:
        mesh = local.mesh("payments", labels={"app": "payments"})
        with keeping(MeshWSGIMiddleware(_echo, mesh=mesh)) as port, httpx.Client(trust_env=False) as client:
            assert client.get(f"http://127.0.0.1:{port}/open/a", headers=headers).status_code == 200
            assert client.get(f"http://127.0.0.1:{port}/", headers=headers).status_code == 403
