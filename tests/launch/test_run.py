"""`proxyless run`: workers, their numbers, their way out."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from proxyless.errors import SettingsError
from proxyless.launch import run
from tests.asgi.helpers import World, ask, eventually, get, identity, raw
from tests.wsgi.test_gunicorn import Gunicorn

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world() -> World:
    return World()


class Run(Gunicorn):
    """`run` in a process of its own; configured as the gunicorn tests do."""

    def __init__(self, world: World, directory: Path, app: str, **options: Any) -> None:
        super().__init__(world, directory, app)
        self._options = options
        self.told_admin = True
        self.env: dict[str, str] = {}

    def __enter__(self) -> Run:
        self.start()
        eventually(self._serves, 20, "proxyless run")
        return self

    def start(self) -> None:
        env = {
            **{key: value for key, value in os.environ.items() if not key.startswith(("PROXYLESS_", "PROMETHEUS_"))},
            "TEST_MATERIAL": str(self.material),
            "TMPDIR": str(self.material.parent),
            "PYTHONPATH": str(ROOT),
            **self.env,
        }
        if self.told_admin:
            env["PROXYLESS_ADMIN"] = f"127.0.0.1:{self.admin}"
        options = {"app_dir": str(ROOT), "port": self.port, **self._options}
        code = f"import sys; from proxyless.launch import run; sys.exit(run({self._app!r}, **{options!r}))"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=log, stderr=log)


def test_an_application_is_served_with_mutual_tls(world, tmp_path):
    with Run(world, tmp_path, "tests.launch.apps:app") as server:
        assert get(server.port, "/", world.client("billing"))[1]["peer"] == identity("billing")
        assert get(server.port, "/")[0] == 200


def test_the_caller_cannot_choose_its_address_or_scheme(world, tmp_path):
    extra = "X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: http\r\n"
    with Run(world, tmp_path, "tests.launch.apps:app") as server:
        eventually(lambda: get(server.port, "/", world.client("billing"))[0] == 200)
        body = get(server.port, "/", world.client("billing"), extra=extra)[1]
    assert (body["client"], body["url"]) == ("127.0.0.1", "https://app/")


@pytest.mark.parametrize(("setting", "lines"), [("off", 1), ("stdout", 0)])
def test_a_request_is_logged_by_uvicorn_or_by_us(world, tmp_path, setting, lines):
    server = Run(world, tmp_path, "tests.launch.apps:app")
    server.env = {"PROXYLESS_ACCESS_LOG": setting}
    with server:
        eventually(lambda: get(server.port, "/?once", world.client("billing"))[0] == 200)
    text = server.log.read_text()
    assert text.count("GET /?once") == lines


def test_policy_is_enforced_for_an_application_without_the_middleware(world, tmp_path):
    with Run(world, tmp_path, "tests.launch.apps:make_without_middleware", factory=True) as server:
        server.write("STRICT", "/admin")
        eventually(lambda: get(server.port, "/admin", world.client())[0] == 403)
        assert get(server.port, "/", world.client())[0] == 200
        assert get(server.port, "/") == (0, b"")


def test_callers_wait_for_an_application_that_starts_and_probes_are_told(world, tmp_path):
    server = Run(world, tmp_path, "tests.launch.apps:make_slow_starter", factory=True)
    server.env = {"TEST_STARTED": str(tmp_path / "started")}
    server.start()
    try:
        eventually(lambda: server.ask_admin("/ready") == (503, "application: its start-up is not complete\n"), 20)
        with raw(server.port) as early:
            (tmp_path / "started").touch()
            assert ask(early, b"GET / HTTP/1.1\r\nHost: app\r\n\r\n")[0] == 200
        assert server.ask_admin("/ready")[0] == 200
    finally:
        server.__exit__()


@pytest.mark.field("FC-63")
def test_several_workers_are_one_server(world, tmp_path):
    """FC-63 under uvicorn: one set of metrics, one admin listener, a worker that goes takes no count with it."""
    with Run(world, tmp_path, "tests.launch.apps:app", workers=3) as server:
        context = world.client()
        before = eventually(lambda: len(found := workers_of(server)) == 3 and found)
        assert {get(server.port, "/", context)[1]["pid"] for _ in range(60)} <= before
        for _ in range(5):
            assert server.metric("istio_requests_total") == 60
        assert server.metric("proxyless_ready") == 1
        os.kill(max(before), signal.SIGKILL)
        eventually(lambda: workers_of(server) - before, 20, "a new worker")
        eventually(lambda: server.ask_admin("/ready")[0] == 200)
        assert max(before) not in workers_of(server)
        for _ in range(20):
            assert server.metric("istio_requests_total") == 60
        eventually(lambda: server.metric("proxyless_ready") == 1)
    assert not list(tmp_path.glob("proxyless-workers-*"))


def workers_of(server: Run) -> set[int]:
    """Numbers of the processes that told their state."""
    return {
        int(re.findall(r"\d+", path.name)[0])
        for path in server.material.parent.glob("proxyless-workers-*/worker-*.json")
    }


def test_sigterm_drains_before_the_listening_socket_closes(world, tmp_path):
    with Run(world, tmp_path, "tests.launch.apps:app") as server:
        asked = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.ask_admin("/ready") == (503, "draining\n"))
        assert get(server.port, "/", world.client())[0] == 200
        server.process.wait(10)
        assert time.monotonic() - asked >= 0.9


def test_a_second_sigterm_does_not_wait(world, tmp_path):
    with Run(world, tmp_path, "tests.launch.apps:app") as server:
        server.process.send_signal(signal.SIGTERM)
        eventually(lambda: server.ask_admin("/ready") == (503, "draining\n"))
        server.process.send_signal(signal.SIGTERM)
        server.process.wait(10)


@pytest.mark.parametrize(
    ("app", "options", "text"),
    [
        ("tests.launch.apps:nothing", {}, "nothing"),
        ("tests.launch.nowhere:app", {}, "nowhere"),
        ("tests.launch.apps:broken", {"factory": True}, "cannot be made"),
    ],
)
def test_an_application_that_cannot_be_loaded_ends_with_an_exit_code(world, tmp_path, app, options, text):
    server = Run(world, tmp_path, app, **options)
    server.start()
    assert server.process.wait(20) != 0
    assert text in server.log.read_text()


def test_a_wrong_setting_and_a_failed_start_are_no_success_with_several_workers(world, tmp_path):
    server = Run(world, tmp_path, "tests.launch.apps:make_failing_starter", factory=True, workers=2)
    server.start()
    assert server.process.wait(20) == 3
    server.env = {"PROXYLESS_ADMIN": "nowhere"}
    server.told_admin = False
    server.start()
    assert server.process.wait(20) not in (0, 3)
    assert "PROXYLESS_ADMIN='nowhere' is no address" in server.log.read_text()


def test_arguments_that_contradict_are_named():
    for options in ({"workers": 0}, {"workers": 2, "reload": True}):
        with pytest.raises(SettingsError, match="--workers"):
            run("a:b", **options)


RELOADED = """
from fastapi import FastAPI
from proxyless.asgi import MeshMiddleware
from tests.wsgi.apps import MESH

app = FastAPI()
app.add_middleware(MeshMiddleware, mesh=MESH)

@app.get("/")
def root(): return {"version": 1}
"""


def test_reload_serves_the_changed_application(world, tmp_path):
    module = tmp_path / "reloaded.py"
    module.write_text(RELOADED)
    with Run(world, tmp_path, "reloaded:app", reload=True, app_dir=str(tmp_path)) as server:
        assert get(server.port, "/", world.client())[1] == {"version": 1}
        module.write_text(RELOADED.replace("1}", "2}"))
        eventually(lambda: get(server.port, "/", world.client())[1] == {"version": 2}, 20)


def test_the_admin_address_follows_the_port(world, tmp_path):
    server = Run(world, tmp_path, "tests.launch.apps:app")
    server.admin = server.port + 10000 if server.port <= 55535 else server.port - 10000
    server.told_admin = False
    with server:
        assert server.ask_admin("/healthz") == (200, "ok\n")
