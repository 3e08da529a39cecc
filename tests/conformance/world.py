"""From Istio YAML to a snapshot, by the product's own path: load, translate for a node, decode, compile."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from proxyless import protos
from proxyless.controlplane.manifest.loader import load_paths, load_text
from proxyless.controlplane.manifest.meshconfig import MeshConfig, load_mesh_text
from proxyless.controlplane.manifest.model import AnyResource, ServiceEntry, WorkloadEntry
from proxyless.controlplane.registry import build_registry
from proxyless.controlplane.translate import World, parse_node, translate
from proxyless.core.snapshot import Resources, Snapshot, compile_snapshot
from proxyless.xds.decode import decode_cluster, decode_listener, decode_load_assignment, decode_route_configuration


class Refused(Exception):
    """The loader refuses the configuration; the text has its messages."""


def mesh_config(text: str = "") -> MeshConfig:
    """Mesh settings with the widening off: recorded peers do not have it."""
    config = MeshConfig()
    if text:
        result = load_mesh_text(text, "mesh.yaml")
        if result.config is None:
            raise Refused("; ".join(map(str, result.errors)))
        config = result.config
    return replace(config, proxyless=replace(config.proxyless, principals_named_by_host=False))


def load_directory(folder: Path) -> tuple[AnyResource, ...]:
    result = load_paths([folder])
    if result.errors:
        raise Refused("; ".join(map(str, result.errors)))
    return result.resources


def load_documents(text: str, file: str = "case.yaml") -> tuple[AnyResource, ...]:
    result = load_text(text, file)
    if result.errors:
        raise Refused("; ".join(map(str, result.errors)))
    return result.resources


def build_world(mesh: MeshConfig, resources: Iterable[AnyResource]) -> World:
    resources = tuple(resources)
    registry = build_registry(
        [resource for resource in resources if isinstance(resource.spec, ServiceEntry)],
        [resource for resource in resources if isinstance(resource.spec, WorkloadEntry)],
        default_export_to=mesh.default_service_export_to,
    )
    return World(mesh, resources, registry)


def resources_for(world: World, node: Mapping[str, Any]) -> Resources:
    """What a node with this proto-JSON is served, decoded."""
    message = protos.message("envoy.config.core.v3.Node")()
    json_format.ParseDict(node, message, ignore_unknown_fields=True)
    served = translate(world, parse_node(message))
    return Resources(
        listeners={name: decode_listener(raw)[0] for name, raw in served[protos.LISTENER].items()},
        routes={name: decode_route_configuration(raw)[0] for name, raw in served[protos.ROUTE].items()},
        clusters={name: decode_cluster(raw)[0] for name, raw in served[protos.CLUSTER].items()},
        assignments={name: decode_load_assignment(raw)[0] for name, raw in served[protos.ENDPOINT].items()},
    )


def snapshot_for(world: World, node: Mapping[str, Any]) -> Snapshot:
    return compile_snapshot(resources_for(world, node), None, 1)
