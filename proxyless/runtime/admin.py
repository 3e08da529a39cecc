"""The admin listener: what kubelets, Prometheus and people ask, on an address of its own beside the mesh port.

    GET /ready        200 when configuration, identity and the application are in place, else 503 with the reasons
    GET /healthz      200 while the process answers
    GET /metrics      Prometheus text; of all workers when they share their numbers
    GET /config_dump  the configuration in use, as JSON; no keys, no tokens
    GET /clusters     endpoints and what was learned of them, in Envoy's text form

Plain HTTP without authentication, therefore on loopback or a Unix socket (0600) unless told otherwise. Of several workers one
listens and answers for all; when it ends, another takes its place. It works with blocking sockets in threads of its own, so a
saturated event loop still answers its probes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from proxyless.runtime import dump
from proxyless.runtime.inbound import MeshLike
from proxyless.runtime.vitals import Vitals
from proxyless.runtime.workers import Workers, WorkerState
from proxyless.settings import admin_address
from proxyless.telemetry import exposition

__all__ = ["AdminListener"]

log = logging.getLogger("proxyless.admin")

POLL = 0.25  # seconds between two looks at our own state, and between attempts to take over the address
PATIENT = 4  # looks without success before it is said that the address cannot be used
MAX_CONNECTIONS = 32
REQUEST_TIMEOUT = 10.0
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class AdminListener:
    """Serves the admin endpoints of a mesh from `start` to `close`.

    Args:
        mesh: whose state is shown.
        address: ``host:port`` or ``unix:/path``. Port 0: any free one, see `address`.
        workers_dir: directory shared with the other workers; empty: we are alone.

    Raises:
        SettingsError: the address cannot be one.
    """

    def __init__(self, mesh: MeshLike, address: str, workers_dir: str = "") -> None:
        self._mesh = mesh
        self._target = admin_address(address)
        self._workers = Workers(workers_dir) if workers_dir else None
        self._vitals = Vitals(mesh)
        self._telling = threading.Lock()  # workers and vitals are for one thread; every probe has one of its own
        self._server: _Server | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._failures = 0
        self._told_who_counts = False
        self._trouble = ""

    @property
    def address(self) -> str:
        """Where we listen; empty while another worker does."""
        server = self._server
        if server is None:
            return ""
        if isinstance(self._target, str):
            return f"unix:{self._target}"
        return "{}:{}".format(*server.server_address[:2])

    def start(self) -> None:
        """Listen if the address is free, and keep trying if it is not. Returns at once."""
        self._look()
        self._thread = threading.Thread(target=self._run, name="proxyless-admin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; another worker takes over."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        if self._workers is not None:
            self._workers.leave()

    def states(self) -> list[WorkerState]:
        """Of all workers, or of us alone."""
        own = self._tell()
        living = [] if self._workers is None else self._workers.living()
        # Files in a temporary directory may be cleaned away; we live all the same, and may be the one that is not ready.
        return living if any(state.pid == own.pid for state in living) else [*living, own]

    def _run(self) -> None:
        while not self._stop.wait(POLL):
            self._look()

    def _look(self) -> None:
        """Never raises: an unusable directory must not end the only listener that can say so."""
        for step in (self._tell, self._listen, self._say_who_counts):
            try:
                step()
            except Exception as error:
                self._complain(f"{type(error).__name__}: {error}", error)

    def _state(self) -> WorkerState:
        mesh = self._mesh
        snapshot = mesh.snapshot
        reasons = tuple(mesh.not_ready_reasons())
        return WorkerState(os.getpid(), mesh.ready, reasons, 0 if snapshot is None else snapshot.generation)

    def _tell(self) -> WorkerState:
        with self._telling:
            state = self._state()
            self._vitals.refresh()
            if self._workers is not None:
                try:
                    self._workers.tell(state)
                except OSError as error:
                    self._complain(f"the workers cannot be told about this one: {error}")
        return state

    def _complain(self, text: str, error: Exception | None = None) -> None:
        """Once, and again when it is something else: what is wrong is looked at four times a second."""
        if text != self._trouble:
            self._trouble = text
            log.error("%s", text, exc_info=error)

    def _listen(self) -> None:
        if self._server is not None:
            return
        try:
            server = _Server(self, self._target)
        except OSError as error:
            self._failures += 1
            if self._failures == PATIENT:
                # Another worker of ours is the usual reason; by now it has made itself known.
                alone = self._workers is None or len(self._workers.living()) < 2
                level = logging.WARNING if alone else logging.INFO
                log.log(level, "admin address %s: %s; trying again until it can be used", self._target, error.strerror)
            return
        self._server, self._failures = server, 0
        threading.Thread(target=server.serve_forever, name="proxyless-admin-server", daemon=True).start()
        log.info("admin listener on http://%s: /ready /healthz /metrics /config_dump /clusters", self.address)

    def _say_who_counts(self) -> None:
        """Once, by the worker that listens: whether the numbers are everybody's. The others may come later than we."""
        if self._workers is None or self._server is None or self._told_who_counts or exposition.shared_directory():
            return
        if len(self._workers.living()) > 1:
            self._told_who_counts = True
            log.warning("PROMETHEUS_MULTIPROC_DIR is not set: /metrics shows this worker's numbers only")


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One listening socket; a thread for each connection, bounded."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, admin: AdminListener, target: str | tuple[str, int]) -> None:
        self.admin = admin
        self._open: dict[Any, None] = {}  # connections, the oldest first
        self._opening = threading.Lock()
        self._unix, self._lock = "", -1
        if isinstance(target, str):
            self.address_family = socket.AF_UNIX
            self.allow_reuse_address = False
            self._lock = _lock(target)
            try:
                _remove_stale(target)
            except BaseException:
                os.close(self._lock)
                raise
        elif ":" in target[0]:
            self.address_family = socket.AF_INET6
        super().__init__(target, _Handler)  # type: ignore[arg-type]  # a path is an address of AF_UNIX
        if isinstance(target, str):
            self._unix = target
            Path(target).chmod(0o600)

    def server_close(self) -> None:
        super().server_close()
        if self._unix:
            Path(self._unix).unlink(missing_ok=True)
        if self._lock >= 0:
            Path(f"{self.server_address}.lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = -1

    def process_request(self, request: Any, client_address: Any) -> None:
        """Beyond the bound the oldest connection makes room: probes are answered at once, so it is one that says nothing."""
        with self._opening:
            if len(self._open) >= MAX_CONNECTIONS:
                oldest = next(iter(self._open))
                del self._open[oldest]
                with contextlib.suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread ends
            self._open[request] = None
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._opening:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("admin connection ended", exc_info=True)

    @property
    def loopback(self) -> bool:
        """Only this host can reach us, so a Host that names another is a page in somebody's browser (DNS rebinding)."""
        return self.address_family != socket.AF_UNIX and self.server_address[0] in _LOOPBACK


def _lock(path: str) -> int:
    """The right to remove and to make the socket at `path`, held as long as it is ours: between bind and listen a socket looks
    as stale as one whose owner has died.

    Raises:
        OSError: another process has it.
    """
    name = f"{path}.lock"
    lock = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(lock).st_ino != Path(name).stat().st_ino:  # its owner was just leaving
            raise FileNotFoundError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    except OSError as error:
        os.close(lock)
        raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from error
    return lock


def _remove_stale(path: str) -> None:
    """Remove a socket that nobody listens on any more."""
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            Path(path).unlink(missing_ok=True)
        except FileNotFoundError:
            return


class _Handler(BaseHTTPRequestHandler):
    """HTTP/1.0: one request for each connection."""

    server: _Server
    timeout = REQUEST_TIMEOUT
    server_version = "proxyless"
    sys_version = ""

    def do_GET(self) -> None:
        if self.server.loopback and not self._names_loopback():
            self._answer(403, "this listener is for this host; ask it by 127.0.0.1 or localhost\n")
            return
        endpoint = _ENDPOINTS.get(urlsplit(self.path).path)
        if endpoint is None:
            self._answer(404, "".join(f"{path}\n" for path in _ENDPOINTS))
            return
        try:
            status, body, kind = endpoint(self.server.admin)
        except Exception:  # a fault in a dump must not look like a dead process
            log.exception("admin %s", ascii(self.path))
            status, body, kind = 500, "internal error, see the log\n", _TEXT
        self._answer(status, body, kind)

    do_HEAD = do_GET

    def _names_loopback(self) -> bool:
        host = self.headers.get("host", "localhost")
        name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
        return name.lower() in _LOOPBACK

    def _answer(self, status: int, body: str | bytes, kind: str = "text/plain; charset=utf-8") -> None:
        data = body.encode() if isinstance(body, str) else body
        self.send_response(status)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(data)))
        self.send_header("cache-control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def address_string(self) -> str:
        return "admin"

    def log_message(self, format: str, *args: object) -> None:
        log.debug(format, *args)


Answer = tuple[int, str | bytes, str]
_TEXT = "text/plain; charset=utf-8"


def _ready(admin: AdminListener) -> Answer:
    states = admin.states()
    waiting = [state for state in states if not state.ready]
    if not waiting:
        return 200, "ready\n", _TEXT
    alone = len(states) == 1
    lines = [
        f"{'' if alone else f'worker {state.pid}: '}{reason}\n"
        for state in waiting
        for reason in state.reasons or ("starting",)
    ]
    return 503, "".join(lines), _TEXT


def _healthz(admin: AdminListener) -> Answer:
    return 200, "ok\n", _TEXT


def _metrics(admin: AdminListener) -> Answer:
    telemetry = admin._mesh.telemetry
    telemetry.settle()  # with several workers the registry is not read, and would not do it
    body, kind = exposition.render(telemetry.metrics.registry)
    return 200, body, kind


def _config_dump(admin: AdminListener) -> Answer:
    return 200, json.dumps(dump.config(admin._mesh), indent=1) + "\n", "application/json"


def _clusters(admin: AdminListener) -> Answer:
    return 200, dump.clusters(admin._mesh), _TEXT


_ENDPOINTS = {
    "/ready": _ready,
    "/healthz": _healthz,
    "/metrics": _metrics,
    "/config_dump": _config_dump,
    "/clusters": _clusters,
}
