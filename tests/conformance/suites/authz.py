"""`istio/authz-behaviour`: policies and requests, over HTTP, without JWT and CUSTOM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from proxyless.core.inbound import ConnectionInfo, admit, select_chain
from proxyless.core.request import Address, Peer, Request
from proxyless.spiffe import SpiffeId
from tests.conformance.harness import Case, Skipped, Suite
from tests.conformance.world import build_world, load_documents, mesh_config, snapshot_for

LATER = {"jwt": "inbound security (JWT)", "custom-provider": "inbound security (CUSTOM)"}
HTTP_PORTS = ("http", "http2")


def suites(folder: Path) -> Iterator[Suite]:
    path = folder / "istio" / "authz-behaviour" / "cases.yaml"
    if path.exists():
        document = yaml.safe_load(path.read_text())
        yield Suite(
            "istio/authz-behaviour",
            [Case(case["id"], lambda case=case: _run(document, case)) for case in document["cases"]],
        )  # type: ignore[misc]


def _run(document: Mapping[str, Any], case: Mapping[str, Any]) -> str | None:
    _refuse_later(case)
    server, snapshot = document["to"], _snapshot(document, case)
    wrong = []
    for row in case["requests"]:
        for port in row["ports"]:
            if port in HTTP_PORTS:
                seen = _allowed(document, server, snapshot, case, row, port)
                if seen != row["allow"]:
                    wrong.append(f"{row} on {port}: {seen}")
    return "; ".join(wrong) or None


def _refuse_later(case: Mapping[str, Any]) -> None:
    for kind in (document["kind"] for document in case["config"]):
        if kind == "RequestAuthentication":
            raise Skipped(LATER["jwt"])
    text = str(case["config"])
    if "'action': 'CUSTOM'" in text:
        raise Skipped(LATER["custom-provider"])
    if not any(port in HTTP_PORTS for row in case["requests"] for port in row["ports"]):
        raise Skipped("inbound security (TCP, gRPC)")


def _snapshot(document: Mapping[str, Any], case: Mapping[str, Any]) -> Any:
    """The inbound listener of the workload that enforces: the server, or the gateway."""
    mesh = mesh_config(yaml.safe_dump(case["mesh_config"]) if case.get("mesh_config") else "")
    server = document["to"]
    service = {
        "apiVersion": "networking.istio.io/v1",
        "kind": "ServiceEntry",
        "metadata": {"name": server["name"], "namespace": server["namespace"]},
        "spec": {
            "hosts": [server["fqdn"]],
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "ports": [
                {"number": number, "name": name, "protocol": name.upper(), "targetPort": server["workload_ports"][name]}
                for name, number in server["service_ports"].items()
            ],
            "endpoints": [{"address": server["ip"], "labels": server["labels"], "serviceAccount": server["name"]}],
        },
    }
    resources = load_documents(yaml.safe_dump_all([service, *case["config"]]))
    return snapshot_for(build_world(mesh, resources), _node(server, case))


def _node(server: Mapping[str, Any], case: Mapping[str, Any]) -> dict[str, Any]:
    if _at_gateway(case):
        return {
            "id": "router~10.9.0.1~ingress-1.istio-system~istio-system.svc.cluster.local",
            "metadata": {
                "NAMESPACE": "istio-system",
                "LABELS": {"app": "istio-ingressgateway", "istio": "ingressgateway"},
                "INSTANCE_IPS": "10.9.0.1",
                "PROXY_CONFIG": {"gatewayTopology": {"numTrustedProxies": 1}},  # as `enforced_at` says
            },
        }
    namespace = server["namespace"]
    return {
        "id": f"sidecar~{server['ip']}~{server['name']}-1.{namespace}~{namespace}.svc.cluster.local",
        "metadata": {"NAMESPACE": namespace, "LABELS": server["labels"], "INSTANCE_IPS": server["ip"], "SERVICE_ACCOUNT": server["name"]},
    }  # fmt: skip


def _at_gateway(case: Mapping[str, Any]) -> bool:
    return case.get("enforced_at") is not None


def _allowed(
    document: Mapping[str, Any],
    server: Mapping[str, Any],
    snapshot: Any,
    case: Mapping[str, Any],
    row: Mapping[str, Any],
    port: str,
) -> bool:
    client = document["clients"].get(row["from"]) or {
        "ip": "10.8.0.1",
        "principal": "cluster.local/ns/istio-system/sa/ingress",
    }
    gateway = _at_gateway(case)
    mtls = row.get("mtls", True) and not gateway
    number = 80 if gateway else server["workload_ports"][port]
    local, source = Address("10.9.0.1" if gateway else server["ip"], number), Address(client["ip"], 40000)
    listener = snapshot.listeners["0.0.0.0_80"] if gateway else snapshot.inbound
    info = ConnectionInfo(
        destination=local,
        transport="tls" if mtls else "raw_buffer",
        alpn=("istio-http/1.1", "istio", "http/1.1") if mtls else ("http/1.1",),
        source=source,
    )
    chain = select_chain(listener, info)
    if chain is None:
        return False
    identity = SpiffeId.parse(f"spiffe://{client['principal']}") if mtls else None
    peer = Peer(
        identity=identity,
        uri_sans=(str(identity),) if identity else (),
        tls=mtls,
        sni=case.get("sni") or f"outbound_.{server['service_ports'][port]}_._.{server['fqdn']}",
        address=source,
        local=local,
    )
    verdict = admit(
        chain, _request(row, server, local), peer, table=snapshot.tables.get(getattr(chain.filter, "rds", ""))
    )
    return bool(verdict.allowed)


def _request(row: Mapping[str, Any], server: Mapping[str, Any], local: Address) -> Request:
    path, _, query = (row.get("path") or "/").partition("?")
    headers = [(name.encode(), str(value).encode()) for name, value in (row.get("headers") or {}).items()]
    if row.get("x_forwarded_for"):
        headers.append((b"x-forwarded-for", row["x_forwarded_for"].encode()))
    return Request(
        row.get("method") or "GET",
        path,
        headers,
        authority=row.get("host") or server["fqdn"],
        query=query,
        destination=local,
    )
