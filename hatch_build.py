"""Build hook: make the one protobuf descriptor set that the package ships.

The set holds every xDS type the data plane can decode, from the build requirement `xds-protos`, and our own two services
compiled from `proxyless/protos/*.proto`. It is a build product: nothing generated is committed, and neither `xds-protos`
nor `grpcio-tools` is needed at run time (docs/decisions/0002-descriptor-set.md).
"""

from __future__ import annotations

import gzip
import importlib
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TARGET = "proxyless/protos/descriptors.binpb.gz"

XDS_MODULES = [
    "envoy.service.discovery.v3.ads_pb2",
    "envoy.service.status.v3.csds_pb2",
    "envoy.service.load_stats.v3.lrs_pb2",
    "envoy.service.secret.v3.sds_pb2",
    "envoy.config.bootstrap.v3.bootstrap_pb2",
    "envoy.config.listener.v3.listener_pb2",
    "envoy.config.route.v3.route_pb2",
    "envoy.config.cluster.v3.cluster_pb2",
    "envoy.config.endpoint.v3.endpoint_pb2",
    "envoy.extensions.clusters.aggregate.v3.cluster_pb2",
    "envoy.extensions.filters.listener.http_inspector.v3.http_inspector_pb2",
    "envoy.extensions.filters.listener.original_dst.v3.original_dst_pb2",
    "envoy.extensions.filters.listener.proxy_protocol.v3.proxy_protocol_pb2",
    "envoy.extensions.filters.listener.tls_inspector.v3.tls_inspector_pb2",
    "envoy.extensions.filters.http.cors.v3.cors_pb2",
    "envoy.extensions.filters.http.ext_authz.v3.ext_authz_pb2",
    "envoy.extensions.filters.http.fault.v3.fault_pb2",
    "envoy.extensions.filters.http.grpc_stats.v3.config_pb2",
    "envoy.extensions.filters.http.header_mutation.v3.header_mutation_pb2",
    "envoy.extensions.filters.http.jwt_authn.v3.config_pb2",
    "envoy.extensions.filters.http.local_ratelimit.v3.local_rate_limit_pb2",
    "envoy.extensions.filters.http.rbac.v3.rbac_pb2",
    "envoy.extensions.filters.http.router.v3.router_pb2",
    "envoy.extensions.filters.http.stateful_session.v3.stateful_session_pb2",
    "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager_pb2",
    "envoy.extensions.filters.network.rbac.v3.rbac_pb2",
    "envoy.extensions.filters.network.sni_cluster.v3.sni_cluster_pb2",
    "envoy.extensions.filters.network.tcp_proxy.v3.tcp_proxy_pb2",
    "envoy.extensions.access_loggers.file.v3.file_pb2",
    "envoy.extensions.access_loggers.stream.v3.stream_pb2",
    "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.client_side_weighted_round_robin_pb2",
    "envoy.extensions.load_balancing_policies.cluster_provided.v3.cluster_provided_pb2",
    "envoy.extensions.load_balancing_policies.least_request.v3.least_request_pb2",
    "envoy.extensions.load_balancing_policies.maglev.v3.maglev_pb2",
    "envoy.extensions.load_balancing_policies.pick_first.v3.pick_first_pb2",
    "envoy.extensions.load_balancing_policies.random.v3.random_pb2",
    "envoy.extensions.load_balancing_policies.ring_hash.v3.ring_hash_pb2",
    "envoy.extensions.load_balancing_policies.round_robin.v3.round_robin_pb2",
    "envoy.extensions.load_balancing_policies.wrr_locality.v3.wrr_locality_pb2",
    "envoy.extensions.network.dns_resolver.cares.v3.cares_dns_resolver_pb2",
    "envoy.extensions.path.match.uri_template.v3.uri_template_match_pb2",
    "envoy.extensions.path.rewrite.uri_template.v3.uri_template_rewrite_pb2",
    "envoy.extensions.request_id.uuid.v3.uuid_pb2",
    "envoy.extensions.retry.host.previous_hosts.v3.previous_hosts_pb2",
    "envoy.extensions.retry.priority.previous_priorities.v3.previous_priorities_config_pb2",
    "envoy.extensions.transport_sockets.raw_buffer.v3.raw_buffer_pb2",
    "envoy.extensions.transport_sockets.tls.v3.secret_pb2",
    "envoy.extensions.transport_sockets.tls.v3.tls_pb2",
    "envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2",
    "envoy.extensions.upstreams.http.v3.http_protocol_options_pb2",
    "envoy.type.matcher.v3.string_pb2",
    "udpa.type.v1.typed_struct_pb2",
    "xds.core.v3.resource_locator_pb2",
    "xds.type.matcher.v3.matcher_pb2",
    "xds.type.v3.typed_struct_pb2",
    "google.rpc.status_pb2",
]

ANNOTATIONS = ("validate/", "udpa/annotations/", "xds/annotations/", "envoy/annotations/")


class DescriptorSetHook(BuildHookInterface):
    """Write `descriptors.binpb.gz`: deterministic bytes, dependencies before dependents."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        target = Path(self.root) / TARGET
        target.write_bytes(
            gzip.compress(_descriptor_set(Path(self.root)).SerializeToString(deterministic=True), mtime=0)
        )
        build_data.setdefault("artifacts", []).append(TARGET)


def _descriptor_set(root: Path) -> Any:
    from google.protobuf import descriptor_pb2
    from grpc_tools import protoc

    result = descriptor_pb2.FileDescriptorSet()
    seen: set[str] = set()

    def add(file: Any) -> None:
        if file.name in seen:
            return
        seen.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        file.CopyToProto(result.file.add())

    for name in XDS_MODULES:
        add(importlib.import_module(name).DESCRIPTOR)

    sources = root / "proxyless" / "protos"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "own.binpb"
        well_known = Path(protoc.__file__).parent / "_proto"
        arguments = ["protoc", f"-I{sources}", f"-I{well_known}", f"--descriptor_set_out={out}"]
        code = protoc.main([*arguments, *(path.name for path in sorted(sources.glob("*.proto")))])
        if code:
            raise RuntimeError(f"protoc failed with code {code}")
        own = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes())
    for file in own.file:
        if file.name not in seen:
            seen.add(file.name)
            result.file.append(file)
    return _stripped(result)


def _stripped(files: Any) -> Any:
    """Without annotations (validation rules, migration hints): nobody reads them, and they are a third of the memory.

    What changes the wire format or the shape of messages stays. Files that only annotations came from are left out.
    """
    for file in files.file:
        _keep(file)
        for message in file.message_type:
            _strip_message(message)
        for enum in file.enum_type:
            _strip_enum(enum)
        for service in file.service:
            _keep(service)
            for method in service.method:
                _keep(method)
        kept = [name for name in file.dependency if not name.startswith(ANNOTATIONS)]
        del file.dependency[:], file.public_dependency[:], file.weak_dependency[:], file.extension[:]
        file.dependency.extend(kept)
    result = type(files)()
    result.file.extend(file for file in files.file if not file.name.startswith(ANNOTATIONS))
    return result


def _strip_message(message: Any) -> None:
    _keep(message, "map_entry")
    del message.extension[:]
    for field in message.field:
        _keep(field, "packed")
    for oneof in message.oneof_decl:
        _keep(oneof)
    for enum in message.enum_type:
        _strip_enum(enum)
    for nested in message.nested_type:
        _strip_message(nested)


def _strip_enum(enum: Any) -> None:
    _keep(enum, "allow_alias")
    for value in enum.value:
        _keep(value)


def _keep(item: Any, *options: str) -> None:
    """Clear all options of a descriptor but these."""
    if item.HasField("options"):
        kept = {name: getattr(item.options, name) for name in options if item.options.HasField(name)}
        item.ClearField("options")
        for name, value in kept.items():
            setattr(item.options, name, value)
