"""ADS on TCP: mutual TLS with SVIDs, and the caller is who its certificate says."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from proxyless.controlplane.authority import Authority
from proxyless.controlplane.server import ControlPlane
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.svid import X509Svid
from proxyless.protos import CLUSTER
from proxyless.spiffe import SpiffeId

from .helpers import AdsClient, Worker, names_of, sidecar, write

MESH = "proxyless: {workloads: [{serviceAccount: payments, services: [payments]}]}"
PAYMENTS = SpiffeId.parse("spiffe://cluster.local/ns/default/sa/payments")


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[ControlPlane]:
    with (
        tempfile.TemporaryDirectory(prefix="plx") as run,
        ControlPlane(write(tmp_path / "config", mesh=MESH), Path(run) / "run", listen="127.0.0.1:0") as started,
    ):
        yield started


def connect(plane: ControlPlane, svid: X509Svid | None, name: str = "control-plane.cluster.local") -> grpc.Channel:
    roots = TrustBundle("cluster.local", plane.authority.bundle).pem()
    credentials = (
        grpc.ssl_channel_credentials(roots, svid.key_pem(), svid.chain_pem())
        if svid
        else grpc.ssl_channel_credentials(roots)
    )
    return grpc.secure_channel(plane.address, credentials, options=(("grpc.ssl_target_name_override", name),))


def test_a_caller_is_who_its_svid_says(plane: ControlPlane) -> None:
    with connect(plane, plane.authority.issue(PAYMENTS)) as channel:
        client = AdsClient(channel, sidecar("payments"))
        assert "outbound|80||payments.default.svc.cluster.local" in names_of(client.ask(CLUSTER))
        assert Worker(channel).say(service="payments", port=9001, readiness=2).accepted
        client.close()


def test_an_svid_of_another_workload_does_not_get_this_ones_view(plane: ControlPlane) -> None:
    other = plane.authority.issue(SpiffeId.parse("spiffe://cluster.local/ns/default/sa/billing"))
    with connect(plane, other) as channel:
        client = AdsClient(channel, sidecar("payments"))
        client.send(CLUSTER)
        with pytest.raises(grpc.RpcError):
            client.receive()
        assert client.code() == grpc.StatusCode.PERMISSION_DENIED
        assert not Worker(channel).say(service="payments", port=9001, readiness=2).accepted


@pytest.mark.parametrize("certificate", ["none", "of another authority"])
def test_without_an_svid_of_the_mesh_there_is_no_connection(plane: ControlPlane, certificate: str) -> None:
    svid = None if certificate == "none" else Authority("cluster.local").issue(PAYMENTS)
    with connect(plane, svid) as channel:
        client = AdsClient(channel, sidecar("payments"))
        client.send(CLUSTER)
        with pytest.raises(grpc.RpcError):
            client.receive()
        assert client.code() == grpc.StatusCode.UNAVAILABLE


def test_an_svid_signed_by_a_root_that_has_been_replaced_is_refused_from_the_next_connection_on(
    plane: ControlPlane,
) -> None:
    old = plane.authority.issue(PAYMENTS)
    for step in (plane.authority.prepare, plane.authority.activate, plane.authority.revoke):
        step()
    with connect(plane, old) as channel:
        client = AdsClient(channel, sidecar("payments"))
        client.send(CLUSTER)
        with pytest.raises(grpc.RpcError):
            client.receive()
    with connect(plane, plane.authority.issue(PAYMENTS)) as channel:
        assert AdsClient(channel, sidecar("payments")).ask(CLUSTER).resources
