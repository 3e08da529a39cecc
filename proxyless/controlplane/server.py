"""The embedded control plane: a directory of Istio YAML in, xDS and identities out.

Runs in a thread of its own, so it can be started inside tests and `proxyless dev` as well as alone. For each workload of the
operator's list (`proxyless.workloads` in mesh.yaml) the run directory has two sockets: ``xds.sock`` (ADS and registration)
and ``workload-api.sock`` (SPIFFE Workload API). Whoever can open them has that workload's identity; the kernel lets only
processes of the same user do so. Optionally ADS is served on TCP too, with mutual TLS.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import datetime
import logging
import math
import threading
import time
from collections.abc import Coroutine, Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import grpc.aio

from proxyless.controlplane.ads import AdsServicer, Identify
from proxyless.controlplane.authority import Authority
from proxyless.controlplane.configuration import Configuration, Loaded, load_configuration
from proxyless.controlplane.manifest.loader import MESH_FILES
from proxyless.controlplane.manifest.messages import Message
from proxyless.controlplane.registration import RegistrationServicer, RegistrationTable
from proxyless.controlplane.transport import RunDirectory, TcpTls, open_socket
from proxyless.controlplane.views import Views
from proxyless.controlplane.watch import DirectoryWatch
from proxyless.controlplane.workload_api import WorkloadApiServer
from proxyless.errors import ConfigError, ProxylessError, SettingsError
from proxyless.spiffe import SpiffeId

__all__ = ["WORKLOAD_API_SOCKET", "XDS_SOCKET", "ControlPlane"]

log = logging.getLogger("proxyless.controlplane")

XDS_SOCKET = "xds.sock"
WORKLOAD_API_SOCKET = "workload-api.sock"
LOOK_EVERY = 0.1  # seconds between looks at the configuration directory
COALESCE = 0.02  # seconds: registrations that come together are pushed together
START_TIMEOUT = 30.0
# Seconds after the start in which nobody is told that a service has lost all endpoints: a workload waits up to 36 s between
# two attempts to register (A57).
SETTLE = 40.0

T = TypeVar("T")
_Account = tuple[str, str]  # namespace, service account


class ControlPlane:
    """One control plane. `start` and `close` may be called from any thread; it is also a context manager.

    Args:
        config: directory of manifests and ``mesh.yaml``; watched.
        run: private directory for the sockets; made when missing.
        svid_ttl: lifetime of issued SVIDs in seconds.
        listen: ``host:port`` to serve ADS on TCP with mutual TLS; empty: sockets only.
    """

    def __init__(self, config: str | Path, run: str | Path, *, svid_ttl: float = 3600.0, listen: str = "") -> None:
        self._directory = Path(config)
        self._run = RunDirectory(Path(run))
        self._svid_ttl = svid_ttl
        self._listen = listen
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._plane: _Plane | None = None
        self.address = ""
        """``host:port`` of the TCP listener, once started."""

    def __enter__(self) -> ControlPlane:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Read the configuration and serve; returns when clients can connect.

        Raises:
            ConfigError: the configuration has errors (all of them are in the text), or a place cannot be used.
            SettingsError: `svid_ttl` is no length of time.
        """
        if not 0 < self._svid_ttl < math.inf:
            raise SettingsError(
                f"the life of a certificate must be a number of seconds above 0, not {self._svid_ttl:g}"
            )
        watch = DirectoryWatch(self._directory)  # before reading: a change meanwhile is not lost
        messages = _MessageLog()
        loaded = load_configuration(self._directory)
        messages.write(loaded.messages)
        configuration = loaded.require()
        self._run.claim()
        try:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="proxyless-control-plane", daemon=True)
            self._thread.start()
            authority = Authority(configuration.mesh.trust_domain, ttl=self._svid_ttl)
            self._plane = _Plane(self._directory, self._run, configuration, authority, watch, messages)
            self.address = self._on_loop(self._plane.start(self._listen))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all streams and remove the sockets. A second call does nothing."""
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            self._run.release()
            return
        if self._plane is not None:
            with contextlib.suppress(concurrent.futures.TimeoutError):
                self._on_loop(self._plane.close())
            self._plane.workload_api.close()
        self._loop = self._thread = self._plane = None
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=5.0)
        if not thread.is_alive():
            loop.close()
        self._run.release()

    def reload(self) -> Loaded:
        """Read the directory now instead of at the next look. With errors the configuration before stays."""
        return self._on_loop(self._running().reload())

    def flush(self) -> None:
        """Push registrations that have just come now, instead of a moment later."""
        self._on_loop(self._running().flush())

    def apply(self, configuration: Configuration) -> None:
        """Serve this instead of what the directory holds, until the directory changes.

        Raises:
            ConfigError: it cannot be served while running.
        """
        self._on_loop(self._running().configure(configuration))

    def workload_directory(self, namespace: str, service_account: str) -> Path:
        """Where the sockets of a workload are."""
        return self._run.path / "workloads" / namespace / service_account

    def rotate(self) -> None:
        """Issue new SVIDs to every workload now."""
        self._running().workload_api.rotate()

    @property
    def status(self) -> dict[str, Any]:
        """What is served to whom, JSON-ready."""
        return self._on_loop(self._running().status())

    @property
    def authority(self) -> Authority:
        return self._running().authority

    def _running(self) -> _Plane:
        if self._plane is None:
            raise SettingsError("the control plane is not running")
        return self._plane

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise SettingsError("the control plane is not running")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=START_TIMEOUT)


class _Plane:
    """Everything that lives on the control plane's event loop."""

    def __init__(
        self,
        directory: Path,
        run: RunDirectory,
        configuration: Configuration,
        authority: Authority,
        watch: DirectoryWatch,
        messages: _MessageLog,
    ) -> None:
        started = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.authority = authority
        self.workload_api = WorkloadApiServer(authority)
        self._directory, self._run, self._watched, self._messages = directory, run, watch, messages
        self._views = Views(configuration, started)
        self._ads = AdsServicer(self._views)
        self._table = RegistrationTable(self._views.may_serve, self._registrations_changed)
        self._registration = RegistrationServicer(self._table)
        self._sockets: dict[_Account, grpc.aio.Server] = {}
        self._tcp: grpc.aio.Server | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._pending: asyncio.TimerHandle | None = None
        self._settling: asyncio.TimerHandle | None = None
        self._changing = asyncio.Lock()

    async def start(self, listen: str) -> str:
        await self._serve_workloads()
        address = ""
        if listen:
            host, _, _ = listen.rpartition(":")
            tls = TcpTls(self.authority, self._views.configuration.mesh.root_namespace, host)
            self._tcp, port = await tls.listen(listen, self._handlers)
            address = f"{host}:{port}"
            log.info(
                "ADS on %s as %s, for callers with an SVID of %s", address, tls.spiffe_id, self.authority.trust_domain
            )
        self._watcher = asyncio.create_task(self._watch())
        self._settling = asyncio.get_running_loop().call_later(SETTLE, self._settled)
        return address

    async def close(self) -> None:
        if self._watcher is not None:
            self._watcher.cancel()
        for timer in (self._pending, self._settling):
            if timer is not None:
                timer.cancel()
        servers = [*self._sockets.values(), *([self._tcp] if self._tcp else [])]
        await asyncio.gather(*(server.stop(grace=0) for server in servers))
        for account in self._sockets:
            (self._run.path / "workloads" / Path(*account) / XDS_SOCKET).unlink(missing_ok=True)

    def _handlers(self, identify: Identify) -> Iterable[Any]:
        return self._ads.handler(identify), self._registration.handler(identify)

    # ------------------------------------------------------------------------------------------------ configuration

    async def reload(self) -> Loaded:
        if self._views.configuration.mesh.proxyless.workloads and not _has_settings(self._directory):
            raise ConfigError(
                f"{MESH_FILES[0]} is gone or empty, and with it every workload (to serve none, write proxyless: {{}})"
            )
        loaded = await asyncio.to_thread(load_configuration, self._directory)
        self._messages.write(loaded.messages)
        if loaded.configuration is None:
            log.error("%s: the configuration before stays, whole, until this is mended", self._directory)
        else:
            await self.configure(loaded.configuration)
        return loaded

    async def configure(self, configuration: Configuration) -> None:
        async with self._changing:
            trust_domain = configuration.mesh.trust_domain
            if trust_domain != self.authority.trust_domain:
                raise ConfigError(
                    f"trustDomain is {self.authority.trust_domain} and cannot become {trust_domain} while running"
                )
            self._views.commit(await asyncio.to_thread(self._views.prepare, configuration))
            self._follow_grants()
            await self._serve_workloads()
            self._ads.changed()
            await self._registration.revoke()
            log.info("configuration %s: %d resources", self._views.world.version, len(configuration.resources))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                if await asyncio.to_thread(self._watched.poll, time.monotonic()):
                    await self.reload()
            except ProxylessError as error:
                log.error("%s: %s; the configuration before stays", self._directory, error)
            except Exception:
                log.exception("%s: reading the configuration failed; the one before stays", self._directory)

    # ---------------------------------------------------------------------------------------------------- workloads

    async def _serve_workloads(self) -> None:
        """Open the sockets of workloads that are new on the operator's list, close those of workloads that are gone."""
        grants = {
            (grant.namespace, grant.service_account) for grant in self._views.configuration.mesh.proxyless.workloads
        }
        for account in self._sockets.keys() - grants:
            server = self._sockets.pop(account)
            folder = self._run.workload(*account)
            await server.stop(grace=0)
            (folder / XDS_SOCKET).unlink(missing_ok=True)
            await asyncio.to_thread(self.workload_api.remove, folder / WORKLOAD_API_SOCKET)
            self._run.forget(*account)
            log.info("workload %s/%s is no longer on the operator's list: its sockets are closed", *account)
        for account in sorted(grants - self._sockets.keys()):
            folder = self._run.workload(*account)
            identity = SpiffeId.of(self.authority.trust_domain, "ns", account[0], "sa", account[1])
            await asyncio.to_thread(self.workload_api.serve, folder / WORKLOAD_API_SOCKET, identity)
            self._sockets[account] = await open_socket(folder / XDS_SOCKET, identity, self._handlers)
            log.info("workload %s: %s and %s in %s", identity, XDS_SOCKET, WORKLOAD_API_SOCKET, folder)

    def _follow_grants(self) -> None:
        """The operator's list has changed, perhaps: who may not serve any more is no endpoint, though its stream is open."""
        allowed = self._table.workloads()
        for workload in self._views.registered:
            if workload not in allowed:
                log.warning(
                    "%s may no longer serve %s: it is no endpoint any more", workload.identity, workload.service
                )
        self._views.register(allowed)

    def _registrations_changed(self) -> None:
        if self._pending is None:
            self._pending = asyncio.get_running_loop().call_later(COALESCE, self._push_registrations)

    async def flush(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
            self._push_registrations()

    def _push_registrations(self) -> None:
        self._pending = None
        self._views.register(self._table.workloads())
        self._ads.changed()

    def _settled(self) -> None:
        self._views.settled()
        self._ads.changed()

    # ------------------------------------------------------------------------------------------------------- status

    async def status(self) -> dict[str, Any]:
        return {
            "version": self._views.world.version,
            "resources": len(self._views.configuration.resources),
            "workloads": [
                {
                    "identity": str(workload.identity),
                    "service": workload.service,
                    "address": f"{workload.address}:{workload.port}",
                    "health": workload.health,
                    "labels": dict(workload.labels),
                }
                for workload in self._table.workloads()
            ],
            "clients": [
                {
                    "node": client.node.id,
                    "identity": str(client.identity),
                    "types": {
                        url.rpartition(".")[2]: {"sent": sent, "accepted": accepted, "refused": refused}
                        for url, (sent, accepted, refused) in client.state.acknowledged().items()
                    },
                }
                for client in self._ads.clients
            ],
            "pushes": dict(self._ads.stats.pushes),
            "refusals": dict(self._ads.stats.nacks),
            "denied": self._ads.stats.denials,
        }


def _has_settings(directory: Path) -> bool:
    """Whether there is a mesh.yaml with something in it; an editor may be in the middle of replacing it."""
    files = [directory / name for name in MESH_FILES]
    return any(file.exists() and file.stat().st_size for file in files)


class _MessageLog:
    """Writes what the loader says to the log: errors always, the rest when it is new."""

    _LEVELS: ClassVar = {"error": logging.ERROR, "warning": logging.WARNING, "notice": logging.INFO}

    def __init__(self) -> None:
        self._known: frozenset[str] = frozenset()

    def write(self, messages: Iterable[Message]) -> None:
        lines = {str(message): message.severity for message in messages}
        for line, severity in lines.items():
            if severity == "error" or line not in self._known:
                log.log(self._LEVELS[severity], "%s", line)
        self._known = frozenset(lines)
