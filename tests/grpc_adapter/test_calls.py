"""A unary call from one member of the mesh to another."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import grpc
import pytest
import uvloop

from proxyless.errors import (
    ConnectFailureError,
    ConnectionTerminatedError,
    LocalReplyError,
    NotReadyError,
    UpstreamTimeoutError,
)
from proxyless.grpc import mesh_channel, mesh_peer
from proxyless.grpc.front import accepted
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings

from .helpers import (
    DECLARED,
    ENTRY,
    ONLY_BILLING,
    PAY,
    ROUTE,
    SERVICE,
    STRICT,
    Counter,
    configure,
    control_plane,
    counted,
    endpoints,
    eventually,
    handlers,
    identity,
    issue,
    member,
    requests,
    server_context,
    serving,
    svid_pem,
    unused_port,
)


def test_an_allowed_call_is_answered_and_both_ends_know_each_other() -> None:
    seen: list[Any] = []

    async def answer(request: bytes, context: Any) -> bytes:
        seen.append((str(mesh_peer(context).identity), dict(context.invocation_metadata())))
        context.set_trailing_metadata((("x-trailer", "t"), ("x-raw-bin", b"\x00\xff")))
        await context.send_initial_metadata((("x-initial", "i"),))
        return b"paid " + request

    async def run(payments: Any, billing: Any) -> None:
        async with serving(payments, handlers(Pay=Counter(answer).pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                call = channel.unary_unary(PAY)(b"5", timeout=10, metadata=(("x-user", "ann"), ("x-key-bin", b"\x01")))
                assert await call == b"paid 5"
                assert dict(await call.initial_metadata())["x-initial"] == "i"
                trailing = dict(await call.trailing_metadata())
                assert (trailing["x-trailer"], trailing["x-raw-bin"]) == ("t", b"\x00\xff")
                assert await call.code() is grpc.StatusCode.OK
                await counted("source", before[0] + 1, destination_principal=identity("payments"), **labels)
                await counted("destination", before[1] + 1, source_principal=identity("billing"), **labels)

    labels = {"request_protocol": "grpc", "response_code": "200", "grpc_response_status": "0"}
    before = requests("source", **labels), requests("destination", **labels)
    with (
        control_plane(ENTRY, STRICT, ONLY_BILLING) as plane,
        member(plane, "payments", service="payments") as payments,
        member(plane, "billing") as billing,
    ):
        asyncio.run(run(payments, billing))
    [(peer, metadata)] = seen
    assert peer == identity("billing")
    assert metadata["x-user"] == "ann"
    assert metadata["x-key-bin"] == b"\x01"


def call(scenario: Any, *documents: str, accounts: tuple[str, ...] = ("payments", "billing")) -> None:
    """Run `scenario(*meshes, plane)` in a mesh with these manifests."""
    with contextlib.ExitStack() as stack:
        plane = stack.enter_context(control_plane(ENTRY, *documents))
        meshes = [
            stack.enter_context(member(plane, account, service="payments" if account == "payments" else ""))
            for account in accounts
        ]
        asyncio.run(scenario(*meshes, plane))


async def failure(awaitable: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaitable
    return caught.value


def test_a_denied_caller_gets_permission_denied_and_the_method_is_not_reached() -> None:
    counter = Counter()

    async def scenario(payments: Any, intruder: Any, plane: Any) -> None:
        async with serving(payments, handlers(Pay=counter.pay)):
            await endpoints(intruder)
            async with mesh_channel("payments:50051", intruder) as channel:
                for path in (PAY, f"/{SERVICE}/Nothing"):  # which methods exist is not told either
                    error = await failure(channel.unary_unary(path)(b"5", timeout=10))
                    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
                    assert error.details() == "RBAC: access denied"
                    assert not error.trailing_metadata()
                await counted("destination", before + 2, **labels)

    labels = {"source_principal": identity("intruder"), "response_code": "200", "grpc_response_status": "7"}
    before = requests("destination", **labels)
    call(scenario, STRICT, ONLY_BILLING, accounts=("payments", "intruder"))
    assert counter.calls == []


def test_an_allowed_caller_of_an_unknown_method_gets_unimplemented() -> None:
    async def scenario(payments: Any, billing: Any, plane: Any) -> None:
        async with serving(payments, handlers(Pay=Counter().pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                error = await failure(channel.unary_unary(f"/{SERVICE}/Nothing")(b"", timeout=10))
                assert error.code() is grpc.StatusCode.UNIMPLEMENTED

    call(scenario, STRICT)


def test_another_identity_than_expected_is_unavailable_and_gets_no_byte() -> None:
    received = bytearray()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            received.extend(await reader.read(1))
        writer.close()

    async def scenario(billing: Any, plane: Any) -> None:
        key, chain = svid_pem(issue(plane, "intruder"))
        context = server_context(key, chain)
        async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context) as server:
            port = server.sockets[0].getsockname()[1]
            configure(plane, ENTRY + DECLARED.format(port=port), STRICT)
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                error = await failure(channel.unary_unary(PAY)(b"secret", timeout=10))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert isinstance(error, ConnectFailureError)
        assert "UF" in error.flag.split(",")
        assert "[authorize]" in error.details()

    call(scenario, STRICT, accounts=("billing",))
    assert received == b""


def test_an_unknown_service_is_unavailable_with_the_reason_and_our_name() -> None:
    async def scenario(billing: Any, plane: Any) -> None:
        async with mesh_channel("nobody:50051", billing) as channel:
            error = await failure(channel.unary_unary(PAY)(b"", timeout=5))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert "nobody:50051 is no service of the mesh" in error.details()
        assert "sidecar~127.0.0.1~billing.default" in error.details()
        assert isinstance(error, LocalReplyError)

    call(scenario, accounts=("billing",))


def test_without_a_control_plane_a_call_is_unavailable_within_its_deadline() -> None:
    async def run() -> None:
        async with mesh_channel("payments:50051", mesh) as channel:
            error = await failure(channel.unary_unary(PAY)(b"", timeout=0.2))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert isinstance(error, NotReadyError)
        assert "no control plane is configured" in error.details()

    mesh = Mesh(Settings())
    try:
        asyncio.run(run())
    finally:
        mesh.close()


def test_the_callers_deadline_ends_the_call_at_both_ends() -> None:
    ended: list[str] = []

    async def stall(_: bytes, context: Any) -> bytes:
        assert 0 < context.time_remaining() <= 0.5
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")
        return b""

    async def scenario(payments: Any, billing: Any, plane: Any) -> None:
        async with serving(payments, handlers(Pay=Counter(stall).pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                error = await failure(channel.unary_unary(PAY)(b"", timeout=0.5))
                assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
                await eventually(lambda: ended, what="the end of the method")

    call(scenario, STRICT)


def test_the_timeout_of_a_route_is_unavailable_as_from_envoy() -> None:
    async def stall(_: bytes, context: Any) -> bytes:
        await asyncio.Event().wait()
        return b""

    async def scenario(payments: Any, billing: Any, plane: Any) -> None:
        async with serving(payments, handlers(Pay=Counter(stall).pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                error = await failure(channel.unary_unary(PAY)(b""))
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert isinstance(error, UpstreamTimeoutError)

    call(scenario, STRICT, ROUTE.format(rest="timeout: 0.2s"))


def test_cancelling_a_call_reaches_the_method() -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def stall(_: bytes, context: Any) -> bytes:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return b""

    async def scenario(payments: Any, billing: Any, plane: Any) -> None:
        async with serving(payments, handlers(Pay=Counter(stall).pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                under_way = channel.unary_unary(PAY)(b"")
                await begun.wait()
                assert under_way.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await under_way
                assert under_way.cancelled()
                assert await under_way.code() is grpc.StatusCode.CANCELLED
                await asyncio.wait_for(ended.wait(), 10)

    call(scenario, STRICT)


def test_an_endpoint_that_refuses_is_passed_over() -> None:
    async def scenario(payments: Any, billing: Any, plane: Any) -> None:
        async with serving(payments, handlers(Pay=counter.pay)):
            configure(plane, ENTRY + DECLARED.format(port=unused_port()), STRICT)
            await endpoints(billing, 2)
            async with mesh_channel("payments:50051", billing) as channel:
                for _ in range(6):
                    assert await channel.unary_unary(PAY)(b"", timeout=10) == b"paid"

    counter = Counter()
    call(scenario, STRICT)
    assert len(counter.calls) == 6


def test_a_status_that_the_routes_policy_names_is_tried_again() -> None:
    async def answer(_: bytes, context: Any) -> bytes:
        if len(counter.calls) < 3:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "not now")
        return b"at last"

    async def scenario(payments: Any, billing: Any, plane: Any) -> None:
        async with serving(payments, handlers(Pay=counter.pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                assert await channel.unary_unary(PAY)(b"", timeout=10) == b"at last"

    counter = Counter(answer)
    call(scenario, STRICT, ROUTE.format(rest="retries: {attempts: 3, retryOn: unavailable}"))
    assert len(counter.calls) == 3


def test_a_status_of_the_server_arrives_as_it_is_and_is_not_repeated() -> None:
    async def answer(_: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-reason", "none left"),))
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such account")
        return b""

    async def scenario(payments: Any, billing: Any, plane: Any) -> None:
        async with serving(payments, handlers(Pay=counter.pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                error = await failure(channel.unary_unary(PAY)(b"", timeout=10))
                assert (error.code(), error.details()) == (grpc.StatusCode.NOT_FOUND, "no such account")
                assert dict(error.trailing_metadata())["x-reason"] == "none left"
                await counted("source", before + 1, **labels)

    labels = {"request_protocol": "grpc", "grpc_response_status": "5"}
    before = requests("source", **labels)
    counter = Counter(answer)
    call(scenario, STRICT)
    assert len(counter.calls) == 1


def test_a_fault_of_the_route_is_answered_without_the_server() -> None:
    async def scenario(payments: Any, billing: Any, plane: Any) -> None:
        async with serving(payments, handlers(Pay=counter.pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                error = await failure(channel.unary_unary(PAY)(b"", timeout=10))
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
                assert error.flag == "FI"

    counter = Counter()
    fault = "fault: {abort: {grpcStatus: RESOURCE_EXHAUSTED, percentage: {value: 100}}}"
    call(scenario, STRICT, ROUTE.format(rest=fault))
    assert counter.calls == []


def test_metadata_decides_about_the_route_and_the_route_changes_it() -> None:
    seen: list[dict[str, Any]] = []

    async def answer(_: bytes, context: Any) -> bytes:
        seen.append(dict(context.invocation_metadata()))
        return b"ok"

    async def scenario(payments: Any, billing: Any, plane: Any) -> None:
        async with serving(payments, handlers(Pay=Counter(answer).pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                pay = channel.unary_unary(PAY)
                answered = pay(b"", timeout=10, metadata=(("x-user", "ann"), ("x-secret", "1")))
                assert await answered == b"ok"
                assert dict(await answered.initial_metadata())["x-from"] == "mesh"
                error = await failure(pay(b"", timeout=10, metadata=(("x-user", "bob"),)))
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                assert error.flag == "NR"

    matched = """match: [{headers: {x-user: {exact: ann}}}]
    headers: {request: {add: {x-added: "yes"}, remove: [x-secret]}, response: {set: {x-from: mesh}}}"""
    call(scenario, STRICT, ROUTE.format(rest=matched))
    [metadata] = seen
    assert metadata["x-added"] == "yes"
    assert "x-secret" not in metadata


def test_a_connection_that_breaks_under_a_call_is_an_error_of_ours_and_the_call_is_not_repeated() -> None:
    async def answer(_: bytes, context: Any) -> bytes:
        found = accepted(context.peer())
        assert found is not None
        found.outer.abort()
        await asyncio.Event().wait()
        return b""

    async def scenario(payments: Any, billing: Any, plane: Any) -> None:
        async with serving(payments, handlers(Pay=counter.pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                error = await failure(channel.unary_unary(PAY)(b"", timeout=10))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert isinstance(error, ConnectionTerminatedError)
        assert "UC" in error.flag.split(",")

    counter = Counter(answer)
    call(scenario, STRICT)
    assert len(counter.calls) == 1


def test_calls_work_on_uvloop() -> None:
    async def scenario(payments: Any, billing: Any) -> None:
        async with serving(payments, handlers(Pay=Counter().pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                pay = channel.unary_unary(PAY)
                assert await asyncio.gather(*(pay(bytes(100_000), timeout=20) for _ in range(20))) == [b"paid"] * 20

    with (
        control_plane(ENTRY, STRICT) as plane,
        member(plane, "payments", service="payments") as payments,
        member(plane, "billing") as billing,
    ):
        uvloop.run(scenario(payments, billing))


def test_a_peer_that_speaks_no_http2_is_a_failure_to_connect() -> None:
    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def scenario(billing: Any, plane: Any) -> None:
        context = server_context(*svid_pem(issue(plane, "payments")))
        async with await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context) as server:
            configure(plane, ENTRY + DECLARED.format(port=server.sockets[0].getsockname()[1]), STRICT)
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                error = await failure(channel.unary_unary(PAY)(b"", timeout=10))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
        assert isinstance(error, ConnectFailureError)
        assert "before HTTP/2 began" in error.details()

    call(scenario, STRICT, accounts=("billing",))
