"""`istio/samples`: files that must load, and be served to a client without a resource that it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from proxyless.controlplane.manifest.loader import load_paths
from tests.conformance.harness import Case, Skipped, Suite
from tests.conformance.world import build_world, mesh_config, snapshot_for

GATEWAY_API = {"Gateway", "GatewayClass", "HTTPRoute", "GRPCRoute", "TCPRoute", "TLSRoute", "ReferenceGrant"}
NODES = [
    {
        "id": f"{kind}~10.1.0.9~web-1.default~default.svc.cluster.local",
        "metadata": {
            "NAMESPACE": "default",
            "LABELS": {"app": "web", "istio": "ingressgateway"},
            "INSTANCE_IPS": "10.1.0.9",
        },
    }
    for kind in ("sidecar", "router")
]


def suites(folder: Path) -> Iterator[Suite]:
    path = folder / "istio" / "samples" / "cases.yaml"
    if path.exists():
        cases = yaml.safe_load(path.read_text())["cases"]
        yield Suite("istio/samples", [Case(case["id"], lambda case=case: _run(path.parent, case)) for case in cases])  # type: ignore[misc]


def _run(folder: Path, case: dict[str, Any]) -> str | None:
    file = folder / case["file"]
    if "gateway.networking.k8s.io" in file.read_text():
        raise Skipped("Gateway API")
    result = load_paths([file])
    if result.errors:
        return "; ".join(map(str, result.errors))
    told = len(result.resources) + sum(message.code == "skipped" for message in result.notices)
    if told < case["documents"]:
        return f"{case['documents']} documents, {len(result.resources)} accepted, and {told} accounted for"
    world = build_world(mesh_config(), result.resources)
    for node in NODES:
        snapshot_for(world, node)
    return None
