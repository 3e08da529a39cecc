"""Settings of the whole mesh: ``mesh.yaml`` with Istio's MeshConfig fields, and our own block ``proxyless``.

Fields of MeshConfig that mean nothing without Envoy or Kubernetes are accepted and named in a warning.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal

from proxyless.errors import ManifestError, Place

from .context import Context, child_path
from .decode import FAILED, decode_message
from .hints import did_you_mean
from .messages import Message, Subject, sorted_messages
from .model.common import AnyDuration, Duration, PortNumber, Struct, UInt32
from .model.destination import (
    ClientTLSSettings,
    ConnectionPoolSettings,
    LocalityLoadBalancerSetting,
    OutlierDetection,
    TcpKeepalive,
)
from .model.routing import HTTPRetry
from .rules.checks import is_host, is_namespace, is_port
from .rules.destination import check_connection_pool, check_locality, check_outlier
from .rules.routing import check_retry
from .schema import schema_of
from .syntax import SyntaxProblem, YamlMapping, YamlScalar, read_documents

__all__ = [
    "DefaultTrafficPolicy",
    "ExtensionProvider",
    "ExternalAuthorizationBody",
    "ExternalAuthorizationGrpc",
    "ExternalAuthorizationHttp",
    "MeshConfig",
    "MeshOutboundTrafficPolicy",
    "MeshResult",
    "PathNormalization",
    "ProxylessSettings",
    "WorkloadGrant",
    "load_mesh_file",
    "load_mesh_text",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadGrant:
    """Who may serve what: an identity (namespace and service account), its services, and labels that it gets.

    ``namespace`` empty in YAML: the default namespace. Short names of services expand in the grant's namespace.
    """

    namespace: str = ""
    service_account: str
    services: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxylessSettings:
    """What a mesh without Kubernetes must be told.

    Attributes:
        default_namespace: of manifests without one.
        address_map: ``host:port`` that endpoints name, to the ``host:port`` that is really called.
        gateway_ports: port of a Gateway's server, to the port that the gateway process listens on.
        principals_named_by_host: a principal that is exactly the host of a known service stands for the identities
            that ``workloads`` gives that service. This widens Istio's meaning.
    """

    default_namespace: str = "default"
    workloads: tuple[WorkloadGrant, ...] = ()
    address_map: Mapping[str, str] = field(default_factory=dict)
    gateway_ports: Mapping[int, PortNumber] = field(default_factory=dict)
    principals_named_by_host: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshOutboundTrafficPolicy:
    mode: Literal["REGISTRY_ONLY", "ALLOW_ANY", "ALLOW_ANY_DYNAMIC_DNS"] = "REGISTRY_ONLY"
    tls: ClientTLSSettings | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PathNormalization:
    normalization: Literal["DEFAULT", "NONE", "BASE", "MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"] = "DEFAULT"


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultTrafficPolicy:
    """Fills in what a DestinationRule leaves out."""

    connection_pool: ConnectionPoolSettings | None = None
    outlier_detection: OutlierDetection | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshTLSConfig:
    min_protocol_version: Literal["TLS_AUTO", "TLSV1_2", "TLSV1_3"] = "TLS_AUTO"
    ecdh_curves: tuple[str, ...] = ()
    cipher_suites: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalAuthorizationBody:
    max_request_bytes: UInt32 | None = None
    allow_partial_message: bool = False
    pack_as_bytes: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalAuthorizationHttp:
    """``timeout`` absent: 600 s; ``status_on_error`` empty: 403."""

    service: str
    port: PortNumber
    timeout: Duration | None = None
    path_prefix: str = ""
    fail_open: bool = False
    clear_route_cache: bool = False
    status_on_error: str = ""
    include_headers_in_check: tuple[str, ...] = ()
    include_request_headers_in_check: tuple[str, ...] = ()
    include_additional_headers_in_check: Mapping[str, str] = field(default_factory=dict)
    include_request_body_in_check: ExternalAuthorizationBody | None = None
    headers_to_upstream_on_allow: tuple[str, ...] = ()
    headers_to_downstream_on_deny: tuple[str, ...] = ()
    headers_to_downstream_on_allow: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalAuthorizationGrpc:
    service: str
    port: PortNumber
    timeout: Duration | None = None
    fail_open: bool = False
    clear_route_cache: bool = False
    status_on_error: str = ""
    include_request_body_in_check: ExternalAuthorizationBody | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtensionProvider:
    """A named provider; those of other sorts than authorization are kept as written."""

    name: str
    envoy_ext_authz_http: ExternalAuthorizationHttp | None = None
    envoy_ext_authz_grpc: ExternalAuthorizationGrpc | None = None
    zipkin: Struct = field(default_factory=dict)
    lightstep: Struct = field(default_factory=dict)
    datadog: Struct = field(default_factory=dict)
    stackdriver: Struct = field(default_factory=dict)
    opencensus: Struct = field(default_factory=dict)
    skywalking: Struct = field(default_factory=dict)
    opentelemetry: Struct = field(default_factory=dict)
    prometheus: Struct = field(default_factory=dict)
    envoy_file_access_log: Struct = field(default_factory=dict)
    envoy_http_als: Struct = field(default_factory=dict)
    envoy_tcp_als: Struct = field(default_factory=dict)
    envoy_otel_als: Struct = field(default_factory=dict)
    sds: Struct = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultProviders:
    tracing: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    access_logging: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """The fields of istio.mesh.v1alpha1.MeshConfig that can matter to a proxyless data plane, with Istio's defaults."""

    trust_domain: str = "cluster.local"
    trust_domain_aliases: tuple[str, ...] = ()
    root_namespace: str = "istio-system"
    enable_auto_mtls: bool = True
    mesh_mTLS: MeshTLSConfig | None = None
    outbound_traffic_policy: MeshOutboundTrafficPolicy = MeshOutboundTrafficPolicy(mode="ALLOW_ANY")
    connect_timeout: Duration = 10.0
    protocol_detection_timeout: AnyDuration | None = None
    tcp_keepalive: TcpKeepalive | None = None
    default_http_retry_policy: HTTPRetry | None = None
    default_inbound_http_retry_policy: HTTPRetry | None = None
    default_traffic_policy: DefaultTrafficPolicy | None = None
    default_service_export_to: tuple[str, ...] = ()
    default_virtual_service_export_to: tuple[str, ...] = ()
    default_destination_rule_export_to: tuple[str, ...] = ()
    locality_lb_setting: LocalityLoadBalancerSetting | None = None
    path_normalization: PathNormalization | None = None
    h2_upgrade_policy: Literal["DO_NOT_UPGRADE", "UPGRADE"] = "DO_NOT_UPGRADE"
    access_log_file: str = ""
    access_log_format: str = ""
    access_log_encoding: Literal["TEXT", "JSON"] = "TEXT"
    extension_providers: tuple[ExtensionProvider, ...] = ()
    default_providers: DefaultProviders | None = None
    proxyless: ProxylessSettings = ProxylessSettings()

    @property
    def registry_only(self) -> bool:
        """Hosts that the mesh does not know are refused."""
        return self.outbound_traffic_policy.mode == "REGISTRY_ONLY"

    @property
    def min_protocol_version(self) -> str:
        return self.mesh_mTLS.min_protocol_version if self.mesh_mTLS else "TLS_AUTO"

    @property
    def normalization(self) -> str:
        """Path normalisation by name; DEFAULT is BASE."""
        chosen = self.path_normalization.normalization if self.path_normalization else "DEFAULT"
        return "BASE" if chosen == "DEFAULT" else chosen


_NOT_FOR_US: Final = frozenset(
    [
        "caCertificates",
        "ca",
        "certificates",
        "configSources",
        "defaultConfig",
        "disableEnvoyListenerLog",
        "discoverySelectors",
        "dnsRefreshRate",
        "enableEnvoyAccessLogService",
        "enablePrometheusMerge",
        "enableTracing",
        "hboneIdleTimeout",
        "inboundClusterStatName",
        "inboundTrafficPolicy",
        "ingressClass",
        "ingressControllerMode",
        "ingressSelector",
        "ingressService",
        "outboundClusterStatName",
        "proxyHttpPort",
        "proxyInboundListenPort",
        "proxyListenPort",
        "serviceEntryVisibility",
        "serviceScopeConfigs",
        "serviceSettings",
        "tlsDefaults",
        "verifyCertificateAtClient",
        "zoneAwareLbSetting",
    ]
)
_ACCEPTED_ONLY: Final = frozenset(
    [
        "protocolDetectionTimeout",
        "tcpKeepalive",
        "h2UpgradePolicy",
        "accessLogFile",
        "accessLogFormat",
        "accessLogEncoding",
        "defaultProviders",
        "defaultInboundHttpRetryPolicy",
        "localityLbSetting",
        "extensionProviders",
    ]
)
_REASON: Final = "accepted, not acted on by proxyless"


@dataclass(frozen=True, slots=True)
class MeshResult:
    """``config`` None: refused, with the reasons in the messages."""

    config: MeshConfig | None
    messages: tuple[Message, ...] = ()

    @property
    def errors(self) -> list[ManifestError]:
        return [message.as_error() for message in self.messages if message.severity == "error"]


def load_mesh_file(path: Path) -> MeshResult:
    """Reads ``mesh.yaml``; a missing file means defaults."""
    try:
        return load_mesh_text(path.read_bytes(), str(path))
    except FileNotFoundError:
        return MeshResult(MeshConfig())
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        return MeshResult(None, (Message("error", "file", Place(str(path), 1, 1), "", reason),))


def load_mesh_text(content: bytes | str, file: str) -> MeshResult:
    context = Context(Place(file, 1, 1), Subject("MeshConfig"))
    config: MeshConfig | None = None
    for number, document in enumerate(read_documents(content, file)):
        if isinstance(document, SyntaxProblem):
            context.report("error", "yaml", "", document.reason, document.hint, document.place)
        elif number:
            context.report("error", "yaml", "", "mesh settings are one document", place=document.place)
        elif not isinstance(document, YamlMapping) or document.get("apiVersion") or document.get("kind"):
            hint = "the fields themselves, without ConfigMap or IstioOperator around them"
            context.report("error", "not-a-manifest", "", "mesh settings are a mapping", hint, document.place)
        else:
            context.place = document.place
            config = _read(context, document)
    if context.refused:
        config = None
    elif config is None:
        config = MeshConfig()
    return MeshResult(config, tuple(sorted_messages(context.messages)))


def _read(context: Context, document: YamlMapping) -> MeshConfig | None:
    ours = YamlMapping(document.place, duplicates=document.duplicates)
    for key, value in document.entries:
        if key.text in _NOT_FOR_US:
            context.report("warning", "unsupported", key.text, _REASON, place=key.place)
        elif key.text not in schema_of(MeshConfig).fields and (near := _near(key)):
            context.report("error", "unknown-field", key.text, "unknown field", near, key.place)
        else:
            ours.entries.append((key, value))
    config = decode_message(context, MeshConfig, ours, "")
    for name in sorted(_ACCEPTED_ONLY):
        if context.has(name):
            context.warn(name, _REASON, code="unsupported")
    if config is FAILED or context.failed:
        return None
    completed = _complete(config)
    _check(context, completed)
    return completed


def _near(key: YamlScalar) -> str:
    return did_you_mean(key.text, _NOT_FOR_US | schema_of(MeshConfig).fields.keys())


def _complete(config: Any) -> MeshConfig:
    """Grants without a namespace get the default one."""
    settings: ProxylessSettings = config.proxyless
    grants = tuple(
        grant if grant.namespace else replace(grant, namespace=settings.default_namespace)
        for grant in settings.workloads
    )
    completed: MeshConfig = replace(config, proxyless=replace(settings, workloads=grants))
    return completed


def _check(context: Context, config: MeshConfig) -> None:
    for path, domain in _trust_domains(config):
        if not is_host(domain, wildcard=False):
            context.error(path, f"{domain[:80]!r} is no trust domain", "for example cluster.local")
    for path, namespace in (
        ("rootNamespace", config.root_namespace),
        ("proxyless.defaultNamespace", config.proxyless.default_namespace),
    ):
        if not is_namespace(namespace):
            context.error(path, f"{namespace[:80]!r} is no namespace")
    if config.connect_timeout > 3600:
        context.error("connectTimeout", "more than an hour", code="range")
    if config.outbound_traffic_policy.mode == "ALLOW_ANY_DYNAMIC_DNS":
        context.warn("outboundTrafficPolicy.mode", "is treated as ALLOW_ANY", code="unsupported")
    for name, retry in (
        ("defaultHttpRetryPolicy", config.default_http_retry_policy),
        ("defaultInboundHttpRetryPolicy", config.default_inbound_http_retry_policy),
    ):
        if retry is not None:
            check_retry(context, name, retry)
    policy = config.default_traffic_policy
    if policy is not None and policy.connection_pool is not None:
        check_connection_pool(context, "defaultTrafficPolicy.connectionPool", policy.connection_pool)
    if policy is not None and policy.outlier_detection is not None:
        check_outlier(context, "defaultTrafficPolicy.outlierDetection", policy.outlier_detection)
    if config.locality_lb_setting is not None:
        check_locality(context, "localityLbSetting", config.locality_lb_setting)
    _check_proxyless(context, config.proxyless)


def _trust_domains(config: MeshConfig) -> Iterator[tuple[str, str]]:
    yield "trustDomain", config.trust_domain
    for index, alias in enumerate(config.trust_domain_aliases):
        yield f"trustDomainAliases[{index}]", alias


def _check_proxyless(context: Context, settings: ProxylessSettings) -> None:
    seen: set[tuple[str, str]] = set()
    for index, grant in enumerate(settings.workloads):
        path = f"proxyless.workloads[{index}]"
        if not is_namespace(grant.namespace):
            context.error(f"{path}.namespace", f"{grant.namespace[:80]!r} is no namespace")
        if grant.service_account and not is_host(grant.service_account, wildcard=False):
            context.error(f"{path}.serviceAccount", f"{grant.service_account[:80]!r} is no service account")
        for number, host in enumerate(grant.services):
            if not is_host(host, wildcard=False):
                hint = "hosts of services, without wildcards"
                context.error(f"{path}.services[{number}]", f"{host[:80]!r} is no host name", hint)
        identity = (grant.namespace, grant.service_account)
        if identity in seen:
            context.error(path, f"{grant.namespace}/{grant.service_account} stands twice", "put its services together")
        seen.add(identity)
    for origin, target in settings.address_map.items():
        path = child_path("proxyless.addressMap", origin)
        for text in (origin, target):
            if not _is_host_port(text):
                context.error(path, f"{text[:80]!r} is no address with port", "for example 127.0.0.1:8443")
    for port in settings.gateway_ports:
        if not 1 <= port <= 65535:
            context.error(child_path("proxyless.gatewayPorts", str(port)), f"{port} is no port")


def _is_host_port(text: str) -> bool:
    host, colon, port = text.rpartition(":")
    if not colon or not is_port(port):
        return False
    if host.startswith("[") and host.endswith("]"):
        try:
            return ipaddress.ip_address(host[1:-1]).version == 6
        except ValueError:
            return False
    return is_host(host, wildcard=False)
