"""The client of the control plane against a real gRPC server on a Unix socket or loopback."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest

from proxyless import protos
from proxyless.core.snapshot import Resources, Snapshot
from proxyless.protos import CLUSTER, ENDPOINT, LISTENER, ROUTE
from proxyless.xds import stream as stream_module
from proxyless.xds.client import XdsClient, node_message
from tests.xds.helpers import (
    BAD,
    DECODERS,
    ScriptedServer,
    Stream,
    ads_server,
    assignment,
    cluster,
    eventually,
    listener,
    response,
    route,
)


@dataclass
class NodeFacts:
    namespace: str = "shop"
    service_account: str = "pay"
    workload: str = "payments-v1"
    labels: dict[str, str] = field(default_factory=lambda: {"app": "payments"})
    address: str = "10.1.0.9"
    service: str = "payments.myapp.com"
    port: int = 8080
    node_kind: str = "sidecar"


class Published:
    """Collects what a client publishes."""

    def __init__(self) -> None:
        self.snapshots: list[Snapshot] = []
        self.at: list[float] = []

    def __call__(self, snapshot: Snapshot) -> None:
        self.at.append(time.perf_counter())
        self.snapshots.append(snapshot)

    @property
    def last(self) -> Resources:
        return self.snapshots[-1].resources


Make = Callable[..., XdsClient]


@pytest.fixture
def make() -> Iterator[Make]:
    clients: list[XdsClient] = []

    def build(target: str, publish: Callable[[Snapshot], None], **options: Any) -> XdsClient:
        options.setdefault("decoders", DECODERS)
        client = XdsClient(target, lambda: node_message(NodeFacts()), publish, **options)
        clients.append(client)
        client.start()
        return client

    yield build
    for client in clients:
        client.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ScriptedServer]:
    with ads_server(f"unix:{tmp_path}/xds.sock") as running:
        yield running


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(stream_module, "LONGEST_WAIT", 0.05)


def serve_all(stream: Stream, version: str = "1", *ports: int) -> None:
    """Answer a client's first requests with one listener, route, cluster and load assignment."""
    stream.send(response(CLUSTER, version, cluster("a")), response(LISTENER, version, listener("0.0.0.0_80", "80")))
    stream.send(response(ENDPOINT, version, assignment("a", *(ports or (1,)))), response(ROUTE, version, route("80")))


# ------------------------------------------------------------------------------------------------------------- the node


def test_the_node_has_the_shape_that_istio_reads() -> None:
    node = node_message(NodeFacts())
    assert node.id == "sidecar~10.1.0.9~payments-v1.shop~shop.svc.cluster.local"
    assert node.user_agent_name == "proxyless"
    assert protos.to_dict(node)["metadata"] == {
        "NAMESPACE": "shop",
        "SERVICE_ACCOUNT": "pay",
        "WORKLOAD_NAME": "payments-v1",
        "LABELS": {"app": "payments"},
        "INSTANCE_IPS": "10.1.0.9",
        "PROXYLESS": {"SERVICE": "payments.myapp.com", "PORT": 8080.0},
    }


def test_a_node_that_serves_nothing_or_has_a_host_name_still_has_a_valid_id() -> None:
    node = node_message(NodeFacts(service="", address="localhost", node_kind="router"))
    assert node.id.startswith("router~127.0.0.1~")
    assert "PROXYLESS" not in protos.to_dict(node)["metadata"]


# --------------------------------------------------------------------------------------------------------- publication


def test_a_push_becomes_a_snapshot_and_every_response_is_acknowledged(server: ScriptedServer, make: Make) -> None:
    published = Published()
    client = make(server.target, published)
    stream = server.stream()
    first = stream.request()
    assert first.node.id == node_message(NodeFacts()).id
    assert stream.request().type_url == LISTENER
    serve_all(stream)
    eventually(lambda: published.snapshots)
    assert list(published.last.assignments) == ["a"]
    assert published.snapshots[0].generation == 1
    answers = [stream.request() for _ in range(6)]
    assert {answer.type_url for answer in answers if answer.response_nonce} == {CLUSTER, ENDPOINT, LISTENER, ROUTE}
    assert client.status.stream.connected
    assert "connected to unix:" in str(client.status)
    assert client.stats.accepted == 4
    assert [item.name for item in client.dump()] == ["0.0.0.0_80", "80", "a", "a"]


def test_the_first_snapshot_waits_for_the_whole_and_the_status_says_for_what(
    server: ScriptedServer, make: Make
) -> None:
    published = Published()
    client = make(server.target, published)
    stream = server.stream()
    stream.send(response(CLUSTER, "1", cluster("a")), response(LISTENER, "1", listener("l", "80")))
    eventually(lambda: client.status.waiting == ("RouteConfiguration 80", "ClusterLoadAssignment a"))
    stream.send(response(ROUTE, "1", route("80")))
    eventually(lambda: client.status.waiting == ("ClusterLoadAssignment a",))
    assert not published.snapshots
    assert "waiting for ClusterLoadAssignment a; no configuration yet" in str(client.status)
    stream.send(response(ENDPOINT, "1", assignment("a", 1)))
    eventually(lambda: published.snapshots)
    assert client.status.waiting == ()


def test_an_invalid_resource_is_refused_by_name_and_changes_nothing(server: ScriptedServer, make: Make) -> None:
    published = Published()
    make(server.target, published)
    stream = server.stream()
    serve_all(stream)
    eventually(lambda: published.snapshots)
    for _ in range(8):
        stream.request()
    stream.send(response(ROUTE, "2", route("80", BAD)))
    nack = stream.request()
    assert (nack.version_info, nack.response_nonce) == ("1", "nonce-2")
    assert "'80'" in nack.error_detail.message
    assert "virtual_hosts[0].name: is bad" in nack.error_detail.message
    stream.send(response(ENDPOINT, "3", assignment("a", 7)))
    eventually(lambda: len(published.snapshots) == 2)
    assert published.last.routes["80"] is published.snapshots[0].resources.routes["80"]


def test_a_publisher_or_compiler_that_fails_does_not_stop_the_client(server: ScriptedServer, make: Make) -> None:
    published = Published()
    failures = iter([True, False])

    def publish(snapshot: Snapshot) -> None:
        if next(failures):
            raise RuntimeError("bug")
        published(snapshot)

    client = make(server.target, publish)
    stream = server.stream()
    serve_all(stream)
    eventually(lambda: client.stats.responses == 4)
    stream.send(response(ENDPOINT, "2", assignment("a", 2)))
    eventually(lambda: published.snapshots)
    assert client.status.generation == 1


def test_push_to_visible_is_below_ten_milliseconds(server: ScriptedServer, make: Make) -> None:
    published = Published()
    make(server.target, published)
    stream = server.stream()
    serve_all(stream)
    eventually(lambda: published.snapshots)
    delays = []
    for number in range(2, 42):
        sent = time.perf_counter()
        stream.send(response(ENDPOINT, str(number), assignment("a", number)))
        eventually(lambda number=number: len(published.snapshots) == number)  # type: ignore[misc] # bound here
        delays.append(published.at[-1] - sent)
    assert statistics.quantiles(delays, n=4)[0] < 0.010  # a busy machine may delay some of them


# ---------------------------------------------------------------------------------------------------------- connection


def test_a_stream_that_was_answered_is_opened_again_at_once_with_versions_and_without_nonces(
    server: ScriptedServer, make: Make
) -> None:
    published = Published()
    client = make(server.target, published)
    stream = server.stream()
    serve_all(stream)
    eventually(lambda: published.snapshots)
    began = time.monotonic()
    stream.send(None)
    again = server.stream()
    assert time.monotonic() - began < 0.9  # no back-off, whose first wait is at least 0.8 s
    requests = [again.request() for _ in range(4)]
    assert [request.type_url for request in requests] == [CLUSTER, ENDPOINT, LISTENER, ROUTE]
    assert {request.version_info for request in requests} == {"1"}
    assert not any(request.response_nonce for request in requests)
    assert requests[0].HasField("node")
    assert client.status.generation == 1  # nothing was lost, nothing published again


def test_without_a_control_plane_the_client_waits_and_says_why(tmp_path: Path, make: Make, quick: None) -> None:
    published = Published()
    target = f"unix:{tmp_path}/xds.sock"
    client = make(target, published)
    eventually(lambda: client.status.stream.failures > 2)
    assert "UNAVAILABLE" in str(client.status)
    assert "no configuration yet" in str(client.status)
    with ads_server(target) as server:
        serve_all(server.stream())
        eventually(lambda: published.snapshots)
        assert client.status.stream.error == ""


def test_an_outage_keeps_the_last_good_snapshot_and_ends_when_the_server_is_back(
    tmp_path: Path, make: Make, quick: None
) -> None:
    published = Published()
    target = f"unix:{tmp_path}/xds.sock"
    with ads_server(target) as server:
        client = make(target, published)
        serve_all(server.stream())
        eventually(lambda: published.snapshots)
    eventually(lambda: client.status.stream.failures > 1)
    assert len(published.snapshots) == 1
    assert "stays in use" in str(client.status)
    with ads_server(target) as server:
        serve_all(server.stream(), "2", 5)
        eventually(lambda: len(published.snapshots) == 2)


def test_a_server_that_answers_and_hangs_up_is_not_a_tight_loop(server: ScriptedServer, make: Make) -> None:
    client = make(server.target, Published())
    for _ in range(2):
        stream = server.stream()
        stream.send(response(CLUSTER, "1"), None)
    eventually(lambda: client.status.stream.failures == 1)


def test_a_refused_stream_shows_the_servers_reason(server: ScriptedServer, make: Make) -> None:
    client = make(server.target, Published())
    server.stream().send(grpc.StatusCode.PERMISSION_DENIED)
    eventually(lambda: "PERMISSION_DENIED: scripted" in str(client.status))


@pytest.mark.parametrize("rubbish", [b"\xff\xff\xff\xff", b"\x0a\xff"])
def test_rubbish_ends_the_stream_and_not_the_client(
    server: ScriptedServer, make: Make, quick: None, rubbish: bytes
) -> None:
    published = Published()
    make(server.target, published)
    server.stream().send(rubbish)
    serve_all(server.stream())
    eventually(lambda: published.snapshots)


def test_a_message_beyond_the_limit_ends_the_stream(
    server: ScriptedServer, make: Make, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = tuple(
        (key, 1000 if key == "grpc.max_receive_message_length" else value)
        for key, value in stream_module._CHANNEL_OPTIONS
    )
    monkeypatch.setattr(stream_module, "_CHANNEL_OPTIONS", options)
    client = make(server.target, Published())
    server.stream().send(response(CLUSTER, "1", cluster("x" * 5000)))
    eventually(lambda: "RESOURCE_EXHAUSTED" in str(client.status))


def test_what_is_never_sent_stops_blocking_after_its_time(
    server: ScriptedServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxyless.xds.session.DOES_NOT_EXIST_AFTER", 0.1)
    published = Published()
    make(server.target, published)
    stream = server.stream()
    stream.send(response(CLUSTER, "1", cluster("a")), response(LISTENER, "1"))
    eventually(lambda: published.snapshots)
    assert list(published.last.clusters) == ["a"]
    assert not published.last.assignments


def test_reconnect_introduces_the_node_anew(server: ScriptedServer) -> None:
    facts = NodeFacts(port=0)
    published = Published()
    client = XdsClient(server.target, lambda: node_message(facts), published, decoders=DECODERS)
    client.start()
    try:
        stream = server.stream()
        serve_all(stream)
        eventually(lambda: published.snapshots)
        facts.port = 8123
        client.reconnect()
        node = server.stream().request().node
        assert node.metadata.fields["PROXYLESS"].struct_value.fields["PORT"].number_value == 8123
    finally:
        client.close()


def test_reconnect_ends_a_wait(tmp_path: Path, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "FIRST_WAIT", 60.0)
    target = f"unix:{tmp_path}/xds.sock"
    client = make(target, Published(), rng=lambda: 0.5)
    eventually(lambda: client.status.stream.failures)
    with ads_server(target) as server:
        client.reconnect()
        server.stream()


# ------------------------------------------------------------------------------------------------------------------ TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """(key, certificate) for localhost."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=localhost"
    files = ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(
        [*command.split(), "-addext", "subjectAltName=DNS:localhost", *files], check=True, capture_output=True
    )
    return (folder / "key.pem").read_bytes(), (folder / "cert.pem").read_bytes()


def test_credentials_are_asked_for_on_every_connection(
    make: Make, quick: None, certificate: tuple[bytes, bytes]
) -> None:
    from proxyless.errors import NoIdentityError
    from proxyless.xds.stream import ChannelSecurity

    asked = 0

    def credentials() -> ChannelSecurity:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise NoIdentityError("no SVID yet")
        return ChannelSecurity(
            grpc.ssl_channel_credentials(certificate[1]), (("grpc.ssl_target_name_override", "localhost"),)
        )

    published = Published()
    server_credentials = grpc.ssl_server_credentials([certificate])
    with ads_server("127.0.0.1:0", server_credentials) as server:
        make(server.target, published, credentials=credentials)
        stream = server.stream()
        serve_all(stream)
        eventually(lambda: published.snapshots)
        assert asked == 2
        stream.send(None)
        server.stream()
        assert asked == 3


# ----------------------------------------------------------------------------------------------------------- life cycle


def test_nothing_starts_in_the_constructor(tmp_path: Path) -> None:
    before = threading.active_count()
    client = XdsClient(f"unix:{tmp_path}/none.sock", lambda: None, Published(), decoders=DECODERS)
    assert threading.active_count() == before
    assert client.dump() == []
    assert client.unsupported() == {}
    client.close()


def test_close_is_prompt_in_every_state(server: ScriptedServer, make: Make, tmp_path: Path) -> None:
    waiting = make(f"unix:{tmp_path}/none.sock", Published())
    eventually(lambda: waiting.status.stream.failures)
    open_ = make(server.target, Published())
    stream = server.stream()
    serve_all(stream)
    eventually(lambda: open_.status.generation)
    for client in (waiting, open_):
        began = time.monotonic()
        client.close()
        client.close()
        assert time.monotonic() - began < 0.5
    assert stream.ended.wait(2)
    assert not [thread for thread in threading.enumerate() if thread.name == "proxyless-xds"]


def test_close_from_the_publisher_does_not_wait_for_itself(server: ScriptedServer, make: Make) -> None:
    closed = threading.Event()

    def publish(snapshot: Snapshot) -> None:
        client.close()
        closed.set()

    client = make(server.target, publish)
    serve_all(server.stream())
    assert closed.wait(5)


FORKING = """
    import json, os, sys, time, warnings
    from proxyless.xds.client import XdsClient, node_message
    from tests.xds.helpers import DECODERS
    from tests.xds.test_client import NodeFacts

    got = []
    client = XdsClient(sys.argv[1], lambda: node_message(NodeFacts()), got.append, decoders=DECODERS)
    client.start()
    def wait():
        end = time.monotonic() + 8
        while not got and time.monotonic() < end:
            time.sleep(0.005)
        return len(got)
    parent_first = wait()
    began = time.monotonic()
    pid = os.fork()
    took = time.monotonic() - began
    if pid == 0:
        got.clear()
        before = client.status.generation
        client.start()
        ok = wait()
        print(json.dumps({"child": ok, "status": client.status.stream.connected}), flush=True)
        client.close()
        os._exit(0)
    os.waitpid(pid, 0)
    print(json.dumps({"parent": parent_first, "took": took, "connected": client.status.stream.connected}), flush=True)
    client.close()
"""


def test_a_forked_child_opens_its_own_stream_and_the_parents_goes_on(server: ScriptedServer) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(FORKING), server.target],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "GRPC_VERBOSITY": "NONE"},
    )
    try:
        first = server.stream(15)
        serve_all(first)
        second = server.stream(15)
        assert second.request().HasField("node")
        serve_all(second)
        lines = [json.loads(line) for line in process.communicate(timeout=30)[0].splitlines()]
    finally:
        process.kill()
        process.wait()
    assert lines[0] == {"child": 1, "status": True}
    assert lines[1]["parent"] == 1
    assert lines[1]["connected"]


# ------------------------------------------------------------------------------------------------------------- pressure


def test_a_server_that_reads_nothing_and_never_stops_sending_costs_bounded_memory(
    tmp_path: Path, make: Make, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream_module, "MAX_UNSENT", 8)
    published = Published()
    target = f"unix:{tmp_path}/xds.sock"
    names = [f"{number:04}-" + "n" * 4000 for number in range(200)]

    def flood(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        yield response(CLUSTER, "1", *map(cluster, names)).SerializeToString()
        number = 1
        while context.is_active():
            number += 1
            yield response(ENDPOINT, str(number), assignment(names[0], number % 60000 + 1)).SerializeToString()

    from concurrent.futures import ThreadPoolExecutor

    class Handlers(grpc.GenericRpcHandler):  # type: ignore[misc] # grpc ships no types
        def service(self, details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(flood)

    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((Handlers(),))
    server.add_insecure_port(target)
    server.start()
    try:
        client = make(target, published)
        eventually(lambda: "unread" in client.status.stream.error, 20)
    finally:
        server.stop(None).wait(5)


def test_a_server_that_accepts_and_says_nothing_is_waited_for(tmp_path: Path, make: Make) -> None:
    path = f"{tmp_path}/xds.sock"
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(path)
        silent.listen()
        client = make(f"unix:{path}", Published())
        connection, _ = silent.accept()
        with connection:
            assert not client.status.stream.connected
            began = time.monotonic()
            client.close()
            assert time.monotonic() - began < 1


def test_ending_the_process_does_not_hang_on_an_open_stream(server: ScriptedServer) -> None:
    code = """
        import sys, time
        from proxyless.xds.client import XdsClient, node_message
        from tests.xds.helpers import DECODERS
        from tests.xds.test_client import NodeFacts
        got = []
        client = XdsClient(sys.argv[1], lambda: node_message(NodeFacts()), got.append, decoders=DECODERS)
        client.start()
        while not got:
            time.sleep(0.005)
        print("ready", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), server.target],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    try:
        serve_all(server.stream(15))
        out, err = process.communicate(timeout=10)
    finally:
        process.send_signal(signal.SIGKILL) if process.poll() is None else None
        process.wait()
    assert (out.strip(), process.returncode) == ("ready", 0)
    assert "Traceback" not in err
