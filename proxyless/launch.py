"""`proxyless run module:app`: uvicorn with the mesh's protocol, its workers, and their way out.

    run("billing:app", port=8000, workers=4)

What workers share is named in the environment before they start: their directory (PROXYLESS_WORKERS_DIR), the directory of the
shared metrics (PROMETHEUS_MULTIPROC_DIR, with several workers), the port they listen on and the admin address. The admin
listener is `127.0.0.1:<port + 10000>` unless PROXYLESS_ADMIN says otherwise (minus 10000 above 55535), so that several apps of
one host do not meet.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import uvicorn
from uvicorn.config import LOGGING_CONFIG, STARTUP_FAILURE
from uvicorn.importer import ImportFromStringError, import_from_string
from uvicorn.supervisors import ChangeReload, Multiprocess

from proxyless.asgi import STATE, ASGIApp, Lifespan, Message, Receive, Scope, Send
from proxyless.errors import SettingsError
from proxyless.runtime.drain import drain_on_sigterm
from proxyless.runtime.inbound import InboundGate, MeshLike, gate_of, serving_mesh
from proxyless.runtime.memory import few_arenas
from proxyless.settings import Settings

__all__ = ["run", "served_app"]

log = logging.getLogger("proxyless.launch")

DEFAULT_PORT = 8000
_TALKATIVE = frozenset(("trace", "debug", "info"))
_APP, _FACTORY = "PROXYLESS_RUN_APP", "PROXYLESS_RUN_FACTORY"  # from `run` to the processes it spawns


def run(
    app: str,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    workers: int = 1,
    reload: bool = False,
    app_dir: str = ".",
    factory: bool = False,
    http: str = "proxyless.uvicorn:MeshProtocol",
    log_level: str = "info",
    **options: Any,
) -> int:
    """Serve an application until SIGTERM or Ctrl-C.

    Args:
        app: ``module:attribute``.
        port: 0: PROXYLESS_PORT, else 8000.
        reload: restart when a source file changes; one worker.
        factory: `app` is a function that makes the application.
        options: further arguments of `uvicorn.Config`.

    Returns:
        The exit code: 0, or 3 when the application did not start.

    Raises:
        SettingsError: the environment or an argument is unusable.
    """
    if workers < 1 or (reload and workers > 1):
        raise SettingsError("--workers is 1 or more, and 1 with --reload")
    settings = Settings.from_environment()
    sys.path.insert(0, str(Path(app_dir).resolve()))
    if reload:
        options.setdefault("reload_dirs", [app_dir])
    # Addresses come from the connection, as identities do. One line for a request is enough, and what a level hides need not
    # be made (3 us).
    options.setdefault("proxy_headers", False)
    options.setdefault("access_log", settings.access_log == "off" and log_level in _TALKATIVE)
    config = uvicorn.Config(
        "proxyless.launch:served_app",
        factory=True,
        host=host,
        port=port or settings.port or DEFAULT_PORT,
        workers=workers,
        reload=reload,
        http=http,
        log_level=log_level,
        log_config=_log_config(log_level),
        **options,
    )
    sock = config.bind_socket()
    sock.listen(config.backlog)  # who calls while the workers start is answered later, not refused (as under gunicorn)
    bound = sock.getsockname()[1]
    shared = _share(workers, bound, settings)
    os.environ[_APP], os.environ[_FACTORY] = app, "1" if factory else ""
    try:
        return _supervise(config, sock)
    finally:
        if shared:
            shutil.rmtree(shared, ignore_errors=True)


def _supervise(config: uvicorn.Config, sock: Any) -> int:
    server = uvicorn.Server(config)
    try:
        if config.should_reload:
            ChangeReload(config, target=server.run, sockets=[sock]).run()
            return 0
        if config.workers > 1:
            workers = Multiprocess(config, sockets=[sock])
            workers.run()
            return STARTUP_FAILURE if any(each.exitcode == STARTUP_FAILURE for each in workers.processes) else 0
        config.load_app()
        server.run(sockets=[sock])
    except ImportFromStringError as error:
        log.error("%s", error)
        return STARTUP_FAILURE
    except KeyboardInterrupt:
        return 0
    return 0 if server.started else STARTUP_FAILURE


def _share(workers: int, port: int, settings: Settings) -> str:
    """Name in the environment what the workers share; the directory that was made for it, empty when there is none."""
    os.environ.setdefault("PROXYLESS_PORT", str(port))
    if not settings.admin:
        os.environ["PROXYLESS_ADMIN"] = f"127.0.0.1:{port + 10000 if port <= 55535 else port - 10000}"
    if workers == 1:
        return ""
    directory = tempfile.mkdtemp(prefix="proxyless-workers-")
    if not settings.workers_dir:
        os.environ["PROXYLESS_WORKERS_DIR"] = directory
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        metrics = Path(directory, "metrics")
        metrics.mkdir()
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(metrics)
    return directory


def _log_config(level: str) -> dict[str, Any]:
    """uvicorn's logging, with our lines in the same form."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["proxyless"] = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    return config


def served_app() -> ASGIApp:
    """The factory that uvicorn calls in each worker: the application named by `run`."""
    few_arenas()
    name, factory = os.environ[_APP], os.environ.get(_FACTORY)
    app = import_from_string(name)
    return _Served(app() if factory else app)


class _Served:
    """Starts the mesh for an application that has no MeshMiddleware of its own, and drains on SIGTERM.

    Policy is not its business: the protocol judges every request before this is called.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            await self.app(scope, receive, send)
            return
        ours: list[MeshLike] = []
        gates: list[InboundGate] = []  # one for the life of the application, not one for each connection

        async def started(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                mesh = scope["state"].get(STATE)
                if mesh is None:
                    log.warning("the application has no MeshMiddleware; policy is enforced all the same")
                    mesh = scope["state"][STATE] = serving_mesh()
                    mesh.serve()
                    mesh.start()
                    ours.append(mesh)
                gates.append(gate_of(mesh))
                drain_on_sigterm(mesh)
            await send(message)

        try:
            await Lifespan(receive, started).run(self.app, scope)
        finally:
            for mesh in ours:
                await asyncio.to_thread(mesh.close)
