"""The mesh of a process: its life, what it waits for, what it says while it waits."""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from proxyless.core.snapshot import Resources, compile_snapshot
from proxyless.errors import NotReadyError, SettingsError
from proxyless.httpx import MeshTransport
from proxyless.identity.source import StaticSource
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings
from proxyless.testing import LocalMesh
from tests.asgi.helpers import World, echo, eventually, get
from tests.runtime.helpers import Plane, endpoints, plane

WORKLOADS = {"billing": ["billing"], "payments": ["payments"]}


@contextlib.contextmanager
def running(*meshes: Mesh) -> Iterator[None]:
    """Those with a service stand for processes that serve."""
    try:
        for mesh in meshes:
            if mesh.settings.service:
                mesh.serve()
            mesh.start()
        yield
    finally:
        for mesh in meshes:
            mesh.close()


def our_threads() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("proxyless-")}


def ask(mesh: Mesh, url: str = "http://payments/", **options: object) -> httpx.Response:
    with httpx.Client(transport=MeshTransport(mesh), timeout=2.0) as client:
        return client.get(url, **options)  # type: ignore[arg-type]  # httpx's


# ---------------------------------------------------------------------------------------------------------------- life


def test_nothing_runs_before_the_start_or_after_the_end() -> None:
    with LocalMesh(workloads=WORKLOADS) as local:
        before = our_threads()
        mesh = Mesh(local.settings("billing"))
        assert our_threads() == before
        assert mesh.not_ready_reasons() == [
            "the mesh is not started", "identity: the Workload API client has not been started",
        ]  # fmt: skip
        with running(mesh):
            mesh.start()
            assert mesh.wait_configured(5)
            assert our_threads() > before
        assert our_threads() == before
        mesh.close()


def test_a_mesh_that_was_closed_starts_again_with_what_it_knew() -> None:
    with LocalMesh(workloads=WORKLOADS) as local, local.serve(lambda _: echo, "payments"):
        mesh = local.mesh("billing")
        mesh.drain()
        assert mesh.not_ready_reasons() == ["draining"]
        mesh.close()
        before = mesh.snapshot
        assert before is not None
        assert ask(mesh).json()["peer"] == "spiffe://cluster.local/ns/default/sa/billing"  # a request starts it again
        assert mesh.ready
        eventually(lambda: mesh.snapshot is not before)
        assert mesh.snapshot is not None
        assert mesh.snapshot.generation > before.generation, "a number stands for one snapshot"
        source = mesh.identity_source
        assert source is not None
        generation = source.generation
        local.control_plane.rotate()
        eventually(lambda: source.generation > generation, what="a new certificate after the restart")


@pytest.mark.parametrize("setting", [{"admin": "nowhere"}, {"spiffe_socket": "http://x"}])
def test_a_wrong_setting_starts_nothing_and_is_said_every_time(setting: dict[str, str]) -> None:
    before = our_threads()
    mesh = Mesh(Settings(xds="unix:/nonexistent/xds.sock", **setting))  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(SettingsError):
            mesh.start()
        assert our_threads() == before


def test_a_source_of_identity_that_was_given_is_not_closed() -> None:
    class Counting(StaticSource):
        closed = 0

        def close(self) -> None:
            self.closed += 1

    source = Counting()
    first, second = Mesh(Settings(), identity_source=source), Mesh(Settings(), identity_source=source)
    with running(first, second):
        first.close()
        assert source.closed == 0
        assert source._holder._callbacks == [second._identity_changed]
    assert source._holder._callbacks == []


def test_many_threads_start_one_mesh() -> None:
    with LocalMesh(workloads=WORKLOADS) as local:
        mesh = Mesh(local.settings("billing"))
        gate = threading.Barrier(8)
        seen: list[object] = []

        def use() -> None:
            gate.wait()
            mesh.ensure()
            seen.append((mesh.telemetry, mesh.contexts, mesh.identity_source))

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with running(mesh):
            assert len(set(seen)) == 1
            assert [thread.name for thread in threading.enumerate()].count("proxyless-xds") == 1


def test_two_meshes_in_one_process_are_two_workloads() -> None:
    with LocalMesh(workloads=WORKLOADS) as local, local.serve(lambda _: echo, "payments"):
        billing, payments = local.mesh("billing"), local.mesh("payments")
        for mesh, account in ((billing, "billing"), (payments, "payments")):
            assert ask(mesh).json()["peer"] == f"spiffe://cluster.local/ns/default/sa/{account}"
        billing.learned.cluster("only").requests = 1
        assert payments.learned.cluster("only").requests == 0


def test_the_one_mesh_of_a_process_is_read_from_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mesh, "_default", None)
    with LocalMesh(workloads=WORKLOADS) as local:
        for name, value in local.environment("billing", service="billing", labels="app=billing").items():
            monkeypatch.setenv(name, value)
        mesh = Mesh.default()
        assert mesh is Mesh.default()
        assert (mesh.settings.service, mesh.settings.labels) == ("billing", {"app": "billing"})
        with running(mesh):
            assert mesh.wait_configured(5)


# -------------------------------------------------------------------------------------------------------- registration


def test_a_workload_is_registered_once_its_port_is_known_and_answers() -> None:
    with LocalMesh(workloads=WORKLOADS) as local, local.serve(lambda _: echo, "payments") as served:
        caller = local.mesh("billing")
        assert endpoints(caller, "payments") == [served.port]
        node = next(each["node"] for each in local.control_plane.status["clients"] if "payments" in each["node"])
        assert node.startswith("sidecar~127.0.0.1~payments.default~")
        served.mesh.listening_on(1)  # another port later changes nothing
        assert served.mesh.settings.port == served.port


def test_nobody_is_an_endpoint_before_it_listens() -> None:
    with LocalMesh(workloads=WORKLOADS) as local:
        caller = local.mesh("billing")
        with_port = local.mesh("payments", service="payments", port=1)  # nobody listens there
        with_port.serve()
        eventually(lambda: with_port._announcement and with_port._announcement.status.registered)
        assert with_port.ready
        assert not with_port.announced
        assert endpoints(caller, "payments") == []


def test_draining_takes_a_workload_out_before_it_ends_and_its_end_removes_it() -> None:
    with LocalMesh(workloads=WORKLOADS) as local, local.serve(lambda _: echo, "payments") as served:
        caller = local.mesh("billing")
        assert endpoints(caller, "payments") == [served.port]
        served.mesh.drain()
        assert not served.mesh.ready
        eventually(lambda: endpoints(caller, "payments") == [])
        assert get(served.port, "/")[0] in (0, 200, 403), "it still answers"
        served.mesh.close()
        eventually(lambda: local.control_plane.status["workloads"] == [])


def test_a_workload_without_identity_is_not_offered_to_callers() -> None:
    """Readiness follows the identity: lost, callers go elsewhere; there again, they come back."""
    world = World()
    source = world.source("payments")
    with LocalMesh(workloads=WORKLOADS) as local:
        caller = local.mesh("billing")
        with local.serve(lambda _: echo, "payments") as template:
            port = template.port
            mesh = Mesh(
                Settings(xds=local.settings("payments").xds, service="payments", service_account="payments", port=port),
                identity_source=source,
            )
            template.mesh.drain()
            with running(mesh):
                eventually(lambda: endpoints(caller, "payments") == [port])
                source.withdraw()
                eventually(lambda: endpoints(caller, "payments") == [])
                assert mesh.not_ready_reasons() == ["identity: no identity was given"]
                source.replace(world.svid("payments"), [world.bundle])
                eventually(lambda: endpoints(caller, "payments") == [port])


def test_a_refused_registration_is_seen_where_readiness_is() -> None:
    with LocalMesh(workloads=WORKLOADS) as local:
        impostor = local.mesh("billing", service="payments", port=9)
        impostor.serve()
        eventually(lambda: not impostor.ready)
        (reason,) = impostor.not_ready_reasons()
        assert reason.startswith("registration as payments refused: the operator's list")
        assert "spiffe://cluster.local/ns/default/sa/billing" in reason
        assert endpoints(local.mesh("payments"), "payments") == []


def test_a_process_that_only_calls_is_no_endpoint_though_its_environment_names_one() -> None:
    """A job or a child process beside the server: it would keep the endpoint alive when the server drains or dies."""
    with LocalMesh(workloads=WORKLOADS) as local, local.serve(lambda _: echo, "payments") as served:
        caller = local.mesh("billing")
        beside = local.mesh("payments", service="payments", port=served.port)
        assert endpoints(caller, "payments") == [served.port]
        assert ask(beside).status_code == 200
        assert len(local.control_plane.status["workloads"]) == 1
        assert beside._announcement is None
        served.mesh.drain()
        eventually(lambda: endpoints(caller, "payments") == [])


def test_who_is_registered_without_a_source_of_identity_is_not_offered_to_callers() -> None:
    """Callers would fail on mutual TLS; who wants plain text says so with Istio's label."""
    with LocalMesh(workloads=WORKLOADS) as local:
        caller = local.mesh("billing")
        settings = replace(local.settings("payments"), service="payments", spiffe_socket="")
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            without = Mesh(replace(settings, port=port))
            with running(without):
                assert without.wait_configured(5)
                eventually(lambda: without._announcement and without._announcement.status.acknowledged)
                (reason,) = without.not_ready_reasons()
                assert "set SPIFFE_ENDPOINT_SOCKET" in reason
                assert endpoints(caller, "payments") == []
            plain = Mesh(replace(settings, port=port, labels={"security.istio.io/tlsMode": "disabled"}))
            with running(plain):
                eventually(lambda: endpoints(caller, "payments") == [port])
                assert plain.not_ready_reasons() == []


def test_sockets_of_two_workloads_are_not_one_workload() -> None:
    with LocalMesh(workloads=WORKLOADS) as local:
        caller = local.mesh("billing")
        own, other = local.settings("payments"), local.settings("billing")
        with socket.create_server(("127.0.0.1", 0)) as server:
            settings = replace(own, service="payments", port=server.getsockname()[1], spiffe_socket=other.spiffe_socket)
            mixed = Mesh(settings)
            with running(mixed):
                eventually(lambda: "belong to different workloads" in "".join(mixed.not_ready_reasons()))
                assert not mixed.announced
                assert endpoints(caller, "payments") == []


def test_a_right_that_is_taken_away_is_seen_where_readiness_is() -> None:
    with LocalMesh(workloads=WORKLOADS) as local, local.serve(lambda _: echo, "payments") as served:
        eventually(lambda: served.mesh.announced)
        settings = local._config / "mesh.yaml"
        settings.write_text(settings.read_text().replace("- payments\n", "- other\n"))
        local.control_plane.reload()
        eventually(lambda: served.mesh.not_ready_reasons())
        (reason,) = served.mesh.not_ready_reasons()
        assert reason.startswith("registration as payments refused: the operator's list"), reason


# ------------------------------------------------------------------------------------------------------------- waiting


def test_without_a_control_plane_calls_wait_as_long_as_they_may_and_say_why() -> None:
    with plane(**WORKLOADS) as absent:
        mesh = Mesh(absent.settings("billing"))
        with running(mesh):
            began = time.monotonic()
            with (
                httpx.Client(transport=MeshTransport(mesh), timeout=0.3) as client,
                pytest.raises(NotReadyError) as failure,
            ):
                client.get("http://payments/")
            assert 0.25 < time.monotonic() - began < 2
            assert isinstance(failure.value, httpx.ConnectTimeout)
            assert "xds.sock" in str(failure.value)
            assert "workload-api.sock" in str(failure.value)
            assert len(mesh.not_ready_reasons()) == 2


def test_without_a_control_plane_every_request_is_refused_and_the_log_says_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from proxyless.uvicorn import MeshProtocol
    from tests.asgi.helpers import Server

    with plane(**WORKLOADS) as absent:
        mesh = Mesh(absent.settings("payments", service="payments"))
        with running(mesh), Server(echo, MeshProtocol.for_mesh(mesh)) as server:
            for _ in range(3):
                assert get(server.port, "/")[0] in (0, 503)
            assert "xds.sock" in caplog.text
            absent.start()
            caller = Mesh(absent.settings("billing"))
            with running(caller):
                assert caller.wait_configured(10)
                eventually(lambda: endpoints(caller, "payments") == [server.port])
                assert ask(caller).status_code == 200


def test_a_control_plane_that_comes_later_is_found_without_a_restart() -> None:
    with plane(**WORKLOADS) as late:
        mesh = Mesh(late.settings("billing"))
        with running(mesh):
            answers: list[object] = []

            def call() -> None:
                with httpx.Client(transport=MeshTransport(mesh), timeout=20) as client:
                    answers.append(client.get("http://payments/").status_code)

            waiting = threading.Thread(target=call)
            waiting.start()
            eventually(lambda: any("UNAVAILABLE" in reason for reason in mesh.not_ready_reasons()))
            late.start()
            waiting.join(15)
            assert answers == [503], "payments has no endpoint: the mesh has answered"
            assert mesh.ready


def test_a_control_plane_that_goes_leaves_the_last_good_configuration(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "proxyless")
    with plane(**WORKLOADS) as place:
        place.start()
        with served_by(place) as (caller, port):
            snapshot = caller.snapshot
            place.stop()
            eventually(lambda: caller.xds is not None and not caller.xds.status.stream.connected)
            assert caller.snapshot is snapshot
            assert caller.ready
            assert ask(caller).status_code == 200
            assert "stays in use" in str(caller.xds.status)  # type: ignore[union-attr]
            assert "xds" in caplog.text
            place.start()
            eventually(lambda: caller.xds is not None and caller.xds.status.stream.connected, 15)
            eventually(lambda: endpoints(caller, "payments") == [port], 15)
            eventually(lambda: answered(caller), 15, "a call under the new authority")


def answered(mesh: Mesh) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return ask(mesh).status_code == 200
    return False


@contextlib.contextmanager
def served_by(place: Plane) -> Iterator[tuple[Mesh, int]]:
    """payments is served; -> a configured caller, and the port."""
    from proxyless.testing.servers import serving

    payments, billing = Mesh(place.settings("payments", service="payments")), Mesh(place.settings("billing"))
    with serving(echo, payments, 10) as served, running(billing):
        assert billing.wait_configured(10)
        eventually(lambda: endpoints(billing, "payments") == [served.port])
        yield billing, served.port


def test_a_wait_ends_with_the_configuration_and_not_later() -> None:
    mesh = Mesh(Settings(), identity_source=World().source())
    with running(mesh):
        assert not mesh.wait_configured(0.01)
        assert mesh.not_ready_reasons() == ["no control plane is configured: set PROXYLESS_XDS"]
        threading.Timer(0.05, lambda: mesh._publish(compile_snapshot(Resources(), None, 1))).start()
        began = time.monotonic()
        assert mesh.wait_configured(10)
        assert time.monotonic() - began < 5


def test_a_part_of_the_process_may_hold_readiness() -> None:
    mesh = Mesh(Settings(), identity_source=World().source())
    mesh.snapshot = compile_snapshot(Resources(), None, 1)
    assert mesh.ready
    mesh.hold("gateway", "port 80: taken")
    assert not mesh.ready
    assert mesh.not_ready_reasons() == ["gateway: port 80: taken"]
    mesh.hold("gateway", "")
    assert mesh.ready
