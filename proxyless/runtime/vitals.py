"""Metrics of the mesh itself that nobody has to set on the way: read from the state of the parts, a few times a second."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyless.telemetry import families
from proxyless.telemetry.families import Family

if TYPE_CHECKING:
    from proxyless.runtime.inbound import MeshLike

__all__ = ["Vitals"]


class Vitals:
    """Readiness, the stream to the control plane, and totals that the parts keep. One thread."""

    def __init__(self, mesh: MeshLike) -> None:
        self._mesh = mesh
        self._totals: dict[Family, int] = {}
        self._generation = -1

    def refresh(self) -> None:
        """Bring the metrics up to date."""
        mesh = self._mesh
        metrics = mesh.telemetry.metrics
        metrics.set(families.READY, 1 if mesh.ready else 0)
        client = mesh.xds
        if client is not None:
            metrics.set(families.XDS_CONNECTED, 1 if client.status.stream.connected else 0)
            stats = client.stats
            self._grow(families.XDS_UPDATES, stats.accepted)
            self._grow(families.XDS_NACKS, stats.refused)
            snapshot = mesh.snapshot
            if snapshot is not None and snapshot.generation != self._generation:
                self._generation = snapshot.generation
                metrics.set(families.UNSUPPORTED_FIELDS, len(client.unsupported()))
        log = mesh.telemetry.access_log
        if log is not None:
            self._grow(families.ACCESS_LOG_DROPPED, log.dropped)

    def _grow(self, family: Family, total: int) -> None:
        grown = total - self._totals.get(family, 0)
        self._totals[family] = total
        if grown > 0:
            self._mesh.telemetry.metrics.add(family, amount=grown)
