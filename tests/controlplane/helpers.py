"""What the control-plane tests share: configuration from text, nodes, and a plain gRPC client of the control plane."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import json_format

from proxyless import protos
from proxyless.controlplane.manifest.loader import load_text
from proxyless.controlplane.manifest.meshconfig import MeshConfig, load_mesh_text
from proxyless.controlplane.manifest.model import ServiceEntry, WorkloadEntry
from proxyless.controlplane.registry import RegisteredWorkload, build_registry
from proxyless.controlplane.translate import ProxyNode, World, translate

SERVICE = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  hosts: [{name}.{namespace}.svc.cluster.local]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{{number: {port}, name: {protocol}, protocol: {protocol}, targetPort: {target}}}]
  endpoints:
  - {{address: {address}, serviceAccount: {name}, labels: {{app: {name}, version: v1}}}}
---
"""


def service(
    name: str,
    *,
    namespace: str = "default",
    port: int = 80,
    target: int = 8080,
    protocol: str = "http",
    address: str = "10.0.0.1",
) -> str:
    """YAML of a service with one endpoint that has the service's name as service account and `app` label."""
    return SERVICE.format(name=name, namespace=namespace, port=port, target=target, protocol=protocol, address=address)


def mesh_config(text: str = "") -> MeshConfig:
    config = load_mesh_text(text, "mesh.yaml").config
    assert config is not None
    return config


def world(*documents: str, mesh: str = "", registered: tuple[RegisteredWorkload, ...] = ()) -> World:
    """A world from YAML; every error of the loader fails the test."""
    loaded = load_text("\n---\n".join(documents), "test.yaml")
    assert not loaded.errors, loaded.errors
    config = mesh_config(mesh)
    registry = build_registry(
        loaded.of(ServiceEntry),
        loaded.of(WorkloadEntry),
        config.proxyless.workloads,
        registered,
        config.default_service_export_to,
    )
    return World(config, loaded.resources, registry)


NODE = ProxyNode(
    id="sidecar~10.9.9.9~web-1.default~default.svc.cluster.local",
    type="sidecar",
    ips=("10.9.9.9",),
    workload="web",
    namespace="default",
    dns_domain="default.svc.cluster.local",
    labels=(("app", "web"),),
    service_account="web",
)
GATEWAY = replace(
    NODE,
    id="router~10.9.0.1~ingress-1.default~default.svc.cluster.local",
    type="router",
    ips=("10.9.0.1",),
    labels=(("istio", "ingressgateway"),),
)


def served(of: World, type_url: str, node: ProxyNode = NODE) -> dict[str, Any]:
    """The resources of a type that a node sees, as messages by name."""
    kind = protos.message(protos.type_name(type_url))
    return {name: kind.FromString(raw) for name, raw in translate(of, node)[type_url].items()}


def as_json(value: Any) -> Any:
    return json_format.MessageToDict(value, descriptor_pool=protos.pool())


def routes_of(of: World, port: str, host: str, node: ProxyNode = NODE) -> list[dict[str, Any]]:
    """The routes of the virtual host that has `host` among its domains, as JSON."""
    configuration = as_json(served(of, protos.ROUTE, node)[port])
    for virtual_host in configuration["virtualHosts"]:
        if host in virtual_host["domains"]:
            return list(virtual_host["routes"])
    raise AssertionError(f"no virtual host for {host}")


def eventually(condition: Callable[[], bool], timeout: float = 10.0) -> None:
    """Wait for a condition that another thread brings about."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


class AdsClient:
    """A plain state-of-the-world ADS client: nothing of our data plane is in it."""

    def __init__(self, channel: grpc.Channel, node: Mapping[str, Any]) -> None:
        self._request = protos.message("envoy.service.discovery.v3.DiscoveryRequest")
        response = protos.message("envoy.service.discovery.v3.DiscoveryResponse")
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call = channel.stream_stream(
            protos.STREAM_ADS_METHOD,
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=response.FromString,
        )(iter(self._outbox.get, None), timeout=30)
        self._node: Mapping[str, Any] | None = node

    def send(self, type_url: str, names: tuple[str, ...] = (), **fields: Any) -> None:
        request = self._request(type_url=type_url, resource_names=names, **fields)
        if self._node is not None:
            json_format.ParseDict(self._node, request.node)
            self._node = None
        self._outbox.put(request)

    def receive(self) -> Any:
        return next(self._call)

    def ask(self, type_url: str, *names: str) -> Any:
        """The answer to a first request of a type."""
        self.send(type_url, names)
        answer = self.receive()
        assert answer.type_url == type_url
        return answer

    def ack(self, response: Any, names: tuple[str, ...] = ()) -> None:
        self.send(response.type_url, names, response_nonce=response.nonce, version_info=response.version_info)

    def nack(self, response: Any, reason: str) -> None:
        self.send(response.type_url, response_nonce=response.nonce, error_detail={"message": reason})

    def nothing_before(self, type_url: str = protos.ENDPOINT, name: str = "probe") -> None:
        """Nothing has been sent: the next message is the answer to a question asked now. It replaces what was asked of
        that type before, so take a type that the test does not look at."""
        answer = self.ask(type_url, name)
        assert [names_of(answer)] == [[name]]

    def code(self) -> grpc.StatusCode:
        code: grpc.StatusCode = self._call.code()
        return code

    def details(self) -> str:
        return str(self._call.details())

    def close(self) -> None:
        self._outbox.put(None)
        self._call.cancel()


def names_of(response: Any) -> list[str]:
    """Names of the resources in a DiscoveryResponse."""
    messages = [protos.any_to_message(resource) for resource in response.resources]
    assert None not in messages
    return [getattr(m, "name", "") or getattr(m, "cluster_name", "") for m in messages]


class Worker:
    """One registration stream of a workload."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._workload = protos.message("proxyless.registration.v1.Workload")
        self._outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call = channel.stream_stream(
            protos.REGISTER_METHOD,
            request_serializer=lambda workload: workload.SerializeToString(),
            response_deserializer=protos.message("proxyless.registration.v1.Registered").FromString,
        )(iter(self._outbox.get, None), timeout=30)

    def say(self, **fields: Any) -> Any:
        self._outbox.put(self._workload(**fields))
        return next(self._call)

    def end(self) -> None:
        self._outbox.put(None)


def sidecar(workload: str, namespace: str = "default", **metadata: Any) -> dict[str, Any]:
    """Proto-JSON of a node."""
    return {
        "id": f"sidecar~127.0.0.1~{workload}-1.{namespace}~{namespace}.svc.cluster.local",
        "metadata": {"NAMESPACE": namespace, "SERVICE_ACCOUNT": workload, "LABELS": {"app": workload}, **metadata},
    }


def write(folder: Path, **files: str) -> Path:
    """Write ``name.yaml`` files whole, each by an atomic rename."""
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        part = folder / f".{name}.part"
        part.write_text(content)
        part.replace(folder / f"{name}.yaml")
    return folder


@contextmanager
def channel(target: str) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(target) as opened:
        yield opened
