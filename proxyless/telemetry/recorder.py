"""Everything a mesh tells about itself, in one place: metrics and access log. Spans hang on `spans.hook`.

Nothing is imported or created until `start` (at once, when a registry is given); a request that comes earlier still counts.

What an event loop served is written down a moment after it was served (`soon`): counting and logging take longer than handing
over the response itself, and the caller need not wait for them. Whoever reads the metrics finds it counted all the same,
because reading settles first.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING

from proxyless.telemetry import families
from proxyless.telemetry.access_log import AccessLog, open_access_log
from proxyless.telemetry.labels import Service, Workload
from proxyless.telemetry.metrics import Metrics

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Mapping

    from prometheus_client import CollectorRegistry

__all__ = ["Telemetry"]

log = logging.getLogger("proxyless.telemetry")

MAX_UNSETTLED = 1000


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
        self._unsettled: deque[Callable[[], None]] = deque()
        self._settling = threading.RLock()
        if registry is not None:
            self.start()

    def start(self) -> None:
        """Import and create what the first request would otherwise wait for."""
        families.before_collecting(self.metrics.registry, self)
        self.metrics.warm()
        if self.access_log is not None:
            self.access_log.probe()

    def soon(self, loop: asyncio.AbstractEventLoop, record: Callable[[], None]) -> None:
        """Have `record` called in the next turn of the running loop, or before the metrics are read."""
        unsettled = self._unsettled
        unsettled.append(record)
        if loop.is_closed() or len(unsettled) > MAX_UNSETTLED:  # a loop that ended takes nobody's records with it
            self.settle()
        else:
            loop.call_soon(self.settle)

    def settle(self) -> None:
        """Write down what has ended. Any thread; never raises: telemetry is no reason to fail a request."""
        unsettled = self._unsettled
        with self._settling:  # whoever reads the metrics waits for what another thread has begun to write down
            while unsettled:
                try:
                    unsettled.popleft()()
                except Exception:
                    log.exception("a request could not be recorded")

    def close(self) -> None:
        """Write the rest of the access log."""
        self.settle()
        if self.access_log is not None:
            self.access_log.close()
