"""gunicorn with the mesh's TLS: `gunicorn -c python:proxyless.gunicorn module:app`, workers sync and gthread.

A configuration module: gunicorn takes the names it knows. To add settings of your own, write in your file

    from proxyless.gunicorn import *

The certificate lives in memory and rotates: `certfile` only switches gunicorn's TLS on, each connection gets the context of its
moment from `ssl_context`. Plain text on the same port is recognised by its first byte. The mesh starts in each worker, never in
the master, so `--preload` is safe. Looking at the first bytes blocks the thread of a worker until the caller sends them: gthread
bears that, a sync worker waits (at most `PEEK_TIMEOUT`).
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import shutil
import socket
import ssl
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from proxyless.runtime.accept import RefusedConnection, accept_blocking, address_of, connection_of, report
from proxyless.runtime.drain import LOOK_EVERY, drain_on_sigterm
from proxyless.runtime.inbound import Connection, MeshLike, gate_of, serving_mesh
from proxyless.runtime.reloads import Reloads

__all__ = [
    "certfile",
    "child_exit",
    "do_handshake_on_connect",
    "on_reload",
    "post_worker_init",
    "pre_request",
    "ssl_context",
    "when_ready",
    "worker_exit",
]

log = logging.getLogger("proxyless.gunicorn")

PEEK_TIMEOUT = 2.0  # seconds for first bytes and handshake together; the only worker thread of `sync` waits that long

certfile = __file__  # any file that exists: it switches TLS on and is never read
do_handshake_on_connect = True


class _MeshContext(ssl.SSLContext):
    """Delegates to the mesh's context of the moment, connection by connection."""

    def wrap_socket(self, sock: socket.socket, *args: Any, **kwargs: Any) -> ssl.SSLSocket:
        mesh = serving_mesh()
        mesh.start()
        gate = gate_of(mesh)
        remote = address_of(sock.getpeername())
        try:
            return accept_blocking(gate, sock, PEEK_TIMEOUT)  # type: ignore[return-value]  # a plain socket is what gunicorn serves as plain text
        except RefusedConnection as refused:
            report(gate, remote, refused)
            # The one error that makes both workers close the socket without an answer.
            raise ssl.SSLError(ssl.SSL_ERROR_EOF, "connection refused by the mesh") from None


_CONTEXT: list[_MeshContext] = []


def ssl_context(config: Any, default_factory: Any) -> ssl.SSLContext:
    """gunicorn asks for each connection."""
    if not _CONTEXT:
        _CONTEXT.append(_MeshContext(ssl.PROTOCOL_TLS_SERVER))
    return _CONTEXT[0]


def when_ready(server: Any) -> None:
    """In the master, once it listens: the port for every worker that is forked from now on."""
    _log_as(server)
    port = address_of(server.LISTENERS[0].sock.getsockname()).port
    if port:
        os.environ.setdefault("PROXYLESS_PORT", str(port))
    if server.cfg.workers > 1 and not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        log.warning("PROMETHEUS_MULTIPROC_DIR is not set: each worker shows its own metrics")


def _log_as(owner: Any) -> None:
    """Our lines in the form and the level of gunicorn's, unless the application has set up logging."""
    ours = logging.getLogger("proxyless")
    if not ours.handlers and not logging.getLogger().handlers:
        ours.handlers = list(owner.log.error_log.handlers)
        ours.setLevel(owner.log.error_log.level)


def post_worker_init(worker: Any) -> None:
    """In a worker, after the fork and with the application loaded: start the mesh."""
    _log_as(worker)
    if worker.cfg.header_map == "dangerous":
        from proxyless.wsgi import expect_ambiguous_headers

        log.warning("header_map is dangerous: header names of several words are ambiguous and match no ALLOW rule")
        expect_ambiguous_headers()
    mesh = serving_mesh()
    mesh.listening_on(address_of(worker.sockets[0].sock.getsockname()).port)
    mesh.start()
    if not mesh.wait_configured(START_WAIT):
        log.warning("not ready, serving 503 until then: %s", gate_of(mesh).reasons())
    if reloads := _reloads():
        threading.Thread(target=_tell_successor, args=(mesh, reloads), name="proxyless-reload", daemon=True).start()
        drain_on_sigterm(mesh, stay=lambda: reloads.awaits_successor, patience=worker.cfg.graceful_timeout)
    else:
        drain_on_sigterm(mesh)


def on_reload(server: Any) -> None:
    """In the master, on HUP: the workers of now will be told to go while the next ones are loading."""
    if reloads := _reloads():
        reloads.begin()


def _reloads() -> Reloads | None:
    directory = os.environ.get("PROXYLESS_WORKERS_DIR", "")
    return Reloads(directory) if directory else None


def _tell_successor(mesh: MeshLike, reloads: Reloads) -> None:
    pause = threading.Event()
    while not mesh.announced:
        if mesh.draining:
            return
        pause.wait(LOOK_EVERY)
    with contextlib.suppress(OSError):
        reloads.done()


START_WAIT = 2.0  # seconds a new worker waits for its first configuration before it takes requests


def pre_request(worker: Any, request: Any) -> None:
    """In a worker: the last response before a certificate ends closes its connection, and so does the refusal of a connection
    that the mode of the moment does not take any more. (A `Connection` header of an application is dropped by gunicorn.)"""
    import time

    connection = connection_of(getattr(request.unreader, "sock", None))
    if connection is not None and (connection.ends_soon(time.time()) or _is_outdated(connection)):
        request.force_close()


def _is_outdated(connection: Connection) -> bool:
    gate = connection.gate
    snapshot = None if gate is None or gate.open else gate.mesh.snapshot
    return snapshot is not None and connection.chain(snapshot) is None


def worker_exit(server: Any, worker: Any) -> None:
    """In a worker that ends."""
    if worker.pid == os.getpid():
        serving_mesh().close()


def child_exit(server: Any, worker: Any) -> None:
    """In the master, when a worker is gone: its gauges no longer count."""
    directory = os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")
    if directory:
        for path in Path(directory).glob(f"gauge_live*_{worker.pid}.db"):
            path.unlink(missing_ok=True)


def _prepare() -> None:
    """What workers share must be named before the application is loaded: prometheus_client decides when it is imported."""
    directory = tempfile.mkdtemp(prefix="proxyless-workers-")
    owner = os.getpid()

    def clean() -> None:
        if os.getpid() == owner:
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(clean)
    os.environ.setdefault("PROXYLESS_WORKERS_DIR", directory)
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        metrics = Path(directory, "metrics")
        metrics.mkdir()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)


if "gunicorn.app.base" in sys.modules:  # loaded as configuration, not merely imported
    _prepare()
