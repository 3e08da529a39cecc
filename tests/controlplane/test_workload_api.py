"""The embedded Workload API, asked by an independent client, by ours, and by raw calls (SPIFFE Workload API and Endpoint)."""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from spiffe import JwtSvid, WorkloadApiClient, X509Source
from spiffe import SpiffeId as TheirId
from spiffe import TrustDomain as TheirTrustDomain
from spiffe.errors import PySpiffeError

from proxyless import protos
from proxyless.controlplane.authority import Authority
from proxyless.controlplane.workload_api import Identity, WorkloadApiServer
from proxyless.errors import InvalidSvidError, SettingsError
from proxyless.identity.workload_api import WorkloadApiSource
from proxyless.spiffe import SpiffeId

WEB = SpiffeId.parse("spiffe://a.test/ns/default/sa/web")
DB = SpiffeId.parse("spiffe://a.test/ns/default/sa/db")


def eventually(condition: Any, timeout: float = 10.0) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:  # shorter than tmp_path: a socket path has 107 bytes at most
        yield Path(folder)


@pytest.fixture
def authority() -> Authority:
    return Authority("a.test")


@pytest.fixture
def server(authority: Authority) -> Iterator[WorkloadApiServer]:
    server = WorkloadApiServer(authority)
    yield server
    server.close()


def call(path: Path, method: str, *metadata: tuple[str, str], request: bytes = b"") -> grpc.RpcError | bytes:
    """The first response, or the error."""
    with grpc.insecure_channel(f"unix:{path}") as channel:
        stream = channel.unary_stream(method)(request, metadata=metadata, timeout=10)
        try:
            return next(iter(stream))
        except grpc.RpcError as error:
            return error


def follow(path: Path) -> WorkloadApiSource:
    source = WorkloadApiSource(f"unix:{path}")
    source.start()
    assert source.wait(10)
    return source


@pytest.mark.interop
def test_an_independent_client_gets_svid_bundles_and_context(
    server: WorkloadApiServer, authority: Authority, folder: Path
) -> None:
    other = Authority("b.test")
    authority.federate("b.test", other.bundle)
    server.serve(folder / "web.sock", WEB, Identity(DB, hint="db"))
    with WorkloadApiClient(f"unix:{folder}/web.sock") as client:
        assert client.fetch_x509_svid(timeout=10).spiffe_id == TheirId(str(WEB))
        assert [str(svid.spiffe_id) for svid in client.fetch_x509_svids(timeout=10)] == [str(WEB), str(DB)]
        bundles = client.fetch_x509_bundles(timeout=10)
        for name in ("a.test", "b.test"):
            assert len(bundles.get_bundle_for_trust_domain(TheirTrustDomain(name)).x509_authorities) == 1
        context = client.fetch_x509_context(timeout=10)
        assert str(context.default_svid.spiffe_id) == str(WEB)


@pytest.mark.interop
def test_an_independent_client_sees_rotations_without_asking(server: WorkloadApiServer, folder: Path) -> None:
    server.serve(folder / "web.sock", WEB)
    with X509Source(socket_path=f"unix:{folder}/web.sock", timeout_in_seconds=10) as source:
        first = source.get_x509_context().default_svid.leaf.serial_number
        server.rotate(folder / "web.sock")
        eventually(lambda: source.get_x509_context().default_svid.leaf.serial_number != first)


@pytest.mark.interop
def test_an_independent_client_without_identity_is_denied(server: WorkloadApiServer, folder: Path) -> None:
    server.serve(folder / "nobody.sock")
    with WorkloadApiClient(f"unix:{folder}/nobody.sock") as client, pytest.raises(PySpiffeError):
        client.fetch_x509_svid(timeout=10)


@pytest.mark.interop
def test_an_independent_client_gets_and_validates_tokens(server: WorkloadApiServer, folder: Path) -> None:
    server.serve(folder / "web.sock", WEB, Identity(DB, hint="db"))
    server.serve(folder / "nobody.sock")
    with WorkloadApiClient(f"unix:{folder}/web.sock") as client:
        token = client.fetch_jwt_svid({"orders"}, timeout=10)
        assert (str(token.spiffe_id), token.audience) == (str(WEB), {"orders"})
        assert [str(each.spiffe_id) for each in client.fetch_jwt_svids({"orders"}, timeout=10)] == [str(WEB), str(DB)]
        chosen = client.fetch_jwt_svid({"orders"}, TheirId(str(DB)), timeout=10)
        assert str(chosen.spiffe_id) == str(DB)
        assert str(client.validate_jwt_svid(token.token, "orders", timeout=10).spiffe_id) == str(WEB)
        with pytest.raises(PySpiffeError):
            client.validate_jwt_svid(token.token, "payments", timeout=10)
        with pytest.raises(PySpiffeError):
            client.fetch_jwt_svid({"orders"}, TheirId("spiffe://a.test/other"), timeout=10)
        bundle = client.fetch_jwt_bundles(timeout=10).get_bundle_for_trust_domain(TheirTrustDomain("a.test"))
        assert str(JwtSvid.parse_and_validate(token.token, bundle, {"orders"}).spiffe_id) == str(WEB)
    with WorkloadApiClient(f"unix:{folder}/nobody.sock") as nobody:
        assert str(nobody.validate_jwt_svid(token.token, "orders", timeout=10).spiffe_id) == str(WEB)
        with pytest.raises(PySpiffeError):
            nobody.fetch_jwt_svid({"orders"}, timeout=10)


@pytest.mark.parametrize(
    ("method", "kind", "fields", "code"),
    [
        ("FetchJWTSVID", "JWTSVIDRequest", {}, "INVALID_ARGUMENT"),
        ("FetchJWTSVID", "JWTSVIDRequest", {"audience": [""]}, "INVALID_ARGUMENT"),
        ("FetchJWTSVID", "JWTSVIDRequest", {"audience": ["x"], "spiffe_id": "web"}, "INVALID_ARGUMENT"),
        ("FetchJWTSVID", "JWTSVIDRequest", {"audience": ["x"], "spiffe_id": "spiffe://b.test/x"}, "PERMISSION_DENIED"),
        ("FetchJWTSVID", "JWTSVIDRequest", {"audience": ["x"], "spiffe_id": "spiffe://a.test"}, "PERMISSION_DENIED"),
        ("ValidateJWTSVID", "ValidateJWTSVIDRequest", {"svid": "x"}, "INVALID_ARGUMENT"),
        ("ValidateJWTSVID", "ValidateJWTSVIDRequest", {"audience": "x"}, "INVALID_ARGUMENT"),
    ],
)
def test_wrong_arguments_have_the_status_that_spire_gives(
    server: WorkloadApiServer, folder: Path, method: str, kind: str, fields: dict[str, Any], code: str
) -> None:
    server.serve(folder / "web.sock", WEB)
    request = protos.message(kind)(**fields).SerializeToString()
    answer = call(folder / "web.sock", f"/SpiffeWorkloadAPI/{method}", ("workload.spiffe.io", "true"), request=request)
    assert isinstance(answer, grpc.RpcError)
    assert answer.code().name == code


def test_each_socket_has_its_own_identity(server: WorkloadApiServer, folder: Path) -> None:
    server.serve(folder / "web" / "api.sock", WEB)
    server.serve(folder / "db" / "api.sock", DB)
    web, db = follow(folder / "web" / "api.sock"), follow(folder / "db" / "api.sock")
    assert web.current is not None
    assert db.current is not None
    assert (web.current.svid.spiffe_id, db.current.svid.spiffe_id) == (WEB, DB)
    web.close()
    db.close()


def test_svids_are_renewed_at_half_life_without_a_gap(folder: Path) -> None:
    authority = Authority("a.test", ttl=3)
    server = WorkloadApiServer(authority)
    server.serve(folder / "web.sock", WEB)
    source = follow(folder / "web.sock")
    seen: list[Any] = []
    source.subscribe(seen.append)
    eventually(lambda: len(seen) >= 3)
    assert None not in seen
    assert source.counters.overdue == 0
    assert source.counters.streams == 1
    source.close()
    server.close()


def test_a_change_of_roots_reaches_open_streams(server: WorkloadApiServer, authority: Authority, folder: Path) -> None:
    server.serve(folder / "web.sock", WEB)
    source = follow(folder / "web.sock")
    assert source.current is not None
    serial = source.current.svid.serial

    def anchors() -> int:
        assert source.current is not None
        return len(source.current.bundles["a.test"].anchors)

    authority.prepare()
    eventually(lambda: anchors() == 2)
    assert source.current.svid.serial == serial
    authority.activate()
    server.rotate()
    eventually(lambda: source.current is not None and source.current.svid.serial != serial)
    authority.revoke()
    eventually(lambda: anchors() == 1)
    source.close()


def test_nothing_is_sent_while_nothing_changes_and_many_changes_are_merged(
    server: WorkloadApiServer, authority: Authority, folder: Path
) -> None:
    server.serve(folder / "web.sock", WEB)
    source = follow(folder / "web.sock")
    other = Authority("b.test")
    for _ in range(20):
        authority.federate("b.test", other.bundle)
        authority.federate("b.test", ())
    authority.federate("c.test", other.bundle)
    eventually(lambda: source.current is not None and "c.test" in source.current.bundles)
    assert source.counters.responses < 10
    source.close()


def test_a_registration_can_change_end_and_come_back(server: WorkloadApiServer, folder: Path) -> None:
    server.serve(folder / "web.sock", WEB)
    source = follow(folder / "web.sock")
    server.update(folder / "web.sock", DB)
    eventually(lambda: source.current is not None and source.current.svid.spiffe_id == DB)
    server.update(folder / "web.sock")
    eventually(lambda: source.current is None)
    answer = call(folder / "web.sock", protos.FETCH_X509_SVID_METHOD, ("workload.spiffe.io", "true"))
    assert isinstance(answer, grpc.RpcError)
    assert (answer.code(), answer.details()) == (grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
    server.update(folder / "web.sock", WEB)
    assert source.wait(10)
    source.close()


METHODS = [
    protos.FETCH_X509_SVID_METHOD,
    protos.FETCH_X509_BUNDLES_METHOD,
    protos.FETCH_JWT_SVID_METHOD,
    protos.FETCH_JWT_BUNDLES_METHOD,
    protos.VALIDATE_JWT_SVID_METHOD,
]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "values", [(), ("True",), ("TRUE",), ("1",), ("false",), ("",), ("true", "true"), ("false", "true")]
)
def test_the_security_header_must_be_there_once_and_be_true(
    server: WorkloadApiServer, folder: Path, method: str, values: tuple[str, ...]
) -> None:
    server.serve(folder / "nobody.sock")  # looked at before the caller is
    answer = call(folder / "nobody.sock", method, *[("workload.spiffe.io", value) for value in values])
    assert isinstance(answer, grpc.RpcError)
    assert answer.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert answer.details() == "security header missing from request"


@pytest.mark.parametrize("method", ["/SpiffeWorkloadAPI/FetchWITSVID", "/spiffe.SpiffeWorkloadAPI/FetchX509SVID"])
def test_what_is_not_served_is_unimplemented(server: WorkloadApiServer, folder: Path, method: str) -> None:
    server.serve(folder / "web.sock", WEB)
    answer = call(folder / "web.sock", method, ("workload.spiffe.io", "true"))
    assert isinstance(answer, grpc.RpcError)
    assert answer.code() is grpc.StatusCode.UNIMPLEMENTED


def test_bundles_are_keyed_by_spiffe_id(server: WorkloadApiServer, authority: Authority, folder: Path) -> None:
    server.serve(folder / "web.sock", WEB)
    answer = call(folder / "web.sock", protos.FETCH_X509_BUNDLES_METHOD, ("workload.spiffe.io", "true"))
    assert isinstance(answer, bytes)
    assert dict(protos.message("X509BundlesResponse").FromString(answer).bundles) == {
        "spiffe://a.test": authority.bundle[0]
    }


def test_of_equal_hints_the_first_counts_and_a_long_one_is_refused(
    server: WorkloadApiServer, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.serve(folder / "web.sock", Identity(WEB, hint="x"), Identity(DB, hint="x"), Identity(DB))
    answer = call(folder / "web.sock", protos.FETCH_X509_SVID_METHOD, ("workload.spiffe.io", "true"))
    assert isinstance(answer, bytes)
    svids = protos.message("X509SVIDResponse").FromString(answer).svids
    assert [(svid.spiffe_id, svid.hint) for svid in svids] == [(str(WEB), "x"), (str(DB), "")]
    assert "is taken by an earlier identity" in caplog.text
    with pytest.raises(SettingsError, match="1024"):
        Identity(WEB, hint="x" * 1025)


def test_the_socket_and_its_directory_are_closed_to_others(server: WorkloadApiServer, folder: Path) -> None:
    server.serve(folder / "new" / "web.sock", WEB)
    assert stat.S_IMODE((folder / "new").stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "new" / "web.sock").stat().st_mode) == 0o600
    (folder / "open").mkdir()
    os.chmod(folder / "open", 0o755)
    with pytest.raises(SettingsError, match="mode 0700"):
        server.serve(folder / "open" / "web.sock", WEB)
    with pytest.raises(SettingsError, match="107 bytes"):
        server.serve(folder / ("x" * 120) / "web.sock", WEB)


def test_what_the_authority_does_not_issue_is_not_served(server: WorkloadApiServer, folder: Path) -> None:
    with pytest.raises(InvalidSvidError):
        server.serve(folder / "web.sock", SpiffeId.parse("spiffe://b.test/web"))
    assert not (folder / "web.sock").exists()


def test_a_socket_left_by_a_killed_process_is_replaced_and_closing_removes_it(
    authority: Authority, folder: Path
) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(folder / "web.sock"))
    server = WorkloadApiServer(authority)
    server.serve(folder / "web.sock", WEB)
    source = follow(folder / "web.sock")
    server.close()
    server.close()
    assert not (folder / "web.sock").exists()
    assert source.current is not None
    again = WorkloadApiServer(authority)
    again.serve(folder / "web.sock", DB)
    eventually(lambda: source.current is not None and source.current.svid.spiffe_id == DB)
    source.close()
    again.close()


def test_a_hundred_streams_are_served_at_once(server: WorkloadApiServer, folder: Path) -> None:
    server.serve(folder / "web.sock", WEB)
    with grpc.insecure_channel(f"unix:{folder}/web.sock") as channel:
        fetch = channel.unary_stream(protos.FETCH_X509_SVID_METHOD)
        streams = [fetch(b"", metadata=[("workload.spiffe.io", "true")], timeout=30) for _ in range(100)]
        first = {next(iter(stream)) for stream in streams}
        server.rotate()
        second = {next(iter(stream)) for stream in streams}
        for stream in streams:
            stream.cancel()
    assert len(first) == len(second) == 1
    assert first != second
