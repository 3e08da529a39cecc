"""PeerAuthentication: which kinds of connection a workload accepts on a port (istio-semantics 2)."""

from __future__ import annotations

from collections.abc import Mapping

from proxyless.controlplane.manifest.model import MutualTLS, PeerAuthentication, Resource
from proxyless.controlplane.translate.world import World

__all__ = ["DISABLE", "PERMISSIVE", "STRICT", "inferred_mode", "mode_of", "port_mode"]

STRICT, PERMISSIVE, DISABLE, UNSET = "STRICT", "PERMISSIVE", "DISABLE", "UNSET"


def mode_of(world: World, namespace: str, labels: Mapping[str, str]) -> str:
    """What holds for the workload as a whole: its own policy, else its namespace's, else the mesh's, else PERMISSIVE."""
    own = _workload_policy(world, namespace, labels)
    mode = _mode(own.spec.mtls) if own else UNSET
    return mode if mode != UNSET else inferred_mode(world, namespace)


def port_mode(world: World, namespace: str, labels: Mapping[str, str], port: int) -> str:
    """What holds for one workload port; port-level settings need a selector."""
    own = _workload_policy(world, namespace, labels)
    if own is not None and port in own.spec.port_level_mtls:
        mode = _mode(own.spec.port_level_mtls[port])
        if mode != UNSET:
            return mode
    return mode_of(world, namespace, labels)


def inferred_mode(world: World, namespace: str) -> str:
    """What a caller may assume of a service in `namespace` without knowing its workloads."""
    for scope in dict.fromkeys((namespace, world.mesh.root_namespace)):
        for policy in world.peer_authentications:
            if policy.namespace == scope and not _selector(policy):
                mode = _mode(policy.spec.mtls)
                if mode != UNSET:
                    return mode
                break  # the oldest of a scope counts; it inherits
    return PERMISSIVE


def _workload_policy(world: World, namespace: str, labels: Mapping[str, str]) -> Resource[PeerAuthentication] | None:
    """The oldest that selects the workload; one with a selector in the root namespace selects nobody."""
    if namespace == world.mesh.root_namespace:
        return None
    for policy in world.peer_authentications:
        selector = _selector(policy)
        if policy.namespace == namespace and selector and selector.items() <= labels.items():
            return policy
    return None


def _selector(policy: Resource[PeerAuthentication]) -> Mapping[str, str]:
    return policy.spec.selector.match_labels if policy.spec.selector else {}


def _mode(mtls: MutualTLS | None) -> str:
    return mtls.mode if mtls is not None else UNSET
