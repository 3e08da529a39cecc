"""What each client sees: the current world, translated once for each kind of node."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from proxyless.controlplane import hosts
from proxyless.controlplane.configuration import Configuration
from proxyless.controlplane.manifest.model import ServiceEntry, WorkloadEntry
from proxyless.controlplane.registry import RegisteredWorkload, Registry, build_registry
from proxyless.controlplane.subscriptions import View
from proxyless.controlplane.translate import ProxyNode, World, missing_resource, translate
from proxyless.spiffe import SpiffeId

__all__ = ["Views", "build_world"]


def build_world(configuration: Configuration, registered: Iterable[RegisteredWorkload], version: str) -> World:
    """Configuration and registered workloads as one state of the mesh."""
    mesh = configuration.mesh
    registry = build_registry(
        [resource for resource in configuration.resources if isinstance(resource.spec, ServiceEntry)],
        [resource for resource in configuration.resources if isinstance(resource.spec, WorkloadEntry)],
        mesh.proxyless.workloads,
        registered,
        mesh.default_service_export_to,
    )
    return World(mesh, configuration.resources, registry, version)


class Views:
    """The `ViewSource` of the ADS servicer. Lives on one event loop.

    `started` is the text of the start time, which together with a counter makes versions, as istiod writes them.
    """

    def __init__(self, configuration: Configuration, started: str) -> None:
        self._started = started
        self._number = 0
        self._configuration = configuration
        self._registered: tuple[RegisteredWorkload, ...] = ()
        self._cache: dict[ProxyNode, View] = {}
        self.world: World
        self._rebuild()

    @property
    def configuration(self) -> Configuration:
        return self._configuration

    @property
    def registry(self) -> Registry:
        return self.world.registry

    def configure(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._rebuild()

    def register(self, registered: tuple[RegisteredWorkload, ...]) -> None:
        if registered != self._registered:
            self._registered = registered
            self._rebuild()

    def view(self, node: ProxyNode, identity: SpiffeId | None) -> View:
        """What this node sees. The service account is the verified one, whatever the node says."""
        account = (identity.service_account if identity else None) or node.service_account
        key = replace(node, id="", workload="", service_account=account)
        found = self._cache.get(key)
        if found is None:
            world = self.world
            found = self._cache[key] = View(
                world.version,
                translate(world, key),
                lambda type_url, name: missing_resource(world, key, type_url, name),
            )
        return found

    def may_serve(self, identity: SpiffeId, host: str) -> bool:
        """Whether the operator's list lets this identity serve that host."""
        return (identity.namespace, identity.service_account) in self.registry.identities_of(hosts.expand(host, ""))

    def _rebuild(self) -> None:
        self._number += 1
        self._cache.clear()
        self.world = build_world(self._configuration, self._registered, f"{self._started}/{self._number}")
