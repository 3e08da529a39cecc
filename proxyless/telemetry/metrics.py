"""Prometheus metrics with Istio's names and labels.

The label values of a series are worked out once and the bound children kept under a small key, so a request pays a dictionary
look-up and seven additions. What strangers choose (hosts, identities) is bounded, and so is the number of series.

prometheus_client decides when it is imported, by the environment, whether several workers share their numbers; it is imported
on first use, after the launcher has set the environment.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

from proxyless.telemetry import families
from proxyless.telemetry.families import Family
from proxyless.telemetry.labels import UNKNOWN, Bounded, Service, Workload

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["Metrics"]

MAX_SERIES = 1000  # of one direction; one series with its three histograms takes some 20 kB
MAX_NAMES = 100  # different principals, hosts
GRPC_STATUS = range(17)


class _Series:
    """The four children of one set of label values."""

    __slots__ = ("count", "duration", "received", "sent")

    def __init__(self, count: Any, duration: Any, received: Any, sent: Any) -> None:
        self.count: Callable[[], None] = count.inc
        self.duration: Callable[[float], None] = duration.observe
        self.received: Callable[[float], None] = received.observe
        self.sent: Callable[[float], None] = sent.observe


class Metrics:
    """All metrics of one mesh. Any thread.

    Args:
        own: our workload.
        service: the service we registered as; ``unknown`` when we are only a client.
        registry: where the families are created; None: prometheus_client's global one.
    """

    def __init__(
        self, own: Workload | None = None, service: Service | None = None, registry: CollectorRegistry | None = None
    ) -> None:
        self.own, self.service = own or Workload(), service or Service()
        self._registry = registry
        self._principal = UNKNOWN
        self._series: dict[Hashable, _Series] = {}
        self._children: dict[tuple[Family, tuple[str, ...]], Any] = {}
        self._principals = Bounded(MAX_NAMES, "other")
        self._hosts = Bounded(MAX_NAMES, UNKNOWN)
        self._lock = threading.Lock()

    @property
    def registry(self) -> CollectorRegistry:
        if self._registry is None:
            from prometheus_client import REGISTRY

            self._registry = REGISTRY
        return self._registry

    def warm(self) -> None:
        """Import prometheus_client and create the request families, away from the first request (some 70 ms)."""
        for family in _REQUEST_FAMILIES:
            families.create(family, self.registry)

    def identify(self, principal: str) -> None:
        """Set our own SPIFFE ID, once the first SVID is there. Series made before keep what they were made with."""
        principal = principal or UNKNOWN
        if principal != self._principal:
            with self._lock:
                self._principal = principal
                self._series.clear()

    # ------------------------------------------------------------------------------------------------------- requests

    def inbound(
        self,
        principal: str,
        host: str,
        protocol: str,
        status: int,
        grpc_status: int | None,
        flags: str,
        seconds: float,
        received: int,
        sent: int,
        *,
        tls: bool,
    ) -> None:
        """One request that came to us ended.

        Args:
            principal: SPIFFE ID of the caller, empty when anonymous.
            host: Host header, used only when we have no service of our own.
            protocol: ``http`` or ``grpc``.
            status: 0 when the caller left before a response.
            flags: Envoy response flags, ``-`` when there is none.
            received, sent: bytes of request and response bodies.
            tls: the caller was authenticated by mutual TLS.
        """
        principal = self._principals(principal)
        host = self._hosts(host) if self.service.host is UNKNOWN else ""
        key = (principal, host, protocol, status, grpc_status, flags, tls)
        series = self._series.get(key)
        if series is None:
            service = Service.of_host(host) if host else self.service
            own = self._principal if tls else UNKNOWN
            namespace = _namespace(principal)
            caller = Workload(namespace=namespace)
            policy = "mutual_tls" if tls else "none"
            series = self._bind(
                key, "destination", caller, principal or UNKNOWN, self.own, own, service, protocol, status, grpc_status,
                flags, policy,
            )  # fmt: skip
        series.count()
        series.duration(seconds * 1000.0)
        series.received(received)
        series.sent(sent)

    def outbound(
        self,
        workload: str,
        principal: str,
        service: Service,
        protocol: str,
        status: int,
        grpc_status: int | None,
        flags: str,
        seconds: float,
        sent: int,
        received: int,
    ) -> None:
        """One call of ours ended.

        Args:
            workload: endpoint metadata `istio.workload` of the last endpoint, empty when unknown.
            principal: SPIFFE ID of the last endpoint, empty without mutual TLS.
            service: of the cluster; `Service("PassthroughCluster", ...)` for what is not the mesh's.
            status: 0 when no response came.
            sent, received: bytes of request and response bodies.
        """
        host = self._hosts(service.host)
        if host is not service.host and host != service.host:
            service = Service()
        key = (workload, principal, service, protocol, status, grpc_status, flags)
        series = self._series.get(key)
        if series is None:
            series = self._bind(
                key, "source", self.own, self._principal, Workload.of_endpoint(workload), principal or UNKNOWN, service,
                protocol, status, grpc_status, flags, UNKNOWN,
            )  # fmt: skip
        series.count()
        series.duration(seconds * 1000.0)
        series.received(sent)
        series.sent(received)

    def _bind(
        self,
        key: Hashable,
        reporter: str,
        source: Workload,
        source_principal: str,
        destination: Workload,
        destination_principal: str,
        service: Service,
        protocol: str,
        status: int,
        grpc_status: int | None,
        flags: str,
        security: str,
    ) -> _Series:
        with self._lock:
            if len(self._series) >= MAX_SERIES:
                key = (reporter, None)
                source_principal = destination_principal = "other"
                service, status, grpc_status, flags = Service(), 0, None, "-"
                if reporter == "source":
                    destination = Workload()
            series = self._series.get(key)
            if series is None:
                grpc = "" if grpc_status is None else str(grpc_status) if grpc_status in GRPC_STATUS else UNKNOWN
                values = (
                    reporter,
                    *_side(source, source_principal),
                    *_side(destination, destination_principal),
                    *service,
                    protocol,
                    str(status),
                    grpc,
                    flags,
                    security,
                )
                series = self._series[key] = _Series(
                    *(families.create(family, self.registry).labels(*values) for family in _REQUEST_FAMILIES)
                )
            return series

    # ------------------------------------------------------------------------------------------------------- our own

    def set(self, family: Family, value: float, *labels: str) -> None:
        """Set a gauge of `families`. Label values are ours, never a stranger's."""
        self._child(family, labels).set(value)

    def add(self, family: Family, *labels: str, amount: float = 1) -> None:
        """Add to a counter of `families`."""
        self._child(family, labels).inc(amount)

    def _child(self, family: Family, labels: tuple[str, ...]) -> Any:
        child = self._children.get((family, labels))
        if child is None:
            with self._lock:
                metric = families.create(family, self.registry)
                child = self._children[family, labels] = metric.labels(*labels) if labels else metric
        return child


_REQUEST_FAMILIES = (families.REQUESTS, families.REQUEST_DURATION, families.REQUEST_BYTES, families.RESPONSE_BYTES)


def _side(workload: Workload, principal: str) -> tuple[str, ...]:
    name, namespace, *rest = workload
    return name, namespace, principal, *rest


def _namespace(principal: str) -> str:
    """Namespace of an ID of Istio's form; Istio runs a workload in the namespace of its service account."""
    parts = principal.split("/")
    return parts[4] if len(parts) == 7 and parts[3] == "ns" and parts[5] == "sa" else UNKNOWN
