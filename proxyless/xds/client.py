"""The data plane's connection to its control plane: one daemon thread that turns ADS into published snapshots.

`XdsClient` joins the stream (`stream.py`), the protocol (`session.py`), the resources (`store.py`) and the compiler of
snapshots. It never raises into its callers: what goes wrong is logged, shown in `status`, and the last good snapshot stays.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from proxyless import __version__, protos
from proxyless.core.snapshot import Resources, Snapshot, compile_snapshot
from proxyless.errors import ControlPlaneUnavailableError
from proxyless.xds.session import SessionStats, SotwSession
from proxyless.xds.store import Decoder, Dumped, Store
from proxyless.xds.stream import Credentials, StreamDriver, StreamStatus

__all__ = ["NodeSettings", "XdsClient", "XdsStatus", "node_message"]

log = logging.getLogger("proxyless.xds")

Compile = Callable[[Resources, Snapshot | None, int], Snapshot]


class NodeSettings(Protocol):
    """What `node_message` reads; `proxyless.settings.Settings` has it."""

    @property
    def namespace(self) -> str: ...
    @property
    def service_account(self) -> str: ...
    @property
    def workload(self) -> str: ...
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def address(self) -> str: ...
    @property
    def service(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def node_kind(self) -> str: ...


def node_message(settings: NodeSettings) -> Any:
    """The `envoy.config.core.v3.Node` of this workload, as Istio reads it.

    The id has four parts: kind, IP, workload and namespace, DNS domain. `INSTANCE_IPS` is one string: istiod refuses a list.
    Many local workloads share 127.0.0.1, so our own key `PROXYLESS` names service and port when the workload serves one.
    """
    address = _ip(settings.address)
    metadata: dict[str, Any] = {
        "NAMESPACE": settings.namespace,
        "WORKLOAD_NAME": settings.workload,
        "LABELS": dict(settings.labels),
        "INSTANCE_IPS": address,
    }
    if settings.service_account:  # else the control plane reads it from our SVID
        metadata["SERVICE_ACCOUNT"] = settings.service_account
    if settings.service:
        metadata["PROXYLESS"] = {"SERVICE": settings.service, "PORT": settings.port}
    name, space = settings.workload, settings.namespace
    node = protos.message("envoy.config.core.v3.Node")(
        id=f"{settings.node_kind}~{address}~{name}.{space}~{space}.svc.cluster.local",
        cluster=f"{name}.{space}",
        user_agent_name="proxyless",
        user_agent_version=__version__,
        client_features=["xds.config.resource-in-sotw"],
    )
    node.metadata.update(metadata)
    return node


def _ip(address: str) -> str:
    """The address if it is an IP; a host name stands for this machine, since a node id needs an IP."""
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return "127.0.0.1"


@dataclass(frozen=True, slots=True)
class XdsStatus:
    """State of the configuration, for `/ready` and logs.

    Attributes:
        stream: the connection.
        generation: number of the published snapshot, 0 before the first.
        published_at: POSIX time of the last publication, 0 before the first.
        waiting: what the next publication waits for, at most ten.
    """

    stream: StreamStatus
    generation: int
    published_at: float
    waiting: tuple[str, ...]

    def __str__(self) -> str:
        text = f"control plane: {self.stream}"
        if self.waiting:
            text += "; waiting for " + ", ".join(self.waiting)
        if not self.generation:
            return text + "; no configuration yet"
        if not self.stream.connected:
            age = max(0.0, time.time() - self.published_at)
            text += f"; the configuration received {age:.0f} s ago stays in use"
        return text


class XdsClient:
    """Follows a control plane and publishes snapshots.

    Args:
        target: ``unix:/path`` or ``host:port``.
        node: makes the Node message; called in the thread for each stream.
        publish: called in the thread with each new snapshot. Must return quickly.
        credentials: secures TCP connections; without them TCP is plain text, and the log says so.
        compile: resources to snapshot.
        decoders: see `Store`.
    """

    def __init__(
        self,
        target: str,
        node: Callable[[], Any],
        publish: Callable[[Snapshot], None],
        *,
        credentials: Credentials | None = None,
        compile: Compile = compile_snapshot,
        decoders: Mapping[str, Decoder] | None = None,
        rng: Callable[[], float] = random.random,
    ) -> None:
        self._target, self._node, self._publish = target, node, publish
        self._credentials, self._compile, self._decoders, self._rng = credentials, compile, decoders, rng
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._conversation = _Conversation(self._node, self._decoders, self._compile, self._publish)
        self._driver = StreamDriver(
            "xds",
            self._target,
            protos.STREAM_ADS_METHOD,
            self._conversation,
            credentials=self._credentials,
            rng=self._rng,
        )

    def start(self) -> None:
        """Start the thread; no effect while it runs. In a forked child everything begins anew."""
        if self._pid != os.getpid():
            self._reset()
        if self._credentials is None and not self._target.startswith("unix:"):
            log.warning("xds: the connection to %s is plain text: the control plane is not verified", self._target)
        self._driver.start()

    def close(self, timeout: float = 2.0) -> None:
        """End the stream; the last snapshot stays with whoever has it."""
        self._driver.close(timeout)

    def reconnect(self) -> None:
        """Open a new stream now, to introduce this node anew (its port has become known), or because a reason to wait is
        gone (an identity has arrived). What was accepted stays."""
        self._driver.reconnect()

    @property
    def status(self) -> XdsStatus:
        """Any thread."""
        talk = self._conversation
        return XdsStatus(self._driver.status, talk.generation, talk.published_at, talk.waiting)

    @property
    def stats(self) -> SessionStats:
        """Counters of the protocol. Any thread."""
        return self._conversation.stats

    def dump(self) -> list[Dumped]:
        """Every resource held, with its version and last refusal. Any thread."""
        store = self._conversation.store
        return [] if store is None else store.dump()

    def unsupported(self) -> dict[str, int]:
        """Fields that are set and not acted on, with the number of resources that set them. Any thread."""
        store = self._conversation.store
        return {} if store is None else store.unsupported()


class _Conversation:
    """ADS on one stream after another. Store and session are made in the thread, with the first stream: protobuf and the
    decoders are loaded there, not where the client is created."""

    def __init__(
        self,
        node: Callable[[], Any],
        decoders: Mapping[str, Decoder] | None,
        compile: Compile,
        publish: Callable[[Snapshot], None],
    ) -> None:
        self._node, self._decoders, self._compile, self._publish = node, decoders, compile, publish
        self._session: SotwSession | None = None
        self._previous: Snapshot | None = None
        self.store: Store | None = None
        self.stats = SessionStats()
        self.generation = 0
        self.published_at = 0.0
        self.waiting: tuple[str, ...] = ()

    def opened(self) -> Iterable[bytes]:
        store, session = self._parts()
        session.node = self._node()
        requests = session.open(time.monotonic())
        self._note_waiting(store)
        return [request.SerializeToString() for request in requests]

    def received(self, raw: bytes) -> Iterable[bytes]:
        store, session = self._parts()
        requests = session.receive(_parse_response(raw), time.monotonic())
        self._publish_changes(store)
        return [request.SerializeToString() for request in requests]

    def closed(self) -> None:
        if self._session is not None:
            self._session.lost()

    def next_tick(self) -> float | None:
        return None if self._session is None else self._session.next_deadline()

    def tick(self) -> Iterable[bytes]:
        store, session = self._parts()
        if session.expire(time.monotonic()):
            self._publish_changes(store)
        return ()

    def _parts(self) -> tuple[Store, SotwSession]:
        if self.store is None or self._session is None:
            self.store = Store(self._decoders, breathe=_breathe)
            self._session = SotwSession(self._node(), self.store, self.stats)
        return self.store, self._session

    def _publish_changes(self, store: Store) -> None:
        """Compile and publish when there is a new whole. A failure of ours keeps the last good snapshot."""
        resources = store.take()
        self._note_waiting(store)
        if resources is None:
            return
        try:
            snapshot = self._compile(resources, self._previous, self.generation + 1)
            self._publish(snapshot)
        except Exception:
            log.exception("xds: the new configuration could not be published; the last good one stays in use")
            return
        self._previous = snapshot
        self.generation += 1
        self.published_at = time.time()
        log.debug("xds: published generation %d", self.generation)

    def _note_waiting(self, store: Store) -> None:
        missing = store.missing()[:10]
        self.waiting = tuple(f"{url.rpartition('.')[2]} {name}".rstrip() for url, name in missing)


def _parse_response(raw: bytes) -> Any:
    from google.protobuf.message import DecodeError

    try:
        return protos.message("envoy.service.discovery.v3.DiscoveryResponse").FromString(raw)
    except DecodeError as error:
        raise ControlPlaneUnavailableError(f"sent no DiscoveryResponse: {error}") from None


def _breathe() -> None:
    """Let threads that wait for the GIL run."""
    time.sleep(0)
