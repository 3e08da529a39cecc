"""Everything a translation reads: an immutable configuration with the look-ups it needs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any, TypeVar

from proxyless.controlplane.manifest.meshconfig import MeshConfig
from proxyless.controlplane.manifest.model import (
    AnyResource,
    AuthorizationPolicy,
    DestinationRule,
    Gateway,
    PeerAuthentication,
    RequestAuthentication,
    Resource,
    VirtualService,
    WorkloadSelector,
)
from proxyless.controlplane.registry import Registry

__all__ = ["World", "selects"]

SpecT = TypeVar("SpecT")
T = TypeVar("T")


class World:
    """One state of the mesh. Lists are sorted oldest first, as istiod breaks ties.

    Attributes:
        version: what clients see as `version_info`.
    """

    def __init__(
        self, mesh: MeshConfig, resources: Iterable[AnyResource], registry: Registry, version: str = "1"
    ) -> None:
        self.mesh = mesh
        self.registry = registry
        self.version = version
        self.resources = tuple(sorted(resources, key=lambda resource: (*resource.age_key, resource.kind)))
        self.virtual_services = self._of(VirtualService)
        self.destination_rules = self._of(DestinationRule)
        self.gateways = self._of(Gateway)
        self.authorization_policies = self._of(AuthorizationPolicy)
        self.peer_authentications = self._of(PeerAuthentication)
        self.request_authentications = self._of(RequestAuthentication)
        self._memo: dict[Hashable, Any] = {}

    def remember(self, key: Hashable, make: Callable[[], T]) -> T:
        """`make()`, made once for each key. Keys begin with the name of the function that uses them."""
        if key not in self._memo:
            self._memo[key] = make()
        found: T = self._memo[key]
        return found

    def _of(self, spec: type[SpecT]) -> tuple[Resource[SpecT], ...]:
        return tuple(resource for resource in self.resources if isinstance(resource.spec, spec))

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """The mesh's own trust domain, then its aliases."""
        return (self.mesh.trust_domain, *self.mesh.trust_domain_aliases)


def selects(selector: WorkloadSelector | None, labels: Mapping[str, str]) -> bool:
    """Whether a workload with these labels is meant; no selector and an empty one mean every workload."""
    return selector is None or selector.match_labels.items() <= labels.items()
