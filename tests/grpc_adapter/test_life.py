"""Connections begin, are renewed and end; nothing is left behind, and what does not exist says so."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from proxyless.errors import ConfigError, ConnectFailureError, UnsupportedError
from proxyless.grpc import mesh_channel, mesh_server
from proxyless.grpc.failure import rpc_error
from proxyless.grpc.wire import metadata_of, parse_target, to_wire
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Disabled, Settings

from .helpers import (
    ENTRY,
    ONLY_BILLING,
    PAY,
    STRICT,
    Counter,
    configure,
    control_plane,
    endpoints,
    eventually,
    handlers,
    member,
    serving,
)


@contextlib.contextmanager
def two(*documents: str, **options: Any) -> Iterator[tuple[Any, Mesh, Mesh]]:
    with (
        control_plane(ENTRY, *documents, **options) as plane,
        member(plane, "payments", service="payments") as payments,
        member(plane, "billing") as billing,
    ):
        yield plane, payments, billing


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_rotating_under_load_loses_no_call_and_retires_the_connections() -> None:
    async def run(plane: Any, payments: Mesh, billing: Mesh) -> None:
        async with serving(payments, handlers(Pay=counter.pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                pay = channel.unary_unary(PAY)
                await pay(b"", timeout=10)
                [engine] = channel._engines.values()
                first = set(engine._all)
                done = asyncio.Event()

                async def load() -> None:
                    while not done.is_set():
                        await pay(b"", timeout=10)

                tasks = [asyncio.create_task(load()) for _ in range(4)]
                for _ in range(3):
                    before = billing.contexts.generation
                    await asyncio.to_thread(plane.rotate)
                    await eventually(lambda before=before: billing.contexts.generation > before, what="the new SVID")
                    calls = len(counter.calls)
                    await eventually(lambda calls=calls: len(counter.calls) > calls + 20, what="calls after it")
                done.set()
                await asyncio.gather(*tasks)
                assert first.isdisjoint(engine._all)
                await eventually(lambda: len(engine._all) == 1, what="the end of the old connections")

    counter = Counter()
    with two(STRICT) as (plane, payments, billing):
        asyncio.run(run(plane, payments, billing))


def test_a_connection_that_breaks_is_replaced_and_none_is_left() -> None:
    async def run(payments: Mesh, billing: Mesh) -> None:
        async with serving(payments, handlers(Pay=Counter().pay)):
            await endpoints(billing)
            for _ in range(2):  # what is made once for a process is there after the first round
                start = descriptors()
                channel = mesh_channel("payments:50051", billing)
                pay = channel.unary_unary(PAY)
                for _ in range(5):
                    assert await pay(b"", timeout=10) == b"paid"
                    [engine] = channel._engines.values()
                    [connection] = engine._all
                    connection.outer.abort()
                    await eventually(lambda engine=engine: not engine._all, what="the end of the connection")
                await pay(b"", timeout=10)
                await channel.close()
                assert not engine._all
                with pytest.raises(grpc.aio.UsageError):
                    pay(b"")
                await eventually(lambda start=start: descriptors() <= start, what="closed descriptors")
            state = billing.learned.cluster("outbound|50051||payments.default.svc.cluster.local")
            assert (state.connections, state.pending, state.requests) == (0, 0, 0)

    with two(STRICT) as (_, payments, billing):
        asyncio.run(run(payments, billing))


def test_a_server_that_stops_leaves_neither_files_nor_descriptors_and_clients_go_elsewhere() -> None:
    async def run(payments: Mesh, billing: Mesh) -> None:
        async with mesh_channel("payments:50051", billing) as channel:
            pay = channel.unary_unary(PAY)
            server = mesh_server(payments, handlers=[handlers(Pay=Counter().pay)])
            directory = server._front._directory
            assert directory.stat().st_mode & 0o777 == 0o700
            server.add_insecure_port("127.0.0.1:0")
            await server.start()
            await endpoints(billing)
            assert await pay(b"", timeout=10) == b"paid"
            assert [path.name for path in directory.iterdir()] == ["grpc.sock"]
            await server.stop(0.5)
            await server.stop(None)
            assert not directory.exists()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await pay(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    with two(STRICT) as (_, payments, billing):
        asyncio.run(run(payments, billing))


def test_a_channel_that_is_not_closed_ends_with_its_event_loop() -> None:
    async def run(payments: Mesh, billing: Mesh, channel: Any) -> None:
        async with serving(payments, handlers(Pay=Counter().pay)):
            await endpoints(billing)
            assert await channel.unary_unary(PAY)(b"", timeout=10) == b"paid"
            engines.extend(channel._engines.values())

    engines: list[Any] = []
    with two(STRICT) as (_, payments, billing):
        channel = mesh_channel("payments:50051", billing)
        asyncio.run(run(payments, billing, channel))
        assert engines[0].closed
        assert not engines[0]._all


def test_a_new_policy_holds_for_connections_that_exist() -> None:
    async def run(plane: Any, payments: Mesh, billing: Mesh) -> None:
        async with serving(payments, handlers(Pay=Counter().pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                pay = channel.unary_unary(PAY)
                assert await pay(b"", timeout=10) == b"paid"
                configure(plane, ENTRY, STRICT, ONLY_BILLING.replace("sa/billing", "sa/api"))
                async with asyncio.timeout(15):
                    while True:
                        call = pay(b"", timeout=10)
                        with contextlib.suppress(grpc.aio.AioRpcError):
                            await call
                        if await call.code() is grpc.StatusCode.PERMISSION_DENIED:
                            break
                [engine] = channel._engines.values()
                assert next(iter(engine._all)).uses > 1

    with two(STRICT) as (plane, payments, billing):
        asyncio.run(run(plane, payments, billing))


@pytest.mark.parametrize("action", ["ALLOW", "DENY"])
def test_a_policy_that_asks_for_the_host_denies_what_it_cannot_judge(
    action: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = f"""
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: by-host}}
spec:
  action: {action}
  rules:
  - to: [{{operation: {{hosts: ["payments:50051"]}}}}]
"""

    async def run(payments: Mesh, billing: Mesh) -> None:
        async with serving(payments, handlers(Pay=counter.pay)):
            await endpoints(billing)
            async with mesh_channel("payments:50051", billing) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(PAY)(b"", timeout=10)
                assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED

    counter = Counter()
    with two(STRICT, policy) as (_, payments, billing):
        asyncio.run(run(payments, billing))
    assert counter.calls == []
    assert "which grpc.aio does not tell a server" in caplog.text


def test_who_comes_by_the_hop_and_not_by_the_port_is_refused() -> None:
    async def run(payments: Mesh) -> None:
        server = mesh_server(payments, handlers=[handlers(Pay=counter.pay)])
        server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(server._front.backend) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(PAY)(b"", timeout=10)
            assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED
        finally:
            await server.stop(0)

    counter = Counter()
    with two() as (_, payments, _):
        asyncio.run(run(payments))
    assert counter.calls == []


def test_before_the_first_configuration_calls_are_refused_as_unavailable() -> None:
    async def run() -> None:
        server = mesh_server(mesh, handlers=[handlers(Pay=counter.pay)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(PAY)(b"", timeout=10)
            assert (caught.value.code(), caught.value.details()) == (
                grpc.StatusCode.UNAVAILABLE,
                "service is not ready",
            )
        finally:
            await server.stop(0)

    counter = Counter()
    mesh = Mesh(Settings())
    try:
        asyncio.run(run())
    finally:
        mesh.close()
    assert counter.calls == []


def test_the_kill_switch_gives_an_ordinary_channel() -> None:
    async def run() -> None:
        server = grpc.aio.server(handlers=[handlers(Pay=Counter().pay)])
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with mesh_channel(f"127.0.0.1:{port}", mesh) as channel:
                call = channel.unary_unary(PAY)(b"", timeout=10)
                assert await call == b"paid"
                assert await call.code() is grpc.StatusCode.OK
        finally:
            await server.stop(0)

    mesh = Mesh(Settings(disabled=Disabled.OUTBOUND))
    try:
        asyncio.run(run())
    finally:
        mesh.close()


# ------------------------------------------------------------------------------------------------------------- the limits


def test_a_stub_may_have_streaming_methods_but_calling_one_names_what_is_missing() -> None:
    channel = mesh_channel("payments:50051", Mesh(Settings()))
    for make in (channel.unary_stream, channel.stream_unary, channel.stream_stream):
        method = make(PAY, None, None, _registered_method=True)
        with pytest.raises(UnsupportedError, match=r"/shop\.Payments/Pay: .*streaming calls do not exist"):
            method(b"")
    unary = channel.unary_unary(PAY, None, None, _registered_method=True)
    with pytest.raises(UnsupportedError, match="wait_for_ready"):
        unary(b"", wait_for_ready=True)
    with pytest.raises(UnsupportedError, match="call credentials"):
        unary(b"", credentials=grpc.access_token_call_credentials("t"))
    with pytest.raises(ValueError, match="metadata was invalid: 'X-Upper'"):
        unary(b"", metadata=(("X-Upper", "1"),))


@pytest.mark.parametrize(
    "target", ["payments", "payments:", "payments:x", "dns:///payments:50051", "a:b:1", "payments:0"]
)
def test_a_target_that_is_no_service_and_port_is_refused_with_a_hint(target: str) -> None:
    with pytest.raises(ConfigError, match="write payments:50051"):
        mesh_channel(target)


def test_an_ipv6_target_keeps_its_address() -> None:
    assert parse_target("[::1]:50051") == ("::1", 50051)


def test_ports_with_other_credentials_or_addresses_are_refused() -> None:
    async def run() -> None:
        server = mesh_server(mesh)
        with pytest.raises(ConfigError, match="its own certificates"):
            server.add_secure_port("127.0.0.1:0", None)
        with pytest.raises(ConfigError, match=r"write 0\.0\.0\.0:50051"):
            server.add_insecure_port("unix:/tmp/x.sock")
        await server.stop(None)

    mesh = Mesh(Settings())
    asyncio.run(run())


def test_an_error_survives_being_pickled() -> None:
    error = rpc_error(grpc.StatusCode.UNAVAILABLE, ConnectFailureError("refused", cluster="c", attempts=2))
    again = pickle.loads(pickle.dumps(error))
    assert isinstance(again, ConnectFailureError)
    assert isinstance(again, grpc.aio.AioRpcError)
    assert (again.code(), again.details(), again.cluster, again.attempts) == (error.code(), "refused", "c", 2)


def test_metadata_survives_the_way_to_the_wire_and_back() -> None:
    metadata = (("x-text", "a b"), ("x-raw-bin", b"\x00\x01\xff"), ("x-empty-bin", b""))
    assert metadata_of(to_wire(metadata)) == metadata


def test_headers_that_cannot_be_metadata_are_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert metadata_of(
        [(b"x-a", b"\xe9"), (b"bad name", b"1"), (b"x-bad-bin", b"%"), (b"TE", b"x"), (b"x-b", b"2")]
    ) == (("x-b", "2"),)
    assert len([record for record in caplog.records if "left out" in record.message]) == 3


# -------------------------------------------------------------------------------------------------------------- processes


def python(script: str, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *arguments], capture_output=True, text=True, timeout=50
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_proxyless_does_not_import_the_adapter_and_without_grpcio_it_says_so() -> None:
    python("import sys, proxyless; assert 'proxyless.grpc' not in sys.modules and 'grpc' not in sys.modules")
    out = python(
        """
        import sys
        sys.modules["grpc"] = None
        try:
            import proxyless.grpc
        except ImportError as error:
            print(error.name)
        """
    )
    assert out.strip() == "grpc"


def test_a_channel_that_was_made_before_a_fork_works_in_the_child_and_in_the_parent() -> None:
    with two(STRICT) as (plane, payments, _):
        folder = plane.workload_directory("default", "billing")
        script = """
        import asyncio, os, sys
        from proxyless.grpc import mesh_channel
        from proxyless.runtime.mesh import Mesh
        from proxyless.settings import Settings
        mesh = Mesh(Settings(xds=f"unix:{sys.argv[1]}/xds.sock", spiffe_socket=f"unix:{sys.argv[1]}/workload-api.sock",
            service_account="billing"))
        channel = mesh_channel("payments:50051", mesh)
        pay = channel.unary_unary("/shop.Payments/Pay")
        async def call():
            return await pay(b"", timeout=15)
        child = os.fork()  # before the first call: grpc.aio itself does not survive a fork
        if not child:
            print(asyncio.run(call()), flush=True)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status == 0, status
        print(asyncio.run(call()), flush=True)
        mesh.close()
        """

        async def run() -> str:
            async with serving(payments, handlers(Pay=Counter().pay)):
                return await asyncio.to_thread(python, script, str(folder))

        assert asyncio.run(run()).split() == ["b'paid'", "b'paid'"]
