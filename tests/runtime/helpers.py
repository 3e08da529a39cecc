"""A control plane that comes and goes, and what its clients know."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from proxyless.controlplane.server import ControlPlane
from proxyless.runtime.mesh import Mesh
from proxyless.settings import Settings


class Plane:
    """A configuration and a run directory; the control plane itself is started and stopped by the test."""

    def __init__(self, root: Path, workloads: dict[str, list[str]]) -> None:
        self.config, self.run = root / "config", root / "run"
        self.config.mkdir()
        grants = [{"serviceAccount": account, "services": services} for account, services in workloads.items()]
        (self.config / "mesh.yaml").write_text(yaml.safe_dump({"proxyless": {"workloads": grants}}))
        self._running: ControlPlane | None = None

    def start(self, **options: Any) -> ControlPlane:
        self._running = ControlPlane(self.config, self.run, **options)
        self._running.start()
        return self._running

    def stop(self) -> None:
        if self._running is not None:
            self._running.close()
            self._running = None

    def settings(self, account: str, **more: Any) -> Settings:
        folder = self.run / "workloads" / "default" / account
        return Settings(
            **{
                "xds": f"unix:{folder / 'xds.sock'}",
                "spiffe_socket": f"unix:{folder / 'workload-api.sock'}",
                "service_account": account,
                **more,
            }
        )


@contextlib.contextmanager
def plane(**workloads: list[str]) -> Iterator[Plane]:
    with tempfile.TemporaryDirectory(prefix="proxyless-") as root:
        made = Plane(Path(root), workloads)
        try:
            yield made
        finally:
            made.stop()


def endpoints(mesh: Mesh, service: str) -> list[int]:
    """Ports of the endpoints of a service that may be called, as a mesh knows them."""
    snapshot = mesh.snapshot
    if snapshot is None:
        return []
    return sorted(
        endpoint.address.port
        for name, upstream in snapshot.upstreams.items()
        if name.startswith("outbound|") and upstream.cluster.service.partition(".")[0] == service
        for endpoint in upstream.endpoints
        if endpoint.health.eligible
    )
