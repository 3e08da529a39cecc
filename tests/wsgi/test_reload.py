"""gunicorn replaces its workers on HUP: callers of the mesh notice nothing, however long the application takes to load."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from proxyless.httpx import MeshTransport
from proxyless.testing import LocalMesh
from tests.asgi.helpers import eventually
from tests.interop.helpers import free_port

ROOT = Path(__file__).parents[2]
NO_RETRIES = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: payments}
spec:
  hosts: [payments]
  http: [{retries: {attempts: 0}, route: [{destination: {host: payments}}]}]
"""


@contextlib.contextmanager
def gunicorn(local: LocalMesh, go: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PROXYLESS_", "PROMETHEUS_"))}
    command = [
        sys.executable, "-m", "gunicorn", "-c", "python:proxyless.gunicorn", "-b", f"127.0.0.1:{free_port()}",
        *arguments, "tests.wsgi.slow_app:application",
    ]  # fmt: skip
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**environ, **local.environment("payments", service="payments"), "TEST_GO": str(go)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as master:
        try:
            yield master
        finally:
            go.touch()
            master.terminate()


@pytest.mark.parametrize("arguments", [("-k", "sync", "-w", "2"), ("-k", "gthread", "-w", "1", "--threads", "4")])
def test_no_call_fails_while_workers_are_replaced(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    go = tmp_path / "go"
    go.touch()
    with (
        LocalMesh(NO_RETRIES, workloads={"billing": [], "payments": ["payments"]}) as local,
        gunicorn(local, go, *arguments) as master,
        httpx.Client(transport=MeshTransport(local.mesh("billing")), timeout=10) as client,
    ):

        def ask() -> str:
            response = client.get("http://payments/")
            return response.text if response.status_code == 200 else ""

        eventually(ask, 20, "gunicorn")
        before = {ask() for _ in range(50)}
        go.unlink()
        master.send_signal(signal.SIGHUP)
        while_loading = [ask() for _ in range(300)]
        assert set(while_loading) <= before, "no call is lost, and the new ones have not loaded"
        go.touch()
        answers: list[str] = []

        def replaced() -> bool:
            answers.append(ask())
            return len(answers) > 50 and before.isdisjoint(answers[-50:])

        eventually(replaced, 20, "the new workers")
        assert "" not in answers
