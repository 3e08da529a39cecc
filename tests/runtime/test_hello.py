"""ClientHello: what OpenSSL writes is read, and no bytes of a stranger do harm."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.runtime.hello import MAX_HELLO, ClientHello, NeedMore, NotTls, parse_client_hello


def hello(name: str | None = None, alpn: list[str] | None = None, versions: ssl.TLSVersion | None = None) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    if versions is not None:
        context.maximum_version = versions
    if alpn:
        context.set_alpn_protocols(alpn)
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


@pytest.mark.parametrize("versions", [None, ssl.TLSVersion.TLSv1_2])
@pytest.mark.parametrize("name", [None, "outbound_.80_._.payments.default.svc.cluster.local"])
@pytest.mark.parametrize("alpn", [None, ["istio"], ["istio-http/1.1", "istio", "http/1.1"]])
def test_name_and_alpn_are_read(name, alpn, versions):
    assert parse_client_hello(hello(name, alpn, versions)) == ClientHello(name or "", tuple(alpn or ()))


def test_every_prefix_asks_for_more_and_what_follows_does_not_matter():
    data = hello("a.test", ["istio"])
    for end in range(1, len(data)):
        with pytest.raises(NeedMore):
            parse_client_hello(data[:end])
    assert parse_client_hello(data + b"early data") == ClientHello("a.test", ("istio",))


def test_a_hello_in_several_records_is_joined():
    data = hello("a.test", ["istio"])
    body = data[5:]
    records = b"".join(
        data[:3] + len(body[at : at + 50]).to_bytes(2) + body[at : at + 50] for at in range(0, len(body), 50)
    )
    assert parse_client_hello(records) == ClientHello("a.test", ("istio",))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x16\x03\x01\x00\x00",  # empty record
        b"\x16\x03\x01\xff\xff",  # longer than a record can be
        b"\x16\x02\x00\x00\x10",  # SSL 2 numbering
        b"\x16\x03\x01\x00\x04\x02\x00\x00\x00",  # a ServerHello
        b"\x16\x03\x01\x00\x04\x01" + (MAX_HELLO + 1).to_bytes(3),  # announces too much
        b"\x16\x03\x01\x00\x06\x01\x00\x00\x02\x03\x03",  # ends inside
        b"\x15\x03\x01\x00\x02\x02\x28",  # an alert
    ],
)
def test_what_is_no_client_hello_is_refused(data):
    with pytest.raises(NotTls):
        parse_client_hello(data)


@given(st.binary(max_size=400))
def test_random_bytes_give_an_answer_and_nothing_else(data):
    for prefix in (b"", b"\x16\x03\x01", b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c\x03\x03"):
        with contextlib.suppress(NeedMore, NotTls):
            parse_client_hello(prefix + data)


@given(st.data())
def test_a_damaged_hello_gives_an_answer_and_nothing_else(data):
    whole = bytearray(hello("a.test", ["istio"]))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(NeedMore, NotTls):
        parse_client_hello(whole)
