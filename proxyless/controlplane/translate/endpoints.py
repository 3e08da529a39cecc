"""Endpoints of a cluster: EDS assignments, and the inline ones of DNS clusters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby

from proxyless.controlplane.registry import Endpoint, Port, Service
from proxyless.controlplane.translate.build import Tree, struct
from proxyless.controlplane.translate.peer_authentication import DISABLE, port_mode
from proxyless.controlplane.translate.world import World

__all__ = ["assignment"]

CLUSTER_ID = "Kubernetes"  # what istiod writes for a single cluster; part of the `workload` metadata


def assignment(world: World, name: str, service: Service, port: Port, labels: Mapping[str, str]) -> Tree:
    """A ClusterLoadAssignment of the endpoints that have these labels, grouped by locality."""
    members = [e for e in service.endpoints_of(port) if labels.items() <= e.labels.items()]
    members.sort(key=lambda endpoint: endpoint.locality)  # stable: within a locality the order of the source stays
    groups = groupby(members, key=lambda endpoint: endpoint.locality)
    return {
        "cluster_name": name,
        "endpoints": [_locality(world, locality, endpoints, port) for locality, endpoints in groups],
    }


def _locality(world: World, locality: str, endpoints: Iterable[Endpoint], port: Port) -> Tree:
    region, zone, sub_zone = (*locality.split("/"), "", "", "")[:3]
    found = list(endpoints)
    return {
        "locality": {"region": region, "zone": zone, "sub_zone": sub_zone},
        "lb_endpoints": [_endpoint(world, endpoint, port) for endpoint in found],
        "load_balancing_weight": {"value": sum(endpoint.weight for endpoint in found)},
    }


def _endpoint(world: World, endpoint: Endpoint, port: Port) -> Tree:
    number = endpoint.port_of(port)
    metadata = {"istio": struct({"workload": _workload(endpoint)})}
    takes_mtls = endpoint.tls_mode == "istio"
    if takes_mtls and port_mode(world, endpoint.namespace, endpoint.labels, number) != DISABLE:
        metadata["envoy.transport_socket_match"] = struct({"tlsMode": "istio"})
    return {
        "endpoint": {"address": _address(world, endpoint.address, number)},
        "load_balancing_weight": {"value": endpoint.weight},
        "health_status": endpoint.health or "UNKNOWN",
        "metadata": {"filter_metadata": metadata},
    }


def _address(world: World, address: str, port: int) -> Tree:
    """`proxyless.addressMap` of the mesh settings says where an address really is."""
    if address.startswith("unix://"):
        return {"pipe": {"path": address.removeprefix("unix://")}}
    key = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    mapped = world.mesh.proxyless.address_map.get(key)
    if mapped is not None:
        host, _, number = mapped.rpartition(":")
        address, port = host.strip("[]"), int(number)
    return {"socket_address": {"address": address, "port_value": port}}


def _workload(endpoint: Endpoint) -> str:
    """``workload;namespace;canonical service;canonical revision;cluster``, from which telemetry takes its names."""
    labels = endpoint.labels
    service = next(
        (
            labels[key]
            for key in ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")
            if labels.get(key)
        ),
        endpoint.workload,
    )
    revision = next(
        (
            labels[key]
            for key in ("service.istio.io/canonical-revision", "app.kubernetes.io/version", "version")
            if labels.get(key)
        ),
        "",
    )
    return f"{endpoint.workload};{endpoint.namespace};{service};{revision};{CLUSTER_ID}"
