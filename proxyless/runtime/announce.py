"""Registration of this workload with an embedded control plane, and the moment from which it may be called.

A workload is READY when the mesh is (configuration and identity are there) and its port accepts connections, seen by
connecting to it: servers bind at different times, some before and some after the application has started. When the mesh is
not any more, for example because the identity was withdrawn, callers are told so.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable

from proxyless.settings import Settings
from proxyless.xds.registration import Readiness, RegistrationStatus, Workload, WorkloadRegistration
from proxyless.xds.stream import Credentials

__all__ = ["Announcement"]

log = logging.getLogger("proxyless.registration")

FIRST_LOOK = 0.02
LAST_LOOK = 1.0
CONNECT_TIMEOUT = 1.0


class Announcement:
    """Keeps this workload registered from `start` to `close`.

    Args:
        settings: service, address, port and labels; the port is known.
        ready: whether the mesh can serve.
    """

    def __init__(self, settings: Settings, ready: Callable[[], bool], credentials: Credentials | None = None) -> None:
        workload = Workload(
            service=settings.service,
            port=settings.port,
            address=settings.address,
            labels=settings.labels,
        )
        self._where = (settings.address, settings.port)
        self._ready = ready
        self._registration = WorkloadRegistration(settings.xds, workload, credentials=credentials)
        self._stopped = threading.Event()
        self._saying = threading.Lock()  # what was seen a moment ago is not said after DRAINING
        self._thread = threading.Thread(target=self._announce, name="proxyless-announce", daemon=True)

    def start(self) -> None:
        self._registration.start()
        self._thread.start()

    @property
    def status(self) -> RegistrationStatus:
        return self._registration.status

    @property
    def announced(self) -> bool:
        """The control plane knows that this workload may be called."""
        status = self.status
        return status.registered and status.acknowledged and status.readiness is Readiness.READY

    def reconnect(self) -> None:
        """Try again now: a reason to wait is gone."""
        self._registration.reconnect()

    def drain(self, timeout: float) -> None:
        """From now on no new configuration names this workload; waits until the control plane has taken note."""
        with self._saying:
            self._stopped.set()
        self._registration.drain(timeout)

    def close(self) -> None:
        self._stopped.set()
        self._registration.close()

    def _announce(self) -> None:
        announced, pause = False, FIRST_LOOK
        while not self._stopped.wait(pause):
            ready = self._ready() and (announced or self._accepts())  # whoever was seen to listen is not asked again
            with self._saying:
                if ready != announced and not self._stopped.is_set():
                    announced = ready
                    self._registration.set_readiness(Readiness.READY if ready else Readiness.NOT_READY)
            pause = LAST_LOOK if ready else min(pause * 1.5, LAST_LOOK)

    def _accepts(self) -> bool:
        try:
            socket.create_connection(self._where, timeout=CONNECT_TIMEOUT).close()
        except OSError:
            return False
        return True
