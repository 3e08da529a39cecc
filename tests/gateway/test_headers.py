from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxyless.core.request import Address
from proxyless.gateway.headers import Headers, authority_of, closing, forwarded, returned

HOP_BY_HOP = [
    b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te", b"trailer",
    b"transfer-encoding", b"upgrade",
]  # fmt: skip
FORBIDDEN = [*HOP_BY_HOP, b"x-forwarded-client-cert", b"x-envoy-retry-on", b"x-envoy-peer-metadata", b"host"]
names = st.sampled_from(
    [*FORBIDDEN, b"x-a", b"x-b", b"cookie", b"x-request-id", b"x-forwarded-for", b"x-forwarded-proto"]
)
headers = st.lists(st.tuples(names, st.sampled_from([b"x-a", b"1", b"close, X-B", b"h2c", b"cookie ,te", b""])))


@given(headers, st.integers(0, 2))
def test_nothing_that_is_for_one_hop_or_for_the_mesh_alone_goes_in(given: Headers, hops: int) -> None:
    kept = forwarded(given, trusted_hops=hops)
    names = [name for name, _ in kept]
    assert not set(names) & set(FORBIDDEN)
    said = [value.lower() for name, value in given if name == b"connection"]
    for named in (b"x-a", b"x-b", b"cookie"):
        if any(named in value for value in said):
            assert named not in names
    assert names.count(b"x-forwarded-proto") >= 1
    assert b"x-request-id" in names
    if not hops:
        assert [value for name, value in kept if name == b"x-forwarded-proto"] == [b"http"]


@given(headers, st.sampled_from([200, 204, 304, 500]))
def test_nothing_that_is_for_one_hop_comes_out(given: Headers, status: int) -> None:
    kept = returned(status, [*given, (b"Content-Length", b"3")])
    names = [name.lower() for name, _ in kept]
    assert not set(names) & {*HOP_BY_HOP, b"x-envoy-peer-metadata"}
    assert (b"content-length" in names) == (status not in (204, 304))


def test_a_trusted_proxy_is_believed_about_the_scheme() -> None:
    given = [(b"x-forwarded-proto", b"https")]
    assert (b"x-forwarded-proto", b"https") in forwarded(given, trusted_hops=1)
    assert (b"x-forwarded-proto", b"https") not in forwarded(given, trusted_hops=0)


def test_the_client_is_the_last_address_a_request_came_by() -> None:
    given = [(b"x-forwarded-for", b"203.0.113.9"), (b"x-a", b"1"), (b"x-forwarded-for", b"203.0.113.10")]
    expected = (b"x-forwarded-for", b"203.0.113.9,203.0.113.10,127.0.0.1")
    assert closing(given, Address("127.0.0.1", 5)) == [(b"x-a", b"1"), expected]
    assert closing([], Address("", 0)) == []


def test_a_request_has_one_host() -> None:
    host = (b"host", b"shop.test")
    assert authority_of([host], "1.1") == "shop.test"
    assert authority_of([host, host], "1.1") is None
    assert authority_of([], "1.1") is None
    assert authority_of([], "1.0") == ""
