"""gunicorn with `-c python:proxyless.gunicorn`: real workers, real TLS, independent clients."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.asgi.helpers import World, ask, client_context, eventually, get, identity, raw
from tests.interop.helpers import free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


class Gunicorn:
    """One gunicorn with a material file that tests rewrite."""

    def __init__(self, world: World, directory: Path, app: str, *arguments: str, **env: str) -> None:
        self.world, self._app, self._arguments, self._env = world, app, arguments, env
        self.material = directory / "material.json"
        self.log = directory / "log"
        self.port, self.admin = free_port(), free_port()
        self.write()

    def write(self, mode: str = "PERMISSIVE", *denied: str, account: str = "payments", **options: Any) -> None:
        svid = self.world.svid(account, **options)
        material = {
            "mode": mode,
            "deny": denied,
            "svid": {"chain": b"".join(svid.chain).hex(), "key": svid.private_key.hex()},
            "anchors": [der.hex() for der in self.world.authority.bundle],
        }
        fresh = self.material.with_suffix(".new")
        fresh.write_text(json.dumps(material))
        fresh.replace(self.material)

    def __enter__(self) -> Gunicorn:
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PROXYLESS_", "PROMETHEUS_"))},
            "TEST_MATERIAL": str(self.material),
            "PROXYLESS_ADMIN": f"127.0.0.1:{self.admin}",
            **self._env,
        }
        command = [
            sys.executable, "-m", "gunicorn", "-c", "python:proxyless.gunicorn", "-b", f"127.0.0.1:{self.port}",
            "--log-level", "info", *self._arguments, self._app,
        ]  # fmt: skip
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log)
        eventually(self._serves, 20, "gunicorn")
        return self

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return self.ask_admin("/ready")[0] == 200

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def ask_admin(self, path: str) -> tuple[int, str]:
        try:
            with socket.create_connection(("127.0.0.1", self.admin), 5) as sock:
                status, body = ask(sock, f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        except OSError:
            return 0, ""
        return status, body.decode()

    def metric(self, name: str, **labels: str) -> float:
        total = 0.0
        for line in self.ask_admin("/metrics")[1].splitlines():
            found = re.match(r"(\w+)(?:\{(.*)\})? (\S+)$", line)
            if found and found[1] == name:
                seen = dict(re.findall(r'(\w+)="([^"]*)"', found[2] or ""))
                if labels.items() <= seen.items():
                    total += float(found[3])
        return total


WORKERS = {"sync": ("-k", "sync"), "gthread": ("-k", "gthread", "--threads", "4")}


@pytest.fixture(scope="module", params=WORKERS)
def server(request, world, tmp_path_factory):
    with Gunicorn(
        world, tmp_path_factory.mktemp("gunicorn"), "tests.wsgi.apps:application", *WORKERS[request.param]
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def permissive(request):
    """Each test begins with the same configuration on the shared server."""
    if "server" in request.fixturenames:
        configure(request.getfixturevalue("server"))


def configure(server: Gunicorn, mode: str = "PERMISSIVE", *denied: str, **options: Any) -> None:
    def generation() -> int:
        return json.loads(server.ask_admin("/config_dump")[1])["proxyless"]["generation"]

    before = generation()
    server.write(mode, *denied, **options)
    eventually(lambda: generation() > before)


def test_one_port_serves_mutual_tls_and_plain_text(server, world):
    status, seen = get(server.port, "/", world.client("billing"))
    assert (status, seen["peer"], seen["scheme"]) == (200, identity("billing"), "https")
    status, seen = get(server.port, "/")
    assert (status, seen["peer"], seen["scheme"]) == (200, "", "http")


def test_strict_mode_ends_plain_text_before_any_request(server, world):
    configure(server, "STRICT")
    assert get(server.port, "/") == (0, b"")
    assert get(server.port, "/", world.client("billing"))[0] == 200
    assert get(server.port, "/", client_context(None, world.authority.bundle, ["istio"])) == (0, b"")


def test_a_kept_connection_ends_when_the_mode_does_not_take_it_any_more(server, world):
    request = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    with raw(server.port) as sock:
        assert ask(sock, request)[0] == 200
        configure(server, "STRICT")
        assert ask(sock, request)[0] in (403, 0)  # 0: a sync worker keeps no connection
        assert ask(sock, request) == (0, b"")


def test_a_peer_of_another_authority_is_refused(server, world):
    stranger = World()
    assert get(server.port, "/", client_context(stranger.svid("billing"), world.authority.bundle, ["istio"])) == (
        0,
        b"",
    )
    assert get(server.port, "/", world.client("billing"))[0] == 200


def test_policy_sees_the_path_as_it_was_on_the_wire(server, world):
    configure(server, "PERMISSIVE", "/admin", "/admin/*")
    for path in ("/admin", "/public/../admin", "/admin%2Fx", "//admin", "/%61dmin", "/a%2Fb/../../admin"):
        assert get(server.port, path, world.client())[0] == 403, path
    status, seen = get(server.port, "/a%2Fb/../c")
    assert (status, seen["path"]) == (200, "/c")


def test_the_certificate_rotates_without_a_restart(server, world):
    def served() -> bytes | None:
        with raw(server.port, world.client()) as sock:
            return sock.getpeercert(True)

    before = served()
    configure(server)
    assert served() not in (None, before)


def test_client_certificate_headers_never_arrive(server, world):
    extra = "X-Forwarded-Client-Cert: URI=a\r\nX_Forwarded_Client_Cert: URI=b\r\nX-Forwarded-Proto: https\r\n"
    status, seen = get(server.port, "/", extra=extra)
    assert status == 200
    assert "HTTP_X_FORWARDED_CLIENT_CERT" not in seen["headers"]
    assert (seen["peer"], seen["scheme"]) == ("", "http")


def test_a_silent_connection_does_not_hold_the_server_for_ever(server, world):
    with socket.create_connection(("127.0.0.1", server.port)):
        assert get(server.port, "/", world.client())[0] == 200


def test_bodies_arrive_and_are_counted(server, world):
    with raw(server.port, world.client()) as sock:
        head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\nConnection: close\r\n\r\n"
        status, body = ask(sock, head.encode() + b"x" * 100_000)
    assert (status, json.loads(body)["size"]) == (200, 100_000)
    with raw(server.port) as sock:
        head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        status, body = ask(sock, head.encode() + b"5\r\nhello\r\n0\r\n\r\n")
    assert (status, json.loads(body)["size"]) == (200, 5)
    eventually(lambda: server.metric("istio_request_bytes_sum") >= 100_005)


def test_a_connection_near_the_end_of_a_certificate_is_not_kept(world, tmp_path):
    arguments = (*WORKERS["gthread"], "--keep-alive", "30")
    running = Gunicorn(world, tmp_path, "tests.wsgi.apps:application", *arguments)
    with running as server, raw(server.port, world.client("billing", ttl=2.0)) as sock:

        def closes() -> bool:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            head = b""
            while b"\r\n\r\n" not in head or not head.endswith(b"}"):
                head += sock.recv(65536)
            assert head.startswith(b"HTTP/1.1 200")
            return b"connection: close" in head.lower()

        assert not closes()
        eventually(closes)


@pytest.mark.parametrize("app", ["flask_app()", "django_app()"])
def test_flask_and_django_see_the_peer(world, tmp_path, app):
    with Gunicorn(world, tmp_path, f"tests.wsgi.apps:{app}", *WORKERS["gthread"]) as server:
        assert get(server.port, "/who", world.client("billing"))[1] == {"peer": identity("billing"), "scheme": "https"}
        configure(server, "PERMISSIVE", "/who")
        assert get(server.port, "/who", world.client("billing")) == (403, b"RBAC: access denied")


@pytest.mark.field("FC-63")
@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["", "preload"])
def test_several_workers_are_one_server(world, tmp_path, preload):
    """FC-63: one set of metrics, one admin listener, policy in each; a worker that goes takes no count with it."""
    with Gunicorn(world, tmp_path, "tests.wsgi.apps:application", "-k", "sync", "-w", "3", *preload) as server:
        context = world.client()
        pids = {get(server.port, "/", context)[1]["pid"] for _ in range(60)}
        eventually(lambda: server.metric("istio_requests_total") == 60)
        assert all(server.metric("istio_requests_total", response_code="200") == 60 for _ in range(5))
        assert server.metric("proxyless_ready") == 1
        assert "pid=" not in server.ask_admin("/metrics")[1]
        os.kill(max(pids), signal.SIGKILL)
        eventually(lambda: server.log.read_text().count("Booting worker") == 4)
        eventually(lambda: server.ask_admin("/ready")[0] == 200)
        for _ in range(20):
            assert server.metric("istio_requests_total") == 60
        eventually(lambda: server.metric("proxyless_ready") == 1)
        configure(server, "STRICT", "/admin")
        eventually(lambda: all(get(server.port, "/admin", context)[0] == 403 for _ in range(10)))


def test_our_lines_in_the_log_look_like_those_of_gunicorn(server):
    ours = [line for line in server.log.read_text().splitlines() if "admin listener on" in line]
    assert ours
    assert all(re.match(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [+-]\d{4}\] \[\d+\] \[INFO\] ", line) for line in ours), ours


def test_header_map_dangerous_makes_names_of_several_words_ambiguous(world, tmp_path):
    with Gunicorn(world, tmp_path, "tests.wsgi.apps:application", "-k", "sync", "--header-map", "dangerous") as server:
        assert "ambiguous" in server.log.read_text()
        extra = "X_Forwarded_Client_Cert: URI=b\r\n"
        assert "HTTP_X_FORWARDED_CLIENT_CERT" not in get(server.port, "/", extra=extra)[1]["headers"]


def test_importing_the_configuration_elsewhere_changes_nothing():
    code = "import os, proxyless.gunicorn; print('PROXYLESS_WORKERS_DIR' in os.environ)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "False"


def test_tls_that_fails_leaves_no_trace_in_the_response(server):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    assert get(server.port, "/", context) == (0, b"")
