"""Handshakes: who is refused gets no byte, and everything rotates (rules M-10 to M-20, M-32, M-43)."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from proxyless.core.matchers import StringMatcher
from proxyless.core.resources import DownstreamTls, TlsMaterial, UpstreamTls
from proxyless.errors import NoIdentityError, PeerVerificationError
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.certificates import pem
from proxyless.identity.keyfile import load_svid
from proxyless.identity.source import StaticSource
from proxyless.identity.tls import PeerRefusedError, RotatingServerContext, TlsContexts, covers

from .conversation import STYLES, talk
from .helpers import Issued, root

CLIENT, SERVER = "spiffe://a.test/ns/default/sa/client", "spiffe://a.test/ns/default/sa/server"
STRICT = DownstreamTls(require_client_certificate=True)
A, B = root("a.test"), root("b.test")
BUNDLES = [A.bundle("a.test"), B.bundle("b.test")]

each_style = pytest.mark.parametrize("style", STYLES)


def expecting(*ids: str) -> UpstreamTls:
    return UpstreamTls(san_matchers=tuple(StringMatcher("exact", each) for each in ids))


def contexts(uri: str, *, issuer: Issued = A, bundles: list[TrustBundle] = BUNDLES, **options: Any) -> TlsContexts:
    return TlsContexts(StaticSource(issuer.svid(uri, **options), bundles))


def raw(svid_of: Issued | None, *, server: bool, trusted: bytes = A.der + B.der) -> ssl.SSLContext:
    """A context of plain `ssl`: the other end is not ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=trusted)
    if svid_of is not None:
        from proxyless.identity.svid import X509Svid

        blank = X509Svid(
            spiffe_id=A.svid(CLIENT).spiffe_id,
            chain=(svid_of.der,),
            private_key=svid_of.key_der,
            not_before=0,
            not_after=0,
        )
        load_svid(context, blank)
    return context


class _Judged(ssl.SSLObject):
    """Gives plain objects the attributes that the conversation looks at."""

    peer = peer_identity = None
    peer_uri_sans = peer_dns_sans = ()
    peer_not_after = valid_until = float("inf")


class _JudgedSocket(ssl.SSLSocket):
    peer = peer_identity = None
    peer_uri_sans = peer_dns_sans = ()
    peer_not_after = valid_until = float("inf")


def outsider(svid_of: Issued | None, *, server: bool = False) -> ssl.SSLContext:
    context = raw(svid_of, server=server)
    context.sslobject_class, context.sslsocket_class = _Judged, _JudgedSocket
    return context


@each_style
def test_both_ends_know_each_other_before_the_first_byte(style: str) -> None:
    server = contexts(SERVER, until=500)
    client = contexts(CLIENT, until=900)
    ours, theirs = talk(style, server.server(STRICT), client.client(expecting(SERVER)))
    assert (ours.error, ours.received, ours.identity) == (None, b"pong", SERVER)
    assert (theirs.error, theirs.received, theirs.identity) == (None, b"ping", CLIENT)
    assert theirs.facts["uris"] == (CLIENT,)
    assert ours.valid_until == theirs.valid_until == ours.facts["end"] < theirs.facts["end"]


@each_style
def test_a_server_with_another_identity_gets_no_byte(style: str) -> None:
    server = contexts("spiffe://a.test/ns/default/sa/other")
    ours, theirs = talk(style, server.server(STRICT), contexts(CLIENT).client(expecting(SERVER)))
    assert isinstance(ours.error, PeerRefusedError)
    assert isinstance(ours.error, ssl.SSLCertVerificationError)
    assert isinstance(ours.error, PeerVerificationError)
    assert (ours.error.step, ours.error.peer) == ("authorize", "spiffe://a.test/ns/default/sa/other")
    assert SERVER not in str(ours.error)
    assert theirs.received == b""


@each_style
def test_a_server_certified_by_another_trust_domain_for_ours_is_refused(style: str) -> None:
    forged = B.issue(SERVER)
    ours, theirs = talk(style, outsider(forged, server=True), contexts(CLIENT).client(expecting(SERVER)))
    assert isinstance(ours.error, PeerRefusedError)
    assert ours.error.step == "path"
    assert theirs.received == b""


@each_style
def test_a_client_certified_by_another_trust_domain_for_ours_is_refused(style: str) -> None:
    ours, theirs = talk(style, contexts(SERVER).server(STRICT), outsider(B.issue(CLIENT)))
    assert ours.received == theirs.received == b""
    assert theirs.identity is None


@each_style
@pytest.mark.parametrize("role", ["client", "server"])
def test_a_peer_whose_certificate_has_expired_is_refused(style: str, role: str) -> None:
    expired = A.issue(CLIENT, until=-5)
    if role == "client":
        ours, theirs = talk(style, contexts(SERVER).server(STRICT), outsider(expired))
    else:
        ours, theirs = talk(style, outsider(expired, server=True), contexts(SERVER).client(UpstreamTls()))
        assert isinstance(ours.error, ssl.SSLCertVerificationError)
    assert ours.received == theirs.received == b""


@each_style
def test_strict_refuses_a_client_without_a_certificate(style: str) -> None:
    ours, theirs = talk(style, contexts(SERVER).server(STRICT), outsider(None))
    assert ours.received == theirs.received == b""


@each_style
def test_where_a_certificate_is_optional_none_is_anonymous_and_a_bad_one_is_refused(style: str) -> None:
    server = contexts(SERVER).server(DownstreamTls(require_client_certificate=False))
    ours, theirs = talk(style, server, outsider(None))
    assert (ours.received, theirs.received, theirs.identity) == (b"pong", b"ping", None)
    for bad in (B.issue(CLIENT), A.issue("spiffe://a.test/x", "spiffe://a.test/y"), A.issue(CLIENT, eku=["server"])):
        ours, theirs = talk(style, server, outsider(bad))
        assert ours.received == theirs.received == b""
    ours, theirs = talk(style, server, outsider(A.issue(CLIENT)))
    assert theirs.identity == CLIENT


def test_a_peer_of_a_federated_trust_domain_is_accepted_with_its_own_bundle() -> None:
    server = contexts("spiffe://b.test/db", issuer=B)
    ours, theirs = talk("blocking", server.server(STRICT), contexts(CLIENT).client(expecting("spiffe://b.test/db")))
    assert (ours.identity, theirs.identity) == ("spiffe://b.test/db", CLIENT)
    alone = contexts(CLIENT, bundles=[A.bundle("a.test")])
    ours, theirs = talk("blocking", server.server(STRICT), alone.client(expecting("spiffe://b.test/db")))
    assert isinstance(ours.error, ssl.SSLCertVerificationError)
    assert theirs.received == b""


def test_a_listener_can_ask_for_members_of_its_trust_domain() -> None:
    ours_only = DownstreamTls(
        require_client_certificate=True, san_matchers=(StringMatcher("prefix", "spiffe://a.test/"),)
    )
    server = contexts(SERVER).server(ours_only)
    assert talk("blocking", server, contexts(CLIENT).client(expecting(SERVER)))[1].identity == CLIENT
    foreign = contexts("spiffe://b.test/x", issuer=B)
    assert isinstance(talk("blocking", server, foreign.client(expecting(SERVER)))[1].error, PeerRefusedError)


def test_an_intermediate_as_anchor_and_in_the_chain_works() -> None:
    intermediate = A.ca()
    server = TlsContexts(StaticSource(intermediate.svid(SERVER), [intermediate.bundle("a.test")]))
    client = TlsContexts(StaticSource(intermediate.svid(CLIENT), [intermediate.bundle("a.test")]))
    assert talk("blocking", server.server(STRICT), client.client(expecting(SERVER)))[0].identity == SERVER


def test_alpn_is_negotiated() -> None:
    server = contexts(SERVER).server(DownstreamTls(require_client_certificate=True, alpn=("h2", "http/1.1")))
    client = contexts(CLIENT).client(UpstreamTls(alpn=("http/1.1",)))
    assert [seen.alpn for seen in talk("blocking", server, client)] == ["http/1.1", "http/1.1"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_not_resumed(version: ssl.TLSVersion) -> None:
    server, client = contexts(SERVER).server(STRICT), outsider(A.issue(CLIENT))
    client.maximum_version = client.minimum_version = version
    session, reused = None, []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            for _ in range(2):
                plain, _ = listener.accept()
                with server.wrap_socket(plain, server_side=True) as connected:
                    reused.append(connected.session_reused)
                    connected.sendall(b"x")
                    connected.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        for _ in range(2):
            plain = socket.create_connection(listener.getsockname(), timeout=10)
            with client.wrap_socket(plain, session=session) as connected:
                connected.recv(1)
                session = connected.session
                connected.sendall(b"x")
        thread.join(10)
    assert reused == [False, False]
    assert session is None or not session.has_ticket


def test_versions_below_1_2_are_refused() -> None:
    assert contexts(SERVER).server(STRICT).minimum_version == ssl.TLSVersion.TLSv1_2
    assert contexts(CLIENT).client(UpstreamTls()).minimum_version == ssl.TLSVersion.TLSv1_2


@each_style
def test_a_live_listener_follows_certificate_anchors_and_mode(style: str) -> None:
    source = StaticSource(A.svid(SERVER), BUNDLES)
    server = TlsContexts(source)
    mode = [STRICT]
    listener = server.rotating_server(lambda: mode[0])
    client = contexts(CLIENT)

    first, _ = talk(style, listener, client.client(expecting(SERVER)))
    renewed = A.svid(SERVER)
    source.replace(renewed, BUNDLES)
    second, _ = talk(style, listener, client.client(expecting(SERVER)))
    assert first.serial != second.serial == renewed.serial

    source.replace(renewed, [B.bundle("b.test")])
    _, refused = talk(style, listener, outsider(A.issue(CLIENT)))
    assert refused.identity is None
    assert refused.received == b""

    source.replace(renewed, BUNDLES)
    mode[0] = DownstreamTls(require_client_certificate=False)
    _, anonymous = talk(style, listener, outsider(None))
    assert anonymous.received == b"ping"


@each_style
def test_a_listener_without_identity_ends_each_handshake_and_says_why(
    style: str, caplog: pytest.LogCaptureFixture
) -> None:
    source = StaticSource(A.svid(SERVER), BUNDLES)
    listener = TlsContexts(source).rotating_server(lambda: STRICT)
    source.withdraw()
    ours, theirs = talk(style, listener, contexts(CLIENT).client(expecting(SERVER)))
    assert isinstance(ours.error, OSError)
    assert theirs.received == b""
    assert "refusing TLS connections: no identity was given" in caplog.text
    source.replace(A.svid(SERVER), BUNDLES)
    assert talk(style, listener, contexts(CLIENT).client(expecting(SERVER)))[0].identity == SERVER


def test_a_listener_whose_files_are_gone_ends_each_handshake_and_says_why(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = DownstreamTls(
        require_client_certificate=False,
        certificate=TlsMaterial.FILE,
        validation=TlsMaterial.NONE,
        certificate_file=str(tmp_path / "missing.pem"),
    )
    listener = TlsContexts(StaticSource()).rotating_server(lambda: settings)
    ours, theirs = talk("asyncio", listener, outsider(None))
    assert isinstance(ours.error, OSError)
    assert theirs.received == b""
    assert "missing.pem" in caplog.text


def test_a_gateway_certificate_from_files_serves_clients_without_one(tmp_path: Path) -> None:
    shop = A.issue(dns=["shop.test"])
    settings = DownstreamTls(
        require_client_certificate=False,
        certificate=TlsMaterial.FILE,
        validation=TlsMaterial.NONE,
        certificate_file=str(tmp_path / "tls.crt"),
        key_file=str(tmp_path / "tls.key"),
    )
    (tmp_path / "tls.crt").write_text(pem(shop.der))
    (tmp_path / "tls.key").write_text(pem(shop.key_der, "PRIVATE KEY"))
    server = TlsContexts(StaticSource()).server(settings)
    client = TlsContexts(StaticSource()).client(outside(tmp_path))
    ours, theirs = talk("blocking", server, client, name="shop.test")
    assert (ours.received, theirs.received, theirs.identity) == (b"pong", b"ping", None)


def test_the_rotating_context_upgrades_a_plain_connection() -> None:
    listener = contexts(SERVER).rotating_server(lambda: STRICT)
    assert isinstance(listener, RotatingServerContext)
    client = contexts(CLIENT).client(expecting(SERVER))
    got: list[Any] = []

    async def main() -> None:
        done = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await writer.start_tls(listener)
            got.append(str(writer.get_extra_info("ssl_object").peer_identity))
            got.append(await reader.read(10))
            writer.close()
            done.set()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            await writer.start_tls(client)
            writer.write(b"hello")
            await asyncio.wait_for(done.wait(), 10)
            writer.close()

    asyncio.run(main())
    assert got == [CLIENT, b"hello"]


def test_a_context_is_made_once_for_each_setting_and_generation() -> None:
    source = StaticSource(A.svid(CLIENT), BUNDLES)
    made = TlsContexts(source)
    first = made.client(expecting(SERVER))
    assert made.client(expecting(SERVER)) is first
    assert made.client(expecting(CLIENT)) is not first
    before = made.generation
    source.replace(A.svid(CLIENT), BUNDLES)
    assert made.generation > before
    assert made.client(expecting(SERVER)) is not first
    source.replace(*_same(source))
    assert made.generation == before + 1


def _same(source: StaticSource) -> tuple[Any, Any]:
    snapshot = source.current
    assert snapshot is not None
    return snapshot.svid, list(snapshot.bundles.values())


def test_without_an_identity_or_with_an_expired_one_there_is_no_mesh_context() -> None:
    now = [time.time()]
    source = StaticSource(A.svid(CLIENT), BUNDLES, now=lambda: now[0])
    made = TlsContexts(source, lambda: now[0])
    assert made.client(UpstreamTls())
    now[0] += 4000
    with pytest.raises(NoIdentityError, match="not valid at this time"):
        made.client(UpstreamTls())
    with pytest.raises(NoIdentityError, match="no identity was given"):
        TlsContexts(StaticSource()).server(STRICT)


# ------------------------------------------------------------------------------------------------- outside the mesh


def outside(tmp_path: Path, **options: Any) -> UpstreamTls:
    (tmp_path / "ca.pem").write_bytes(A.bundle("a.test").pem())
    return UpstreamTls(
        certificate=TlsMaterial.NONE, validation=TlsMaterial.FILE, ca_file=str(tmp_path / "ca.pem"), **options
    )


def website(**options: Any) -> ssl.SSLContext:
    context = outsider(A.issue(dns=["shop.test"], **options), server=True)
    context.verify_mode = ssl.CERT_NONE
    return context


@each_style
def test_outside_the_mesh_the_host_name_is_verified_and_no_identity_is_needed(style: str, tmp_path: Path) -> None:
    client = TlsContexts(StaticSource()).client(outside(tmp_path))
    ours, _ = talk(style, website(), client, name="shop.test")
    assert (ours.received, ours.identity, ours.valid_until) == (b"pong", None, float("inf"))
    ours, theirs = talk(style, website(), client, name="bank.test")
    assert isinstance(ours.error, ssl.SSLCertVerificationError)
    assert theirs.received == b""


def test_names_that_the_configuration_expects_take_the_place_of_the_host_name(tmp_path: Path) -> None:
    made = TlsContexts(StaticSource())
    right = made.client(outside(tmp_path, san_matchers=(StringMatcher("exact", "shop.test"),)))
    wrong = made.client(outside(tmp_path, san_matchers=(StringMatcher("exact", "bank.test"),)))
    assert talk("blocking", website(), right, name="other.test")[0].received == b"pong"
    ours, theirs = talk("blocking", website(), wrong, name="shop.test")
    assert isinstance(ours.error, PeerRefusedError)
    assert theirs.received == b""


def test_a_wildcard_of_the_certificate_stands_for_an_expected_name(tmp_path: Path) -> None:
    context = outsider(A.issue(dns=["*.shop.test"]), server=True)
    context.verify_mode = ssl.CERT_NONE
    made = TlsContexts(StaticSource())
    for name, fits in (("api.shop.test", True), ("shop.test", False), ("a.b.shop.test", False)):
        client = made.client(outside(tmp_path, san_matchers=(StringMatcher("exact", name),)))
        ours, _ = talk("blocking", context, client, name="other.test")
        assert (ours.error is None) is fits, name


@pytest.mark.parametrize(
    ("pattern", "name", "fits"),
    [
        ("a.test", "A.TEST", True),
        ("*.test", "a.test", True),
        ("*.test", ".test", False),
        ("*", "a", False),
        ("*.*.test", "a.b.test", False),
        ("a.*.test", "a.b.test", False),
        ("api-*.test", "api-1.test", True),
        ("api-*.test", "api-.test", False),
        ("*1.test", "xn--a1.test", False),
        ("*.test", "xn--a1.test", True),
    ],
)
def test_what_a_dns_name_of_a_certificate_stands_for(pattern: str, name: str, fits: bool) -> None:
    assert covers(pattern, name) is fits


def test_whether_a_context_is_current_is_found_out_without_making_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxyless.identity.tls.MAX_CONTEXTS", 3)
    source = StaticSource(A.svid(CLIENT), BUNDLES)
    made = TlsContexts(source)
    rules = [UpstreamTls(sni=f"{number}.test") for number in range(5)]
    contexts = [made.client(rule) for rule in rules]
    assert len(made._made) == 3
    with monkeypatch.context() as patched:
        patched.setattr(TlsContexts, "_build", None)
        assert all(made.is_current(rule, context) for rule, context in zip(rules, contexts, strict=True))
        source.replace(A.svid(CLIENT), BUNDLES)
        assert not any(made.is_current(rule, context) for rule, context in zip(rules, contexts, strict=True))


@pytest.mark.parametrize("validation", [TlsMaterial.SYSTEM, TlsMaterial.NONE])
def test_there_is_no_client_context_that_verifies_nobody(validation: TlsMaterial) -> None:
    client = TlsContexts(StaticSource()).client(UpstreamTls(certificate=TlsMaterial.NONE, validation=validation))
    assert (client.verify_mode, client.check_hostname) == (ssl.CERT_REQUIRED, True)
    ours, theirs = talk("blocking", website(), client, name="shop.test")
    assert isinstance(ours.error, ssl.SSLCertVerificationError)
    assert theirs.received == b""


def test_files_that_change_are_read_again(tmp_path: Path) -> None:
    made, settings = TlsContexts(StaticSource()), outside(tmp_path)
    first = made.client(settings)
    assert made.client(settings) is first
    (tmp_path / "ca.pem").write_bytes(A.bundle("a.test").pem() + B.bundle("b.test").pem())
    assert len(made.client(settings).get_ca_certs()) == 2
    (tmp_path / "ca.pem").unlink()
    with pytest.raises(FileNotFoundError):
        made.client(settings)


def test_a_secret_that_this_process_cannot_get_is_refused_by_name() -> None:
    unknown = UpstreamTls(certificate=TlsMaterial.UNKNOWN, certificate_file="kubernetes://shop-cert")
    with pytest.raises(NoIdentityError, match="shop-cert"):
        contexts(CLIENT).client(unknown)
