"""FC-63: several workers behind one /metrics, and one process that meets the mesh twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry

from proxyless.httpx import MeshTransport
from proxyless.telemetry.labels import Service, Workload
from proxyless.telemetry.metrics import MAX_NAMES, MAX_SERIES, Metrics
from proxyless.testing import LocalMesh
from tests.asgi.helpers import eventually
from tests.cli.helpers import ROOT, Process, free_port
from tests.runtime.helpers import endpoints

pytestmark = pytest.mark.field("FC-63")

WORKLOADS = {"billing": [], "payments": ["payments"]}


def test_fc_63_counts_of_all_workers_stay_when_one_is_replaced(tmp_path: Path) -> None:
    port = free_port()
    with LocalMesh(workloads=WORKLOADS) as local:
        env = local.environment("payments", service="payments")
        command = ["run", "tests.cli.apps:app", "--port", str(port), "--workers", "3", "--log-level", "warning"]
        with Process(tmp_path / "log", *command, env=env) as server:
            eventually(server.ready, 20)
            mesh = local.mesh("billing")
            eventually(lambda: endpoints(mesh, "payments") == [port])
            pids = set()
            for _ in range(60):
                with httpx.Client(transport=MeshTransport(mesh), timeout=10) as client:
                    pids.add(client.get("http://payments/").json()["pid"])
            destination = {"reporter": "destination", "response_code": "200"}
            assert server.metric("istio_requests_total", **destination) == 60
            os.kill(min(pids), signal.SIGKILL)
            eventually(server.ready, 20)
            for _ in range(20):
                assert server.metric("istio_requests_total", **destination) == 60
            text = server.get("/metrics")[1]
            assert "pid=" not in text
            assert text.count("\nproxyless_ready ") == 1
            buckets = {
                line.partition('le="')[2].partition('"')[0]
                for line in text.splitlines()
                if line.startswith("istio_request_duration_milliseconds_bucket")
            }
            assert {"0.5", "1.0", "5.0", "3.6e+06", "+Inf"} <= buckets


def test_fc_63_without_a_shared_directory_each_worker_counts_for_itself_and_that_is_said_once(tmp_path: Path) -> None:
    (tmp_path / "workers").mkdir(mode=0o700)
    with LocalMesh(workloads=WORKLOADS) as local:
        env = local.environment("payments") | {"PROXYLESS_WORKERS_DIR": str(tmp_path / "workers")}
        command = [
            "--http",
            "proxyless.uvicorn:MeshProtocol",
            "--port",
            str(free_port()),
            "--workers",
            "2",
            "tests.cli.apps:app",
        ]
        with Process(tmp_path / "log", *command, env=env, module="uvicorn") as server:
            eventually(server.ready, 20)
            eventually(lambda: len(list((tmp_path / "workers").glob("*.json"))) == 2, 20)
            assert server.get("/metrics")[0] == 200
            eventually(lambda: server.text.count("PROMETHEUS_MULTIPROC_DIR is not set") == 1)


TWICE = """
import importlib
from prometheus_client import REGISTRY
from starlette.applications import Starlette
from starlette.testclient import TestClient
import proxyless.telemetry.families, proxyless.telemetry.metrics
from proxyless.asgi import MeshMiddleware
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings
from proxyless.telemetry.metrics import Metrics

def counted():
    return sum(s.value for f in REGISTRY.collect() for s in f.samples if s.name == "istio_requests_total")

mesh = Mesh(Settings())
for _ in range(2):
    app = Starlette()
    app.add_middleware(MeshMiddleware, mesh=mesh, start_wait=0)
    app.add_middleware(MeshMiddleware, mesh=mesh, start_wait=0)  # by mistake
    with TestClient(app) as client:
        assert client.get("/").status_code == 503
assert counted() == 2, counted()
for module in (proxyless.telemetry.families, proxyless.telemetry.metrics):
    importlib.reload(module)
proxyless.telemetry.metrics.Metrics().inbound("", "app", "http", 200, None, "-", 0.1, 0, 0, tls=False)
assert counted() == 3, counted()
print("done")
"""


def test_fc_63_two_applications_and_a_reload_register_once_and_count_once() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", TWICE], cwd=ROOT, capture_output=True, text=True, timeout=50, check=False
    )
    assert done.stdout == "done\n", done.stderr


def test_fc_63_what_strangers_choose_does_not_grow_the_labels() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(Workload("payments"), Service(), registry)
    for number in range(10_000):
        metrics.inbound(
            f"spiffe://cluster.local/ns/n{number}/sa/a",
            f"host{number}.test",
            "http",
            200,
            None,
            "-",
            0.1,
            0,
            0,
            tls=True,
        )
    samples = [
        sample for family in registry.collect() for sample in family.samples if sample.name == "istio_requests_total"
    ]
    assert len(samples) <= MAX_SERIES + 1
    assert sum(sample.value for sample in samples) == 10_000
    for label in ("source_principal", "destination_service"):
        assert len({sample.labels[label] for sample in samples}) <= MAX_NAMES + 2
