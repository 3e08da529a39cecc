"""Istio's metric labels: who called, who was called, and a bound on what a stranger can put into them.

Names and defaults: Istio standard metrics (`source_*`, `destination_*`; what is not known is ``unknown``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["UNKNOWN", "Bounded", "Service", "Workload"]

UNKNOWN = "unknown"


class Workload(NamedTuple):
    """One side of a call. `principal` is not here: it belongs to the connection."""

    name: str = UNKNOWN
    namespace: str = UNKNOWN
    app: str = UNKNOWN
    version: str = UNKNOWN
    canonical_service: str = UNKNOWN
    canonical_revision: str = UNKNOWN
    cluster: str = UNKNOWN

    @classmethod
    def of_labels(cls, name: str, namespace: str, labels: Mapping[str, str]) -> Workload:
        """Ourselves, from settings. Canonical names by Istio's order of labels."""
        service = (
            labels.get("service.istio.io/canonical-name")
            or labels.get("app.kubernetes.io/name")
            or labels.get("app")
            or name
            or UNKNOWN
        )
        revision = (
            labels.get("service.istio.io/canonical-revision")
            or labels.get("app.kubernetes.io/version")
            or labels.get("version")
            or "latest"
        )
        return cls(
            name or UNKNOWN,
            namespace or UNKNOWN,
            labels.get("app") or UNKNOWN,
            labels.get("version") or UNKNOWN,
            service,
            revision,
            "Kubernetes",
        )

    @classmethod
    def of_endpoint(cls, text: str) -> Workload:
        """From the endpoint metadata `istio.workload`: ``workload;namespace;canonical-service;canonical-revision;cluster``.

        Missing and empty parts are ``unknown``.
        """
        parts = [part or UNKNOWN for part in text.split(";")]
        parts += [UNKNOWN] * (5 - len(parts))
        name, namespace, service, revision, cluster = parts[:5]
        return cls(name, namespace, UNKNOWN, UNKNOWN, service, revision, cluster)


class Service(NamedTuple):
    """`destination_service`, `destination_service_name`, `destination_service_namespace`."""

    host: str = UNKNOWN
    name: str = UNKNOWN
    namespace: str = UNKNOWN

    @classmethod
    def of_host(cls, host: str, namespace: str = "") -> Service:
        """From a service's host name; its first label is the short name only for ``name.namespace.svc...``."""
        if not host:
            return cls()
        parts = host.split(".")
        if len(parts) > 2 and parts[2] == "svc":
            return cls(host, parts[0], parts[1])
        return cls(host, host, namespace or UNKNOWN)


class Bounded:
    """The first `limit` different values pass, every later one becomes `overflow`: strangers choose hosts and identities.

    Any thread; at most a few values above the limit pass in a race, never an unbounded number.
    """

    __slots__ = ("_limit", "_overflow", "_seen")

    def __init__(self, limit: int, overflow: str) -> None:
        self._limit, self._overflow = limit, overflow
        self._seen: set[str] = set()

    def __call__(self, value: str) -> str:
        seen = self._seen
        if value in seen:
            return value
        if len(seen) >= self._limit:
            return self._overflow
        seen.add(value)
        return value
