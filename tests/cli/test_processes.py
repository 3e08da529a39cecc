"""The commands as processes: start, signals, workers, and load while they go."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from proxyless.httpx import MeshTransport
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings
from proxyless.testing import LocalMesh
from tests.asgi.helpers import eventually, get
from tests.cli.helpers import Process, free_port
from tests.runtime.helpers import endpoints

WORKLOADS = {"billing": [], "payments": ["payments"], "edge": []}
NO_RETRIES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payments}
spec:
  hosts: [payments]
  http:
  - retries: {attempts: 0}
    route: [{destination: {host: payments}}]
"""
GATEWAY = """
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  selector: {istio: edge}
  servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: [shop.test]}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.test]
  gateways: [edge]
  http:
  - retries: {attempts: 0}
    route: [{destination: {host: payments}}]
"""


class Load:
    """Threads that call without a pause, and what they got."""

    def __init__(self, call: Callable[[], str], threads: int = 4) -> None:
        self.answers: list[str] = []
        self._call, self._stop = call, threading.Event()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(threads)]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(self._call())
            except Exception as error:
                self.answers.append(f"{type(error).__name__}: {error}")

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(10)

    def wait(self, more: int) -> None:
        """Until so many further calls were answered."""
        wanted = len(self.answers) + more
        eventually(lambda: len(self.answers) >= wanted, 20)


# ------------------------------------------------------------------------------------------------------- control-plane


@pytest.fixture
def short() -> Iterator[Path]:
    """A directory with a short name: a socket's path has 107 bytes at most."""
    with tempfile.TemporaryDirectory(prefix="proxyless-") as folder:
        yield Path(folder)


def test_control_plane_serves_until_sigterm_and_leaves_no_socket(tmp_path: Path, short: Path) -> None:
    config, run = tmp_path / "config", short
    config.mkdir()
    (config / "mesh.yaml").write_text("proxyless: {workloads: [{serviceAccount: billing, services: [billing]}]}")
    with Process(tmp_path / "log", "control-plane", "--config", str(config), "--run-dir", str(run)) as plane:
        folder = run / "workloads" / "default" / "billing"
        mesh = Mesh(
            Settings(xds=f"unix:{folder}/xds.sock", spiffe_socket=f"unix:{folder}/workload-api.sock", service="billing")
        )
        assert mesh.wait_configured(20)
        (config / "broken.yaml").write_text("kind: VirtualService\nmetadata: [")
        eventually(lambda: plane.says("broken.yaml:2:"))
        assert plane.says("the configuration before stays")
        (config / "broken.yaml").unlink()
        plane.terminate()
        assert plane.process.wait(10) == 0
        assert "Traceback" not in plane.text
        assert list(run.rglob("*.sock")) == []
        assert mesh.ready, "the last good configuration stays"
        mesh.close()


@pytest.mark.parametrize(
    ("files", "arguments", "code", "words"),
    [
        (
            {"a.yaml": "apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: a}\n"},
            (),
            79,
            "a.yaml:2:",
        ),
        ({"mesh.yaml": "trustDomian: a"}, (), 79, "trustDomain"),
        ({}, ("--svid-ttl", "-1"), 2, "life of a certificate"),
        ({}, ("--listen", "127.0.0.1:http"), 2, "127.0.0.1:15012"),
    ],
)
def test_control_plane_does_not_start_with_errors(
    tmp_path: Path, files: dict[str, str], arguments: tuple[str, ...], code: int, words: str
) -> None:
    config = tmp_path / "config"
    config.mkdir()
    for name, text in files.items():
        (config / name).write_text(text)
    run = str(tmp_path / "run")
    with Process(tmp_path / "log", "control-plane", "--config", str(config), "--run-dir", run, *arguments) as plane:
        assert plane.process.wait(20) == code
    assert words in plane.text
    assert "Traceback" not in plane.text


def test_one_run_directory_has_one_control_plane(tmp_path: Path) -> None:
    with LocalMesh(workloads=WORKLOADS) as local:
        run = local.control_plane.workload_directory("default", "billing").parents[2]
        (tmp_path / "config").mkdir()
        with Process(
            tmp_path / "log", "control-plane", "--config", str(tmp_path / "config"), "--run-dir", str(run)
        ) as second:
            assert second.process.wait(20) == 2
        assert "another control plane uses it" in second.text
        assert local.mesh("billing").ready


# ------------------------------------------------------------------------------------------------------------------ run


@contextlib.contextmanager
def served(local: LocalMesh, log: Path, *arguments: str, **env: str) -> Iterator[Process]:
    """payments as a process, ready and known to the control plane."""
    environment = local.environment("payments", service="payments", **env)
    port = free_port()
    before = len(healthy(local))
    with Process(
        log, "run", "tests.cli.apps:app", "--port", str(port), "--log-level", "warning", *arguments, env=environment
    ) as server:
        eventually(server.ready, 20)
        eventually(lambda: len(healthy(local)) == before + 1, 20)
        yield server


def healthy(local: LocalMesh) -> list[Any]:
    return [each for each in local.control_plane.status["workloads"] if each["health"] == "HEALTHY"]


def test_two_workers_are_one_endpoint_one_readiness_and_one_set_of_numbers(tmp_path: Path) -> None:
    with LocalMesh(workloads=WORKLOADS) as local, served(local, tmp_path / "log", "--workers", "2") as server:
        billing = local.mesh("billing")
        eventually(lambda: len(endpoints(billing, "payments")) == 1)
        assert len(local.control_plane.status["workloads"]) == 1
        pids: set[int] = set()
        calls = 0
        while len(pids) < 2:
            assert calls < 200, "one worker has answered everything"
            with httpx.Client(transport=MeshTransport(billing)) as client:  # a connection of its own
                answer = client.get("http://payments/").json()
            assert answer["peer"] == "spiffe://cluster.local/ns/default/sa/billing"
            pids.add(answer["pid"])
            calls += 1
        # A worker writes a request down just after its answer went out, and may be asked through the other one.
        eventually(lambda: server.metric("istio_requests_total", reporter="destination", response_code="200") == calls)
        for _ in range(5):
            assert server.metric("istio_requests_total", reporter="destination", response_code="200") == calls
        os.kill(max(pids), signal.SIGKILL)
        eventually(lambda: len(local.control_plane.status["workloads"]) == 1 and server.ready(), 20)
        assert server.metric("istio_requests_total", reporter="destination") == calls
    assert "Traceback" not in server.text


def test_sigterm_under_load_loses_no_request(tmp_path: Path) -> None:
    with (
        LocalMesh(NO_RETRIES, workloads=WORKLOADS) as local,
        local.serve(lambda _: asgi_root, "payments") as stays,
        served(local, tmp_path / "log") as goes,
    ):
        billing = local.mesh("billing")
        eventually(lambda: len(endpoints(billing, "payments")) == 2)
        with (
            httpx.Client(transport=MeshTransport(billing), timeout=10) as client,
            Load(lambda: str(client.get("http://payments/?seconds=0.02").status_code)) as load,
        ):
            load.wait(40)
            received = goes.metric("istio_requests_total", reporter="destination")
            assert received > 0
            goes.terminate()
            assert goes.process.wait(15) in (0, -signal.SIGTERM)  # uvicorn, having ended, hands the signal on
            load.wait(40)
        assert set(load.answers) == {"200"}
        assert endpoints(billing, "payments") == [stays.port]
        assert "Traceback" not in goes.text


async def asgi_root(scope: Any, receive: Any, send: Any) -> None:
    """The endpoint that stays; it knows no lifespan."""
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


def test_an_application_without_mesh_around_it_answers_503_and_says_why(tmp_path: Path) -> None:
    port = free_port()
    with Process(tmp_path / "log", "run", "tests.cli.apps:app", "--port", str(port)) as server:
        eventually(lambda: get(port, "/")[0] == 503, 20)
        assert "no control plane is configured" in server.get("/ready")[1]
        assert server.says("PROXYLESS_XDS")


# -------------------------------------------------------------------------------------------------------------- gateway


def test_a_gateway_that_is_asked_to_go_ends_what_it_has_begun(tmp_path: Path) -> None:
    port = free_port()
    with (
        LocalMesh(
            NO_RETRIES + GATEWAY, workloads=WORKLOADS, settings={"proxyless": {"gatewayPorts": {80: port}}}
        ) as local,
        local.serve(lambda _: slow, "payments"),
        Process(tmp_path / "log", "gateway", env=local.environment("edge", labels="istio=edge")) as gateway,
        httpx.Client(trust_env=False, timeout=10) as client,
    ):
        eventually(gateway.ready, 20)
        told = threading.Event()

        def call() -> str:
            if told.is_set():  # as a load balancer would: it looks at /ready
                return "200"
            return str(client.get(f"http://127.0.0.1:{port}/", headers={"host": "shop.test"}).status_code)

        with Load(call) as load:
            load.wait(20)
            asked = time.monotonic()
            gateway.terminate()
            eventually(lambda: gateway.get("/ready") == (503, "draining\n"))
            told.set()
            assert gateway.process.wait(15) == 0
            assert 0.9 < time.monotonic() - asked < 10
        assert set(load.answers) == {"200"}
        assert "Traceback" not in gateway.text


async def slow(scope: Any, receive: Any, send: Any) -> None:
    import asyncio

    assert scope["type"] == "http"
    await asyncio.sleep(0.1)
    await asgi_root(scope, receive, send)


def test_a_gateway_with_a_wrong_setting_ends_with_a_message(tmp_path: Path) -> None:
    with Process(tmp_path / "log", "gateway", env={"PROXYLESS_ADMIN": "nowhere"}) as gateway:
        assert gateway.process.wait(20) == 2
    assert "PROXYLESS_ADMIN" in gateway.text
    assert "Traceback" not in gateway.text
