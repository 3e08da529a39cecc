"""A control plane on TCP: mutual TLS with SVIDs in both directions, end to end."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import grpc
import pytest

from proxyless.controlplane.authority import Authority
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.source import StaticSource
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings
from proxyless.spiffe import SpiffeId
from proxyless.testing import LocalMesh
from tests.asgi.helpers import World, echo, eventually
from tests.runtime.helpers import endpoints, plane
from tests.runtime.test_mesh import WORKLOADS, ask, running


def over_tcp(local: LocalMesh, account: str, **more: object) -> Settings:
    return replace(local.settings(account), xds=local.control_plane.address, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0"])
def test_configuration_and_registration_over_tcp(listen: str, caplog: pytest.LogCaptureFixture) -> None:
    from proxyless.testing.servers import serving

    with LocalMesh(workloads=WORKLOADS, listen=listen) as local:
        assert not local.control_plane.address.startswith("unix:")
        payments = Mesh(over_tcp(local, "payments", service="payments"))
        billing = Mesh(over_tcp(local, "billing"))
        with serving(echo, payments, 10) as served, running(billing):
            assert billing.wait_configured(10)
            eventually(lambda: endpoints(billing, "payments") == [served.port])
            assert ask(billing).json()["peer"] == "spiffe://cluster.local/ns/default/sa/billing"
            assert not [record for record in caplog.records if "next attempt" in record.message], "a quiet start"
            (registered,) = local.control_plane.status["workloads"]
            assert registered["identity"] == "spiffe://cluster.local/ns/default/sa/payments"


def test_nobody_becomes_payments_by_saying_so() -> None:
    """The connection says who registers, not the settings."""
    with LocalMesh(workloads=WORKLOADS, listen="127.0.0.1:0") as local:
        impostor = Mesh(over_tcp(local, "billing", service="payments", port=9))
        watcher = local.mesh("payments")
        with running(impostor):
            eventually(lambda: impostor.configured and not impostor.ready)
            (reason,) = impostor.not_ready_reasons()
            assert "does not let spiffe://cluster.local/ns/default/sa/billing serve" in reason
            assert endpoints(watcher, "payments") == []
            assert local.control_plane.status["workloads"] == []


def test_a_node_that_claims_another_service_account_gets_no_configuration() -> None:
    with LocalMesh(workloads=WORKLOADS, listen="127.0.0.1:0") as local:
        impostor = Mesh(over_tcp(local, "billing", service_account="payments", workload="payments"))
        with running(impostor):
            eventually(lambda: any("PERMISSION_DENIED" in reason for reason in impostor.not_ready_reasons()))
            assert "cannot be a node of service account 'payments'" in impostor.not_ready_reasons()[0]
            assert impostor.snapshot is None


def test_a_workload_without_identity_waits_for_it_and_then_does_not_sit_out_a_back_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("proxyless.runtime.mesh.IDENTITY_WAIT", 0.02)
    with LocalMesh(workloads=WORKLOADS, listen="127.0.0.1:0") as local:
        source = StaticSource()
        mesh = Mesh(over_tcp(local, "payments", service="payments", port=9), identity_source=source)
        with running(mesh):
            eventually(lambda: mesh.xds is not None and mesh.xds.status.stream.failures >= 2)
            assert any("no SVID to connect with" in reason for reason in mesh.not_ready_reasons())
            authority = local.control_plane.authority
            svid = authority.issue(SpiffeId.parse("spiffe://cluster.local/ns/default/sa/payments"))
            began = time.monotonic()
            source.replace(svid, [TrustBundle("cluster.local", authority.bundle)])
            assert mesh.wait_configured(5)
            eventually(lambda: local.control_plane.status["workloads"] != [])
            assert time.monotonic() - began < 1.0, "the third wait alone is 2 s"


def test_an_identity_of_another_authority_is_refused_and_refuses() -> None:
    with LocalMesh(workloads=WORKLOADS, listen="127.0.0.1:0") as local:
        stranger = Mesh(over_tcp(local, "payments"), identity_source=World().source())
        theirs = local.control_plane.authority
        forged = Authority("cluster.local").issue(SpiffeId.parse("spiffe://cluster.local/ns/default/sa/payments"))
        # It trusts the control plane, but its own certificate is of another authority.
        forger = Mesh(
            over_tcp(local, "payments", service="payments", port=9),
            identity_source=StaticSource(forged, [TrustBundle("cluster.local", theirs.bundle)]),
        )
        with running(stranger, forger):
            for mesh in (stranger, forger):
                eventually(lambda mesh=mesh: any("UNAVAILABLE" in reason for reason in mesh.not_ready_reasons()))  # type: ignore[misc]
            assert "CERTIFICATE_VERIFY_FAILED" in stranger.not_ready_reasons()[0]
            assert local.control_plane.status["workloads"] == []
            assert local.control_plane.status["clients"] == []


def test_a_workload_is_no_control_plane() -> None:
    """An SVID of the same trust domain does not make a control plane: it lacks the name that only that one has."""
    with LocalMesh(workloads=WORKLOADS) as local:
        svid = local.control_plane.authority.issue(SpiffeId.parse("spiffe://cluster.local/ns/default/sa/payments"))
        server = grpc.server(ThreadPoolExecutor(1))
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(svid.key_pem(), svid.chain_pem())]))
        server.start()
        mesh = Mesh(replace(local.settings("billing"), xds=f"127.0.0.1:{port}"))
        with running(mesh):
            eventually(lambda: any("UNAVAILABLE" in reason for reason in mesh.not_ready_reasons()))
            assert "Hostname" in mesh.not_ready_reasons()[0]
            assert mesh.snapshot is None
        server.stop(0).wait()


def test_plain_text_gets_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with LocalMesh(workloads=WORKLOADS, listen="127.0.0.1:0") as local:
        mesh = Mesh(Settings(xds=local.control_plane.address, service="payments", port=9))
        with running(mesh):
            eventually(lambda: mesh.xds is not None and mesh.xds.status.stream.failures >= 1)
            assert mesh.snapshot is None
            assert local.control_plane.status["workloads"] == []
        assert "plain text" in caplog.text
        assert "SPIFFE_ENDPOINT_SOCKET" in caplog.text


def test_a_control_plane_on_tcp_comes_back() -> None:
    with plane(**WORKLOADS) as place:
        first = place.start(listen="127.0.0.1:0")
        mesh = Mesh(place.settings("billing", xds=first.address))
        with running(mesh):
            assert mesh.wait_configured(10)
            place.stop()
            eventually(lambda: mesh.xds is not None and not mesh.xds.status.stream.connected)
            assert mesh.ready
            place.start(listen=first.address)  # with a new authority: the identity changes, too
            eventually(lambda: mesh.xds is not None and mesh.xds.status.stream.connected, 15)
