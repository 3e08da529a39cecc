"""What each client sees: the current world, translated once for each kind of node."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from proxyless.controlplane.configuration import Configuration
from proxyless.controlplane.manifest.model import ServiceEntry, WorkloadEntry
from proxyless.controlplane.registry import RegisteredWorkload, build_registry
from proxyless.controlplane.subscriptions import View
from proxyless.controlplane.translate import ProxyNode, World, missing_resource, translate
from proxyless.errors import ConfigError
from proxyless.spiffe import SpiffeId

__all__ = ["Views", "build_world"]

log = logging.getLogger("proxyless.controlplane")

MAX_VIEWS = 1024  # different nodes: workers of one workload share a view


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
    """The `ViewSource` of the ADS servicer. `prepare` may run on any thread; the rest lives on one event loop.

    `started` is the text of the start time, which together with a counter makes versions, as istiod writes them.
    """

    def __init__(self, configuration: Configuration, started: str) -> None:
        self._started = started
        self._number = 0
        self._registered: tuple[RegisteredWorkload, ...] = ()
        self._settling = True
        self._state = self._make(configuration, ())

    @property
    def configuration(self) -> Configuration:
        return self._state.configuration

    @property
    def world(self) -> World:
        return self._state.world

    @property
    def registered(self) -> tuple[RegisteredWorkload, ...]:
        return self._registered

    def prepare(self, configuration: Configuration) -> _State:
        """The state that `configuration` makes, with a view for every node known now.

        Raises:
            ConfigError: it cannot be translated. Nothing has changed.
        """
        try:
            return self._make(configuration, tuple(self._state.views))
        except Exception as error:
            log.exception("this configuration cannot be translated")
            raise ConfigError(f"this configuration cannot be translated: {type(error).__name__}: {error}") from error

    def commit(self, state: _State) -> None:
        """Serve a prepared state."""
        if state.registered is not self._registered:  # workloads have come or gone since it was prepared
            state = self._make(state.configuration, tuple(state.views))
        self._state = state

    def register(self, registered: tuple[RegisteredWorkload, ...]) -> None:
        if registered != self._registered:
            self._registered = registered
            self._state = self._make(self._state.configuration, ())

    def settled(self) -> None:
        """Who wanted to register after the start has done so: a service without endpoints has none."""
        self._settling = False

    def view(self, node: ProxyNode, identity: SpiffeId | None) -> View:
        """What this node sees. The service account is the verified one, whatever the node says."""
        account = (identity.service_account if identity else None) or node.service_account
        found = self._state.view(replace(node, id="", workload="", service_account=account))
        return replace(found, settling=True) if self._settling else found

    def may_serve(self, identity: SpiffeId, host: str) -> bool:
        """Whether the operator's list lets this identity serve that host."""
        return (identity.namespace, identity.service_account) in self.world.registry.identities_of(host)

    def _make(self, configuration: Configuration, nodes: Iterable[ProxyNode]) -> _State:
        self._number += 1
        world = build_world(configuration, self._registered, f"{self._started}/{self._number}")
        state = _State(configuration, world, self._registered)
        for node in nodes:
            state.view(node)
        return state


class _State:
    """One world and the views of it that have been asked for."""

    def __init__(self, configuration: Configuration, world: World, registered: tuple[RegisteredWorkload, ...]) -> None:
        self.configuration, self.world, self.registered = configuration, world, registered
        self.views: dict[ProxyNode, View] = {}

    def view(self, node: ProxyNode) -> View:
        found = self.views.get(node)
        if found is None:
            if len(self.views) >= MAX_VIEWS:  # a client can ask as many nodes as it likes; the oldest views go
                del self.views[next(iter(self.views))]
            found = self.views[node] = View(
                self.world.version,
                translate(self.world, node),
                lambda type_url, name: missing_resource(self.world, node, type_url, name),
            )
        return found
