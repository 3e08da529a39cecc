"""The other end is grpcio as it is, without anything of ours."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
import grpc.aio
import pytest

from proxyless.controlplane.server import ControlPlane
from proxyless.grpc import mesh_channel, mesh_peer
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.source import StaticSource
from proxyless.runtime.mesh import Mesh

from .helpers import (
    DECLARED,
    DOMAIN,
    ENTRY,
    ONLY_BILLING,
    PAY,
    SERVICE,
    STRICT,
    Counter,
    bundle_pem,
    configure,
    control_plane,
    endpoints,
    handlers,
    identity,
    issue,
    member,
    serving,
    svid_pem,
)

pytestmark = pytest.mark.interop

NAME = "payments.test"  # grpcio checks DNS names only, so the server's SVID has one beside its SPIFFE ID


@contextlib.contextmanager
def payments(*documents: str) -> Iterator[tuple[ControlPlane, Mesh]]:
    with control_plane(ENTRY, *documents) as plane:
        bundle = TrustBundle(DOMAIN, plane.authority.bundle)
        source = StaticSource(issue(plane, "payments", dns_names=[NAME]), [bundle])
        with member(plane, "payments", service="payments", identity_source=source) as mesh:
            yield plane, mesh


def stock_channel(plane: ControlPlane, port: int, account: str = "") -> Any:
    """A channel with TLS of grpcio's own; without an account it has no certificate."""
    key, chain = svid_pem(issue(plane, account)) if account else (None, None)
    credentials = grpc.ssl_channel_credentials(bundle_pem(plane), key, chain)
    options = [("grpc.ssl_target_name_override", NAME)]
    return grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)


async def status(channel: Any, path: str = PAY) -> grpc.StatusCode:
    async with channel:
        call = channel.unary_unary(path)(b"5", timeout=10)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await call
        code: grpc.StatusCode = await call.code()
        return code


def test_policy_decides_by_the_certificate_of_a_stock_client() -> None:
    seen: list[str] = []

    async def answer(_: bytes, context: Any) -> bytes:
        seen.append(str(mesh_peer(context).identity))
        return b"ok"

    async def run(plane: ControlPlane, mesh: Mesh) -> None:
        async with serving(mesh, handlers(Pay=Counter(answer).pay)) as port:
            assert await status(stock_channel(plane, port, "billing")) is grpc.StatusCode.OK
            assert await status(stock_channel(plane, port, "intruder")) is grpc.StatusCode.PERMISSION_DENIED
            assert await status(stock_channel(plane, port)) is grpc.StatusCode.UNAVAILABLE
            assert await status(grpc.aio.insecure_channel(f"127.0.0.1:{port}")) is grpc.StatusCode.UNAVAILABLE

    with payments(STRICT, ONLY_BILLING) as (plane, mesh):
        asyncio.run(run(plane, mesh))
    assert seen == [identity("billing")]


def test_a_connection_ends_with_the_certificate_of_its_caller() -> None:
    async def run(plane: ControlPlane, mesh: Mesh) -> None:
        async with serving(mesh, handlers(Pay=Counter().pay)) as port:
            key, chain = svid_pem(issue(plane, "billing", ttl=2))
            credentials = grpc.ssl_channel_credentials(bundle_pem(plane), key, chain)
            options = [("grpc.ssl_target_name_override", NAME)]
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
                assert await channel.unary_unary(PAY)(b"", timeout=10) == b"paid"
                async with asyncio.timeout(10):
                    await channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
                call = channel.unary_unary(PAY)(b"", timeout=10)
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await call
                assert await call.code() is grpc.StatusCode.UNAVAILABLE

    with payments(STRICT) as (plane, mesh):
        asyncio.run(run(plane, mesh))


def test_a_permissive_port_takes_plain_text_as_anonymous() -> None:
    seen: list[Any] = []

    async def answer(_: bytes, context: Any) -> bytes:
        seen.append(mesh_peer(context).identity)
        return b"ok"

    async def run(plane: ControlPlane, mesh: Mesh) -> None:
        async with serving(mesh, handlers(Pay=Counter(answer).pay)) as port:
            assert await status(grpc.aio.insecure_channel(f"127.0.0.1:{port}")) is grpc.StatusCode.OK
            configure(plane, ENTRY, ONLY_BILLING)
            denied = None
            async with asyncio.timeout(15):
                while denied is not grpc.StatusCode.PERMISSION_DENIED:
                    denied = await status(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))

    with payments() as (plane, mesh):
        asyncio.run(run(plane, mesh))
    assert set(seen) == {None}


def test_every_kind_of_method_is_guarded_in_coroutines_and_in_threads() -> None:
    reached: list[str] = []

    async def watch(_: bytes, context: Any) -> Any:
        reached.append("watch")
        for number in range(3):
            yield b"%d" % number

    def watch_in_thread(_: bytes, context: Any) -> Any:
        reached.append("watch in thread")
        yield from (b"0", b"1", b"2")

    async def written(messages: Any, context: Any) -> None:
        reached.append("written")
        async for message in messages:
            await context.write(message)

    def total(messages: Any, context: Any) -> bytes:
        reached.append("total")
        return b"".join(messages)

    def plain(_: bytes, context: Any) -> bytes:
        reached.append(str(mesh_peer(context).identity))
        return b"plain"

    service = handlers(
        Watch=grpc.unary_stream_rpc_method_handler(watch),
        WatchInThread=grpc.unary_stream_rpc_method_handler(watch_in_thread),
        Written=grpc.stream_stream_rpc_method_handler(written),
        Total=grpc.stream_unary_rpc_method_handler(total),
        Plain=plain,
    )

    async def called(channel: Any) -> list[Any]:
        async def stream() -> Any:
            yield b"a"
            yield b"b"

        async with channel:
            path = f"/{SERVICE}/"
            return [
                await collected(channel.unary_stream(path + "Watch")(b"", timeout=10)),
                await collected(channel.unary_stream(path + "WatchInThread")(b"", timeout=10)),
                await collected(channel.stream_stream(path + "Written")(stream(), timeout=10)),
                await collected_one(channel.stream_unary(path + "Total")(stream(), timeout=10)),
                await collected_one(channel.unary_unary(path + "Plain")(b"", timeout=10)),
            ]

    async def run(plane: ControlPlane, mesh: Mesh) -> None:
        with futures.ThreadPoolExecutor(2) as pool:
            async with serving(mesh, service, migration_thread_pool=pool) as port:
                allowed = await called(stock_channel(plane, port, "billing"))
                assert allowed == [[b"0", b"1", b"2"]] * 2 + [[b"a", b"b"], b"ab", b"plain"]
                before = list(reached)
                assert before == ["watch", "watch in thread", "written", "total", identity("billing")]
                denied = await called(stock_channel(plane, port, "intruder"))
                assert reached == before
                # A call of grpc.aio that still sends when it is refused may end with INTERNAL; against any server.
                assert {denied.pop(2), denied.pop(2)} <= {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INTERNAL}
                assert denied == [grpc.StatusCode.PERMISSION_DENIED] * 3

    policy = ONLY_BILLING[: ONLY_BILLING.index("    to:")]
    with payments(STRICT, policy) as (plane, mesh):
        asyncio.run(run(plane, mesh))


async def collected(call: Any) -> Any:
    try:
        return [message async for message in call]
    except grpc.aio.AioRpcError as error:
        return error.code()


async def collected_one(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error.code()


def test_a_stock_server_is_verified_by_its_spiffe_id_and_sees_ours() -> None:
    seen: list[Any] = []

    async def pay(request: bytes, context: Any) -> bytes:
        seen.append((context.auth_context()["peer_spiffe_id"], request))
        return b"stock"

    async def run(plane: ControlPlane, mesh: Mesh) -> None:
        key_and_chain = svid_pem(issue(plane, "payments"))
        credentials = grpc.ssl_server_credentials([key_and_chain], bundle_pem(plane), True)
        server = grpc.aio.server(handlers=[handlers(Pay=pay)])
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        try:
            configure(plane, ENTRY + DECLARED.format(port=port), STRICT)
            await endpoints(mesh)
            async with mesh_channel("payments:50051", mesh) as channel:
                assert await channel.unary_unary(PAY)(b"5", timeout=10) == b"stock"
                large = bytes(3_000_000)
                assert await channel.unary_unary(PAY)(large, timeout=20) == b"stock"
        finally:
            await server.stop(0)

    with control_plane(ENTRY, STRICT) as plane, member(plane, "billing") as mesh:
        asyncio.run(run(plane, mesh))
    assert [ids for ids, _ in seen] == [[identity("billing").encode()]] * 2
    assert seen[1][1] == bytes(3_000_000)
