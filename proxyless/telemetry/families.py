"""The metric families of proxyless: names, help texts, labels, and how gauges of several workers become one value.

Nothing is created here: `Metrics` makes a family on first use, on the registry it was given.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol
from weakref import WeakSet

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = [
    "ACCESS_LOG_DROPPED",
    "CONFIG_GENERATION",
    "DISABLED",
    "IDENTITY_EXPIRY",
    "IDENTITY_ROTATIONS",
    "INBOUND_DENIED",
    "INBOUND_HANDSHAKE_FAILURES",
    "OUTBOUND_EJECTIONS",
    "READY",
    "REQUEST_LABELS",
    "UNSUPPORTED_FIELDS",
    "XDS_CONNECTED",
    "XDS_NACKS",
    "XDS_UPDATES",
    "Family",
    "before_collecting",
    "create",
]

# Istio standard metrics, in Istio's order.
REQUEST_LABELS = (
    "reporter",
    "source_workload",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_canonical_service",
    "source_canonical_revision",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_cluster",
    "destination_service",
    "destination_service_name",
    "destination_service_namespace",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
)

# Envoy's default histogram buckets, which Istio keeps for milliseconds and bytes alike.
BUCKETS = (
    0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000,
)  # fmt: skip

_LOCK = threading.Lock()


@dataclass(frozen=True, slots=True)
class Family:
    """One metric family.

    Attributes:
        name: without the ``_total`` that a counter gets.
        workers: prometheus_client's multiprocess mode of a gauge. Only ``live`` modes: a worker that is gone does not count,
            and no ``pid`` label appears.
    """

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    workers: Literal["livesum", "livemin", "livemax"] = "livemax"


REQUESTS = Family("counter", "istio_requests", "Requests handled by the mesh.", REQUEST_LABELS)
REQUEST_DURATION = Family(
    "histogram", "istio_request_duration_milliseconds", "Time from request to end of response.", REQUEST_LABELS
)
REQUEST_BYTES = Family("histogram", "istio_request_bytes", "Bytes of request bodies.", REQUEST_LABELS)
RESPONSE_BYTES = Family("histogram", "istio_response_bytes", "Bytes of response bodies.", REQUEST_LABELS)

XDS_CONNECTED = Family(
    "gauge", "proxyless_xds_connected", "1 while the stream to the control plane is up.", (), "livemin"
)
XDS_UPDATES = Family("counter", "proxyless_xds_updates", "Responses of the control plane that were accepted.")
XDS_NACKS = Family("counter", "proxyless_xds_nacks", "Responses of the control plane that were refused.")
CONFIG_GENERATION = Family(
    "gauge",
    "proxyless_config_generation",
    "Number of the configuration in use; the lowest of all workers.",
    (),
    "livemin",
)
UNSUPPORTED_FIELDS = Family(
    "gauge", "proxyless_config_unsupported_fields", "Configuration fields that are accepted and not acted on."
)
IDENTITY_EXPIRY = Family(
    "gauge", "proxyless_identity_expiry_timestamp_seconds", "When our certificate expires (Unix time).", (), "livemin"
)
IDENTITY_ROTATIONS = Family("counter", "proxyless_identity_rotations", "Certificates that replaced an earlier one.")
DISABLED = Family("gauge", "proxyless_disabled", "1 while PROXYLESS_DISABLED switches the mesh off.", ("scope",))
READY = Family("gauge", "proxyless_ready", "1 when /ready is 200.", (), "livemin")
INBOUND_DENIED = Family("counter", "proxyless_inbound_denied", "Requests refused before the application.", ("reason",))
INBOUND_HANDSHAKE_FAILURES = Family(
    "counter", "proxyless_inbound_handshake_failures", "Connections refused before any request.", ("reason",)
)
OUTBOUND_EJECTIONS = Family("counter", "proxyless_outbound_ejections", "Endpoints ejected by outlier detection.")
ACCESS_LOG_DROPPED = Family(
    "counter", "proxyless_access_log_dropped", "Access log lines lost because the sink was slow."
)


def create(family: Family, registry: CollectorRegistry) -> Any:
    """The family on this registry, made at most once: adding the mesh twice or reloading a module finds the first one.

    The memory is an attribute of the registry itself, so that it lives exactly as long and survives a re-import of ours.
    """
    made: dict[str, Any] = registry.__dict__.setdefault("_proxyless_families", {})
    metric = made.get(family.name)
    if metric is None:
        with _LOCK:
            metric = made.get(family.name)
            if metric is None:
                metric = made[family.name] = _make(family, registry)
    return metric


class Settles(Protocol):
    """Who has numbers that are not in the metrics yet."""

    def settle(self) -> None: ...


class _Before:
    """A collector without metrics. It was registered before the families that it brings up to date, so it is asked first."""

    def __init__(self) -> None:
        self.owners: WeakSet[Settles] = WeakSet()

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> list[Any]:
        for owner in list(self.owners):
            owner.settle()
        return []


def before_collecting(registry: CollectorRegistry, owner: Settles) -> None:
    """Have `owner.settle()` called whenever this registry is read, for as long as the owner lives."""
    with _LOCK:
        before: _Before | None = registry.__dict__.get("_proxyless_before")
        if before is None:
            before = registry.__dict__["_proxyless_before"] = _Before()
            registry.register(before)
        before.owners.add(owner)


def _make(family: Family, registry: CollectorRegistry) -> Any:
    from prometheus_client import Counter, Gauge, Histogram

    match family.kind:
        case "counter":
            return Counter(family.name, family.help, family.labels, registry=registry)
        case "gauge":
            return Gauge(family.name, family.help, family.labels, registry=registry, multiprocess_mode=family.workers)
        case "histogram":
            return Histogram(family.name, family.help, family.labels, registry=registry, buckets=BUCKETS)
