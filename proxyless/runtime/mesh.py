"""The mesh membership of one process: settings, configuration, identity, what was learned, and telemetry, joined.

A `Mesh` is explicit, or there is one for each process (`Mesh.default()`). Making one does nothing; `start` does, and may be
called from anywhere, any number of times. Background threads receive configuration and identity; a request reads
`mesh.snapshot` once. Nothing of a parent process is used after a fork: the child begins anew at its next `start`.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar

from proxyless.core.learned import Learned
from proxyless.core.snapshot import Snapshot
from proxyless.errors import NoIdentityError, SettingsError
from proxyless.runtime.memory import give_back_start
from proxyless.runtime.waiting import Latch
from proxyless.settings import Settings, unknown_variables
from proxyless.telemetry import families
from proxyless.telemetry.recorder import Telemetry
from proxyless.values import replace

if TYPE_CHECKING:
    from proxyless.identity.source import IdentitySnapshot, IdentitySource
    from proxyless.identity.tls import TlsContexts
    from proxyless.runtime.admin import AdminListener
    from proxyless.runtime.announce import Announcement
    from proxyless.xds.client import XdsClient
    from proxyless.xds.stream import ChannelSecurity

__all__ = ["Mesh"]

log = logging.getLogger("proxyless")

TLS_MODE_LABEL = "security.istio.io/tlsMode"
DRAIN_TIMEOUT = 2.0
IDENTITY_WAIT = 2.0  # seconds that a first connection to a control plane on TCP waits for an identity to make it with


class Mesh:
    """See the module. Any thread.

    Args:
        settings: None reads the environment.
        identity_source: where our SVID comes from; it is started here, and closed by whoever made it. None: the Workload API
            of the settings, else no identity.

    Attributes:
        snapshot: the configuration in use; None before the first.
        learned: ejections and counts, which survive snapshots.
        rng: for splits and picks.
    """

    snapshot: Snapshot | None
    learned: Learned
    rng: random.Random

    _default: ClassVar[Mesh | None] = None
    _default_lock: ClassVar[threading.Lock] = threading.Lock()
    _all: ClassVar[weakref.WeakSet[Mesh]] = weakref.WeakSet()

    def __init__(self, settings: Settings | None = None, *, identity_source: IdentitySource | None = None) -> None:
        self._from_environment = settings is None
        self.settings = settings if settings is not None else Settings.from_environment()
        self._given_identity = identity_source
        self._reset()
        Mesh._all.add(self)

    @classmethod
    def default(cls) -> Mesh:
        """The one mesh of this process, made from the environment on first use."""
        if cls._default is not None:
            return cls._default
        with cls._default_lock:
            if cls._default is None:
                cls._default = cls()
            return cls._default

    # ------------------------------------------------------------------------------------------------------ life

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._started = self._draining = self._serving = False
        self._serial = ""
        self._generations = 0  # used up by earlier runs
        self._unsubscribe: Callable[[], None] | None = None
        self._held: dict[str, str] = {}  # replaced, never changed: any thread reads it
        self._latch = Latch()
        self._giving_back: Callable[[], None] | None = None
        self._identified = threading.Event()
        self._xds: XdsClient | None = None
        self._announcement: Announcement | None = None
        self._admin: AdminListener | None = None
        self._identity_source: IdentitySource | None = self._given_identity
        self._contexts: TlsContexts | None = None
        self._telemetry: Telemetry | None = None
        self.snapshot = None
        self.learned = Learned()
        self.rng = random.Random()  # noqa: S311 - splits and picks, no secrets

    def start(self) -> None:
        """Connect to the Workload API and the control plane, in the background. Idempotent; returns at once.

        Raises:
            SettingsError: a setting cannot be used. Nothing runs then.
        """
        if self._started:
            return
        with self._lock:
            if self._started:
                return
            self._started, self._draining = True, False
            try:
                self._start_parts()
            except BaseException:
                self.close()
                raise

    def _start_parts(self) -> None:
        self._warn_about_settings()
        self.telemetry.start()
        source = self.identity_source
        if source is not None:
            self._unsubscribe = source.subscribe(self._identity_changed)
            if source.current is not None:
                self._identity_changed(source.current)
            source.start()
        if self.settings.xds:
            self._start_xds()
        self._announce()
        if self.settings.admin not in ("", "off"):
            self._start_admin()

    def close(self) -> None:
        """Stop all threads; what was received stays in use. May be started again."""
        with self._lock:
            if not self._started:
                return
            self._started = False
            self._identified.set()  # nobody waits for it any more
            if self._admin is not None:
                self._admin.close()
                self._admin = None
            if self._announcement is not None:
                self._announcement.close()
                self._announcement = None
            if self._xds is not None:
                self._xds.close()
                self._xds = None
            if self._unsubscribe is not None:
                self._unsubscribe()
                self._unsubscribe = None
            if self._identity_source is not None and self._given_identity is None:
                self._identity_source.close()
            if self._giving_back is not None:
                self._giving_back()
                self._giving_back = None
            if self._telemetry is not None:
                self._telemetry.close()

    def drain(self) -> None:
        """Say that this workload goes: not ready any more, and no new configuration names it."""
        self._draining = True
        announcement = self._announcement
        if announcement is not None:
            announcement.drain(DRAIN_TIMEOUT)

    def serve(self) -> None:
        """This process takes requests, so it is the one to register: not every process of the same environment is. Idempotent;
        servers and middlewares call it."""
        if self._serving:
            return
        with self._lock:
            self._serving = True
            if self._started:
                self._announce()

    def listening_on(self, port: int) -> None:
        """A server tells its port once it knows it; the one of the settings counts if they have one."""
        if self.settings.port or not port:
            self.serve()
            return
        with self._lock:
            self._serving = True
            self.settings = self.settings.with_port(port)
            if self._started:
                self._announce()
            if self._xds is not None:
                self._xds.reconnect()  # the node says which port is ours

    def hold(self, part: str, reason: str) -> None:
        """Not ready for this reason, which belongs to `part` of the process; empty: `part` has none any more."""
        held = {name: why for name, why in self._held.items() if name != part}
        self._held = {**held, part: reason} if reason else held

    # ----------------------------------------------------------------------------------------------------- parts

    @property
    def identity_source(self) -> IdentitySource | None:
        """None: this process has no identity and none is configured."""
        if self._identity_source is None and self.settings.spiffe_socket:
            from proxyless.identity.workload_api import WorkloadApiSource

            with self._lock:
                if self._identity_source is None:
                    self._identity_source = WorkloadApiSource(self.settings.spiffe_socket)
        return self._identity_source

    @property
    def contexts(self) -> TlsContexts:
        """TLS contexts of the current identity.

        Raises:
            NoIdentityError: no source of identity is configured.
        """
        contexts = self._contexts
        if contexts is None:
            from proxyless.identity.tls import TlsContexts

            source = self.identity_source
            if source is None:
                raise NoIdentityError("no Workload API is configured: set SPIFFE_ENDPOINT_SOCKET")
            with self._lock:
                contexts = self._contexts
                if contexts is None:
                    contexts = self._contexts = TlsContexts(source)
        return contexts

    @property
    def telemetry(self) -> Telemetry:
        """Metrics and access log; there before `start`, because a request may come earlier."""
        telemetry = self._telemetry
        if telemetry is None:
            settings = self.settings
            with self._lock:
                telemetry = self._telemetry
                if telemetry is None:
                    telemetry = self._telemetry = Telemetry(
                        workload=settings.workload,
                        namespace=settings.namespace,
                        labels=settings.labels,
                        service=settings.service,
                        access_log=settings.access_log,
                    )
        return telemetry

    @property
    def xds(self) -> XdsClient | None:
        """The client of the control plane, for dumps; None before `start` or without one."""
        return self._xds

    # ----------------------------------------------------------------------------------------------------- state

    @property
    def configured(self) -> bool:
        """There is a configuration, and an identity if one is configured."""
        if self.snapshot is None:
            return False
        source = self.identity_source
        return source is None or source.current is not None

    @property
    def _servable(self) -> bool:
        """May be called, as far as this process knows by itself."""
        return self.configured and not self._held and not self._identity_trouble()

    @property
    def draining(self) -> bool:
        """On its way out: callers are told, and connections end with their next response."""
        return self._draining

    @property
    def ready(self) -> bool:
        """`configured`, able to serve as what it is registered, not refused as that, and not on its way out."""
        return self._servable and not self._draining and not self._refused()

    @property
    def announced(self) -> bool:
        """`ready`, and the control plane tells callers so; the same as `ready` where there is nothing to register."""
        if not self.ready or not self.settings.service or not self.settings.xds:
            return self.ready
        return self._announcement is not None and self._announcement.announced

    def not_ready_reasons(self) -> list[str]:
        """Why `ready` is false; empty when it is true."""
        reasons = []
        if self._draining:
            reasons.append("draining")
        if self.snapshot is None:
            if not self.settings.xds:
                reasons.append("no control plane is configured: set PROXYLESS_XDS")
            else:
                reasons.append(str(self._xds.status) if self._xds is not None else "the mesh is not started")
        source = self.identity_source
        if source is not None and source.current is None:
            reasons.append(f"identity: {source.status or 'no SVID yet'}")
        if trouble := self._identity_trouble():
            reasons.append(f"identity: {trouble}")
        if (refusal := self._refused()) is not None:
            reasons.append(refusal)
        return [*reasons, *(f"{part}: {reason}" for part, reason in self._held.items())]

    def wait_configured(self, timeout: float) -> bool:
        """Block until `configured`, at most `timeout` seconds. Starts the mesh."""
        self.ensure()
        return self.configured or (self._latch.wait(timeout) and self.configured)

    async def await_configured(self, timeout: float) -> bool:
        """The same in an event loop."""
        self.ensure()
        return self.configured or (await self._latch.wait_async(timeout) and self.configured)

    def ensure(self) -> None:
        """`start`, at the price of two attribute reads when it already runs in this process."""
        if self._pid != os.getpid():
            self._forget()
        if not self._started:
            self.start()

    # -------------------------------------------------------------------------------------------------- internals

    def _forget(self) -> None:
        """In a forked child: begin anew. What a launcher has put into the environment since our making counts."""
        if self._unsubscribe is not None:  # a source that was given to us lives on, by its own rules
            self._unsubscribe()
        self._reset()
        if self._from_environment:
            try:
                self.settings = Settings.from_environment()
            except SettingsError:
                log.exception("the environment of this process cannot be used; that of its parent counts")

    def _start_xds(self) -> None:
        from proxyless.xds.client import XdsClient, node_message

        if self.snapshot is not None:
            self._generations = self.snapshot.generation
        self._xds = XdsClient(
            self.settings.xds, lambda: node_message(self.settings), self._publish, credentials=self._credentials()
        )
        self._xds.start()

    def _start_admin(self) -> None:
        from proxyless.runtime.admin import AdminListener

        self._admin = AdminListener(self, self.settings.admin, self.settings.workers_dir)
        self._admin.start()

    def _announce(self) -> None:
        settings = self.settings
        if not self._serving or not settings.service or not settings.xds or self._announcement is not None:
            return
        if not settings.port:
            log.warning("%s is not registered yet: its port is not known (set PROXYLESS_PORT)", settings.service)
            return
        from proxyless.runtime.announce import Announcement

        self._announcement = Announcement(settings, lambda: self._servable, self._credentials())
        self._announcement.start()

    def _credentials(self) -> Callable[[], ChannelSecurity] | None:
        source = self.identity_source
        if source is None or self.settings.xds.startswith("unix:"):
            return None
        from proxyless.runtime.channel import channel_security

        def credentials() -> ChannelSecurity:
            self._identified.wait(IDENTITY_WAIT)  # at a start the first one is only moments away
            return channel_security(source, self.settings)

        return credentials

    def _publish(self, snapshot: Snapshot) -> None:
        """Called by the xDS thread. One assignment; requests in flight keep the snapshot they have."""
        if self._generations:  # a number stands for one snapshot in the life of a process: connections remember it
            snapshot = replace(snapshot, generation=self._generations + snapshot.generation)
        self.snapshot = snapshot
        self.learned.prune(snapshot)
        self.telemetry.metrics.set(families.CONFIG_GENERATION, snapshot.generation)
        self._open_latch()

    def _identity_changed(self, identity: IdentitySnapshot | None) -> None:
        if identity is not None:
            metrics = self.telemetry.metrics
            metrics.identify(str(identity.svid.spiffe_id))
            metrics.set(families.IDENTITY_EXPIRY, identity.svid.not_after)
            if not self._serial:
                self._identified.set()
                self._hurry()
            elif self._serial != identity.svid.serial:
                metrics.add(families.IDENTITY_ROTATIONS)
            self._serial = identity.svid.serial
        self._open_latch()

    def _hurry(self) -> None:
        """The first identity is there, and it took long. Nothing could connect over TLS without it: no need to sit out the
        back-off."""
        if self.settings.xds.startswith("unix:"):
            return
        xds, announcement = self._xds, self._announcement
        if xds is not None and xds.status.stream.failures:
            xds.reconnect()
        if announcement is not None and announcement.status.stream.failures:
            announcement.reconnect()

    def _open_latch(self) -> None:
        if not self._latch.is_open and self.configured and self._latch.open():
            log.info("configuration and identity are there after %.3f s", time.monotonic() - _LOADED)
            stop = give_back_start()
            if self._started:
                self._giving_back = stop
            else:  # closed at the same moment
                stop()

    def _identity_trouble(self) -> str:
        """Why callers, who use mutual TLS unless a label tells them not to, would fail; empty when they would not."""
        settings, source = self.settings, self.identity_source
        if (
            not self._serving
            or not settings.service
            or not settings.xds
            or settings.labels.get(TLS_MODE_LABEL) == "disabled"
        ):
            return ""
        if source is None:
            return "callers use mutual TLS and no Workload API is configured: set SPIFFE_ENDPOINT_SOCKET"
        announcement, current = self._announcement, source.current
        known = "" if announcement is None else announcement.status.identity
        if current is None or known in ("", str(current.svid.spiffe_id)):
            return ""
        return (
            f"callers expect {known}, as which the control plane knows us, and our certificate says "
            f"{current.svid.spiffe_id}: PROXYLESS_XDS and SPIFFE_ENDPOINT_SOCKET belong to different workloads"
        )

    def _refused(self) -> str | None:
        announcement = self._announcement
        if announcement is None:
            return None
        status = announcement.status
        return str(status) if status.refusal else None

    def _warn_about_settings(self) -> None:
        for name in unknown_variables(os.environ) if self._from_environment else ():
            log.warning("%s is no setting and changes nothing", name)
        if self.settings.disabled_outbound and self.settings.node_kind != "router":  # a gateway speaks for itself
            log.critical("PROXYLESS_DISABLED=%s: outbound calls do not go through the mesh", self.settings.disabled)
            self.telemetry.metrics.set(families.DISABLED, 1, "outbound")
        if not self.settings.xds:
            log.error("no control plane is configured (PROXYLESS_XDS): inbound requests are refused")
        if self.identity_source is None:
            log.warning("no Workload API is configured (SPIFFE_ENDPOINT_SOCKET): this process has no identity")


_LOADED = time.monotonic()


def _after_fork() -> None:
    """In a child: threads, channels, locks and keys of the parent are gone. The meshes themselves stay: middleware and
    transports that were made before the fork hold them."""
    Mesh._default_lock = threading.Lock()
    for mesh in list(Mesh._all):
        mesh._forget()


os.register_at_fork(after_in_child=_after_fork)
