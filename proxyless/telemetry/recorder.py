"""Everything a mesh tells about itself, in one place: metrics and access log. Spans hang on `spans.hook`.

Nothing is opened or imported until `start`; a request that comes earlier still counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxyless.telemetry.access_log import AccessLog, open_access_log
from proxyless.telemetry.labels import Service, Workload
from proxyless.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import CollectorRegistry

__all__ = ["Telemetry"]


class Telemetry:
    """Metrics and access log of one mesh.

    Args:
        workload, namespace, labels: ours, as in the settings.
        service: host name that we are registered as, or the short name of one in our namespace; empty for a client.
        access_log: ``off``, ``stdout``, ``stderr`` or the path of a file.
        registry: for the metric families; None: prometheus_client's global one.
    """

    def __init__(
        self,
        *,
        workload: str = "",
        namespace: str = "",
        labels: Mapping[str, str] | None = None,
        service: str = "",
        access_log: str = "off",
        registry: CollectorRegistry | None = None,
    ) -> None:
        if service and "." not in service:
            service = f"{service}.{namespace or 'default'}.svc.cluster.local"
        own = Workload.of_labels(workload, namespace, labels or {})
        self.metrics = Metrics(own, Service.of_host(service, namespace), registry)
        self.access_log: AccessLog | None = open_access_log(access_log)

    def start(self) -> None:
        """Import and create what the first request would otherwise wait for."""
        self.metrics.warm()

    def close(self) -> None:
        """Write the rest of the access log."""
        if self.access_log is not None:
            self.access_log.close()
