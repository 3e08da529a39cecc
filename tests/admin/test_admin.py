"""The admin listener: answers, who answers, and what it does not say."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import threading

import pytest

from proxyless.core.request import Address
from proxyless.core.resources import Cluster, ClusterType, LbEndpoint, LoadAssignment, LocalityEndpoints
from proxyless.core.snapshot import Resources, compile_snapshot
from proxyless.errors import SettingsError
from proxyless.runtime.admin import AdminListener
from proxyless.runtime.dump import redact
from proxyless.runtime.workers import Workers, WorkerState
from proxyless.telemetry.access_log import AccessLog
from tests.asgi.helpers import Fixture, World, eventually


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture
def fixture(world):
    return Fixture(world)


@pytest.fixture
def admin(fixture):
    listener = AdminListener(fixture.mesh, "127.0.0.1:0")
    listener.start()
    yield listener
    listener.close()


def ask(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    if address.startswith("unix:"):
        connection = http.client.HTTPConnection("localhost", timeout=5)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(address[5:])
    else:
        connection = http.client.HTTPConnection(address, timeout=5)
    connection.request(method, path, headers=headers)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body, response.getheader("content-type")


def test_ready_follows_the_mesh_and_says_why_not(fixture, admin):
    status, body, _ = ask(admin.address, "/ready")
    assert status == 503
    assert "PROXYLESS_XDS" in body
    fixture.configure("STRICT")
    assert ask(admin.address, "/ready")[:2] == (200, "ready\n")
    fixture.source.withdraw()
    status, body, _ = ask(admin.address, "/ready")
    assert status == 503
    assert "identity" in body
    fixture.source.replace(fixture.world.svid("payments"), [fixture.world.bundle])
    fixture.mesh.drain()
    assert ask(admin.address, "/ready")[:2] == (503, "draining\n")


def test_healthz_answers_whatever_the_mesh_does(admin):
    assert ask(admin.address, "/healthz")[:2] == (200, "ok\n")


def test_metrics_are_the_text_format_of_prometheus(fixture, admin):
    fixture.configure("STRICT")
    status, body, kind = ask(admin.address, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    assert "proxyless_config_generation 1.0" in body


def test_unknown_path_lists_the_endpoints(admin):
    status, body, _ = ask(admin.address, "/quitquitquit")
    assert status == 404
    assert "/config_dump" in body


def test_only_get_and_head(admin):
    assert ask(admin.address, "/ready", "POST")[0] == 501
    assert ask(admin.address, "/healthz", "HEAD")[:2] == (200, "")


def test_a_page_in_a_browser_cannot_read_the_loopback_listener(admin):
    assert ask(admin.address, "/config_dump", host="evil.example:15000")[0] == 403
    assert ask(admin.address, "/healthz", host="localhost:15000")[0] == 200


def test_config_dump_shows_identity_and_settings_but_no_key(fixture, admin):
    fixture.configure("STRICT")
    status, body, _ = ask(admin.address, "/config_dump")
    dumped = json.loads(body)
    assert status == 200
    assert dumped["proxyless"]["identity"]["spiffe_id"] == "spiffe://cluster.local/ns/default/sa/payments"
    assert dumped["proxyless"]["generation"] == 1
    assert [each["@type"].rpartition(".")[2] for each in dumped["configs"]] == [
        "ListenersConfigDump",
        "RoutesConfigDump",
        "ClustersConfigDump",
        "EndpointsConfigDump",
    ]
    key = fixture.source.current.svid.private_key
    assert key.hex() not in body
    assert "PRIVATE" not in body


def test_redaction_reaches_every_depth():
    value = {
        "a": [{"private_key": {"inline_string": "secret"}}],
        "header": {"key": "Authorization", "value": "Bearer secret"},
        "other": {"key": "x-team", "value": "blue"},
    }
    text = json.dumps(redact(value))
    assert "secret" not in text
    assert "blue" in text


def test_clusters_lists_endpoints_with_what_was_learned(fixture, admin):
    endpoints = tuple(LbEndpoint(address=Address("10.0.0.1", port)) for port in (1, 2))
    cluster = Cluster(
        name="outbound|80||a",
        type=ClusterType.STATIC,
        assignment=LoadAssignment(name="a", localities=(LocalityEndpoints(endpoints=endpoints),)),
    )
    fixture.mesh._publish(compile_snapshot(Resources(clusters={cluster.name: cluster}), None, 1))
    body = ask(admin.address, "/clusters")[1]
    assert "outbound|80||a::default_priority::max_connections::1024" in body
    assert "outbound|80||a::10.0.0.1:1::health_flags::healthy" in body
    assert "outbound|80||a::10.0.0.1:2::weight::1" in body


def test_a_unix_socket_is_private_and_replaces_a_stale_one(fixture, tmp_path):
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    listener = AdminListener(fixture.mesh, f"unix:{path}")
    listener.start()
    try:
        assert ask(f"unix:{path}", "/healthz")[0] == 200
        assert path.stat().st_mode & 0o777 == 0o600
    finally:
        listener.close()
    assert list(tmp_path.iterdir()) == []


def test_a_socket_that_a_sibling_is_just_making_is_not_taken_for_a_stale_one(fixture, tmp_path):
    """Between bind and listen a connection is refused, as by a socket whose owner has died."""
    path = tmp_path / "admin.sock"
    code = (
        "import socket, sys; from proxyless.runtime.admin import _lock; _lock(sys.argv[1])\n"
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); print('bound', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sibling:
        assert sibling.stdout is not None
        assert sibling.stdout.readline() == b"bound\n"
        listener = AdminListener(fixture.mesh, f"unix:{path}")
        listener.start()
        try:
            assert listener.address == ""
            assert path.exists()
            sibling.kill()
            sibling.wait()
            eventually(lambda: listener.address)
            assert ask(f"unix:{path}", "/healthz")[0] == 200
        finally:
            listener.close()


@pytest.mark.parametrize("address", ["15021", "localhost", "127.0.0.1:99999", "127.0.0.1:x"])
def test_a_wrong_address_is_named(fixture, address):
    with pytest.raises(SettingsError, match="PROXYLESS_ADMIN"):
        AdminListener(fixture.mesh, address)


def test_the_next_worker_takes_over_when_the_listening_one_ends(world, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    first = AdminListener(Fixture(world).mesh, address)
    second = AdminListener(Fixture(world).mesh, address)
    first.start()
    second.start()
    assert (first.address, second.address) == (address, "")
    first.close()
    eventually(lambda: second.address == address)
    assert ask(address, "/healthz")[0] == 200
    second.close()


def test_an_address_that_a_stranger_holds_is_a_warning_and_a_siblings_is_not(fixture, tmp_path, caplog):
    caplog.set_level("INFO")
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        address = f"127.0.0.1:{stranger.getsockname()[1]}"

        def level(directory: str = "") -> str:
            caplog.clear()
            listener = AdminListener(fixture.mesh, address, directory)
            listener.start()
            said = eventually(
                lambda: [each for each in caplog.records if "Address already in use" in each.getMessage()]
            )
            listener.close()
            return said[0].levelname

        assert level() == "WARNING"
        assert level(str(tmp_path)) == "WARNING"
        with other_worker(tmp_path):
            assert level(str(tmp_path)) == "INFO"


def test_one_worker_answers_ready_for_all(fixture, tmp_path):
    fixture.configure("STRICT")
    listener = AdminListener(fixture.mesh, "127.0.0.1:0", str(tmp_path))
    listener.start()
    try:
        assert ask(listener.address, "/ready")[0] == 200
        with other_worker(tmp_path) as pid:
            status, body, _ = ask(listener.address, "/ready")
            assert (status, body) == (503, f"worker {pid}: no SVID yet\n")
        eventually(lambda: ask(listener.address, "/ready")[0] == 200)
        assert [path.name for path in tmp_path.glob("*.json")] == [f"worker-{os.getpid()}.json"]
    finally:
        listener.close()
    assert list(tmp_path.iterdir()) == []


class other_worker:
    """A process that says it is not ready, and is killed without a chance to clean up."""

    SCRIPT = """
import os, sys
from proxyless.runtime.workers import Workers, WorkerState
from proxyless.telemetry.access_log import AccessLog
workers = Workers(sys.argv[1])
workers.tell(WorkerState(os.getpid(), False, ("no SVID yet",), 0))
print("told", flush=True)
sys.stdin.read()
"""

    def __init__(self, directory) -> None:
        self._directory = directory

    def __enter__(self) -> int:
        self._process = subprocess.Popen(
            [sys.executable, "-c", self.SCRIPT, str(self._directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdout.readline() == b"told\n"
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_process_number_given_away_does_not_count_as_the_worker(tmp_path):
    ours = Workers(str(tmp_path))
    ours.tell(WorkerState(os.getpid(), True, (), 1))
    (tmp_path / f"worker-{os.getppid()}.json").write_text(
        json.dumps({"pid": os.getppid(), "ready": False, "reasons": [], "generation": 0})
    )
    (tmp_path / f"worker-{os.getppid()}.lock").touch()  # that process lives and does not hold the lock
    assert [state.pid for state in ours.living()] == [os.getpid()]
    ours.leave()


def test_silent_connections_are_bounded_and_keep_no_probe_out(fixture, admin):
    before = threading.active_count()
    holders = [socket.create_connection(admin.address.split(":"), timeout=5) for _ in range(40)]
    try:
        assert [holder.recv(1) for holder in holders[:8]] == [b""] * 8, "the oldest made room"
        assert ask(admin.address, "/healthz")[0] == 200
        eventually(lambda: threading.active_count() <= before + 32)
    finally:
        for holder in holders:
            holder.close()
    eventually(lambda: _answers(admin.address))


def _answers(address: str) -> bool:
    try:
        return ask(address, "/healthz")[0] == 200
    except (http.client.HTTPException, OSError):
        return False


def test_vitals_follow_the_parts_of_the_mesh(fixture, admin, tmp_path):
    fixture.configure("STRICT")
    eventually(lambda: fixture.value("proxyless_ready") == 1)
    fixture.source.withdraw()
    eventually(lambda: fixture.value("proxyless_ready") == 0)
    fixture.mesh.telemetry.access_log = AccessLog(str(tmp_path / "missing" / "log"))
    fixture.mesh.telemetry.access_log.write("lost")
    fixture.mesh.telemetry.access_log.flush()
    eventually(lambda: fixture.value("proxyless_access_log_dropped_total") == 1)


def test_probes_at_one_time_do_not_write_the_state_of_a_worker_twice(fixture, tmp_path):
    """Each probe has a thread of its own; the worker's files and the totals of the mesh are for one at a time."""
    admin = AdminListener(fixture.mesh, "127.0.0.1:0", str(tmp_path))
    inside, overlaps = 0, 0

    class Slow(Workers):
        def tell(self, state):
            nonlocal inside, overlaps
            inside += 1
            overlaps += inside > 1
            threading.Event().wait(0.01)
            super().tell(state)
            inside -= 1

    admin._workers = Slow(str(tmp_path))
    threads = [threading.Thread(target=admin.states) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    admin.close()
    assert overlaps == 0


def test_a_worker_whose_files_were_cleaned_away_still_counts(fixture, tmp_path):
    admin = AdminListener(fixture.mesh, "127.0.0.1:0", str(tmp_path))
    admin.start()
    try:
        assert ask(admin.address, "/ready")[0] == 503
        for path in tmp_path.iterdir():
            path.unlink()
        assert ask(admin.address, "/ready")[0] == 503
        eventually(
            lambda: {path.suffix for path in tmp_path.iterdir()} == {".json", ".lock"}, what="files of the worker"
        )
    finally:
        admin.close()


def test_a_directory_of_workers_that_is_not_there_is_said_once_and_keeps_nothing_from_running(fixture, caplog):
    admin = AdminListener(fixture.mesh, "127.0.0.1:0", "/nowhere/at/all")
    admin.start()
    try:
        assert ask(admin.address, "/ready")[0] == 503
        assert ask(admin.address, "/healthz")[0] == 200
        admin.states()
    finally:
        admin.close()
    assert caplog.text.count("/nowhere/at/all") == 1
