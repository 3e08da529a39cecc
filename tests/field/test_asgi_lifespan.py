"""FC-58: a mesh or an application that cannot start, on stock uvicorn with its default `--lifespan auto`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxyless.testing import LocalMesh
from tests.asgi.helpers import eventually, get
from tests.cli.helpers import Process, free_port

pytestmark = pytest.mark.field("FC-58")

WORKLOADS = {"payments": ["payments"]}
UNSUPPORTED = "appears unsupported"
STRICT = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec: {mtls: {mode: STRICT}}
"""


@contextlib.contextmanager
def uvicorn(log: Path, app: str, *arguments: str, **env: str) -> Iterator[tuple[Process, int]]:
    port = free_port()
    command = ["--http", "proxyless.uvicorn:MeshProtocol", "--port", str(port), f"tests.field.apps:{app}", *arguments]
    with Process(log, *command, env=env, module="uvicorn") as server:
        yield server, port


def test_fc_58_a_a_mesh_that_cannot_start_serves_503_until_it_can(tmp_path: Path) -> None:
    nowhere = {"PROXYLESS_XDS": f"unix:{tmp_path}/x", "SPIFFE_ENDPOINT_SOCKET": f"unix:{tmp_path}/w"}
    with uvicorn(tmp_path / "log", "app", **nowhere) as (server, port):
        eventually(lambda: get(port, "/")[0] == 503, 20)
        assert get(port, "/docs")[0] == 503
        assert server.get("/ready")[0] == 503
        assert "serving 503 until then" in server.text
        assert UNSUPPORTED not in server.text


def test_fc_58_a_without_identity_strict_lets_nobody_in(tmp_path: Path) -> None:
    with LocalMesh(STRICT, workloads=WORKLOADS) as local:
        env = local.environment("payments") | {"SPIFFE_ENDPOINT_SOCKET": f"unix:{tmp_path}/w"}
        with uvicorn(tmp_path / "log", "app", **env) as (server, port):
            eventually(lambda: "identity" in server.get("/ready")[1] and "xds" not in server.get("/ready")[1], 20)
            assert get(port, "/") == (0, b"") or get(port, "/")[0] == 503
            assert UNSUPPORTED not in server.text


def test_fc_58_a_a_wrong_setting_ends_the_server_with_one_message(tmp_path: Path) -> None:
    with uvicorn(tmp_path / "log", "app", SPIFFE_ENDPOINT_SOCKET="/run/agent.sock") as (server, _):
        assert server.process.wait(20) == 3
    assert server.text.count("SPIFFE_ENDPOINT_SOCKET") == 1
    assert "Application startup failed" in server.text
    assert "Traceback" not in server.text
    assert UNSUPPORTED not in server.text


def test_fc_58_b_the_applications_own_error_is_its_own_and_the_mesh_ends(tmp_path: Path) -> None:
    with LocalMesh(workloads=WORKLOADS) as local:
        with uvicorn(tmp_path / "log", "broken", **local.environment("payments", service="payments")) as (server, _):
            assert server.process.wait(20) == 3
        assert "RuntimeError: the database is down" in server.text
        assert UNSUPPORTED not in server.text
        eventually(lambda: local.control_plane.status["clients"] == [])


@pytest.mark.parametrize("lifespan", ["off", "auto"])
def test_fc_58_c_d_without_lifespan_the_mesh_starts_with_the_first_request_once(tmp_path: Path, lifespan: str) -> None:
    app = "app" if lifespan == "off" else "bare"
    with LocalMesh(workloads=WORKLOADS) as local:
        env = local.environment("payments")
        with uvicorn(tmp_path / "log", app, "--lifespan", lifespan, **env) as (server, port):
            eventually(lambda: server.says("Uvicorn running"), 20)
            if lifespan == "off":
                assert local.control_plane.status["clients"] == []
            eventually(lambda: get(port, "/")[0] == 200, 20)
            for _ in range(5):
                assert get(port, "/")[0] == 200
            # The port became known with the first connection, and the node introduces itself anew.
            eventually(lambda: len(local.control_plane.status["clients"]) == 1)
            assert UNSUPPORTED not in server.text
            assert "Traceback" not in server.text
