"""TLS contexts: what callers present and check, and what a workload's own port does.

Certificates and trust anchors are named, not sent: SDS name `default` is the workload's own SVID, `ROOTCA` the trust
domain's bundle, ``file-root:system`` the trust store of the operating system, ``file-cert:<cert>~<key>`` and
``file-root:<ca>`` are files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proxyless.controlplane.manifest.model import ClientTLSSettings, ServerTLSSettings
from proxyless.controlplane.registry import Port, Service
from proxyless.controlplane.translate import names
from proxyless.controlplane.translate.build import Tree, extension
from proxyless.controlplane.translate.world import World

__all__ = ["gateway_socket", "inbound_socket", "istio_mutual", "plaintext", "service_sans", "simple_or_mutual"]

_UPSTREAM = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_DOWNSTREAM = "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
_NAME = "envoy.transport_sockets.tls"
_VERSIONS = {"TLSV1_0": "TLSv1_0", "TLSV1_1": "TLSv1_1", "TLSV1_2": "TLSv1_2", "TLSV1_3": "TLSv1_3"}
_INBOUND_CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
)


def istio_mutual(
    world: World,
    service: Service,
    port: Port,
    subset: str,
    settings: ClientTLSSettings | None = None,
    http2: bool = False,
) -> Tree:
    """Mutual TLS with the mesh's identities, for ISTIO_MUTUAL and for automatic mutual TLS (`settings` None)."""
    sans = list(settings.subject_alt_names) if settings else []
    sni = settings.sni if settings else ""
    return extension(
        _NAME,
        _UPSTREAM,
        {
            "common_tls_context": {
                "alpn_protocols": ["istio-peer-exchange", "istio", *(["h2"] if http2 else [])],
                "tls_params": _params("TLSv1_2", "TLSv1_3"),
                "tls_certificate_sds_secret_configs": [_secret("default")],
                "combined_validation_context": _validation("ROOTCA", sans or service_sans(world, service, port)),
            },
            "sni": sni or names.sni(port.number, subset, service.host),
        },
    )


def service_sans(world: World, service: Service, port: Port) -> list[str]:
    """The identities that the endpoints of a service may show: those of its endpoints, those whom the operator lets
    serve it, and what a ServiceEntry names."""
    accounts = {(e.namespace, e.service_account) for e in service.endpoints_of(port) if e.service_account}
    accounts.update(world.registry.identities_of(service.host))
    ids = {names.spiffe(domain, *account) for account in accounts for domain in world.trust_domains}
    return sorted(ids | set(service.subject_alt_names))


def simple_or_mutual(
    world: World, service: Service, port: Port, settings: ClientTLSSettings, credentials: bool
) -> tuple[Tree | None, bool, bool]:
    """TLS to the outside: the transport socket (None: no TLS), and whether the SNI and the expected name follow Host.

    `credentials`: `credentialName` may be used (a gateway, or a rule that selects workloads); elsewhere istiod sends a
    cluster without TLS for it.
    """
    if settings.credential_name and not credentials:
        return None, False, False
    common: Tree = {"tls_params": _params("TLSv1_2", "TLSv1_3")}
    if settings.credential_name:
        root = f"kubernetes://{settings.credential_name}-cacert"
        certificate = f"kubernetes://{settings.credential_name}"
    else:
        root = f"file-root:{settings.ca_certificates or 'system'}"
        certificate = f"file-cert:{settings.client_certificate}~{settings.private_key}"
    if settings.mode == "MUTUAL":
        common["tls_certificate_sds_secret_configs"] = [_secret(certificate)]
    sans = list(settings.subject_alt_names) or list(service.subject_alt_names)
    if not sans and settings.mode == "MUTUAL":
        sans = service_sans(world, service, port)
    if settings.insecure_skip_verify:
        common["validation_context"] = {}
    else:
        common["combined_validation_context"] = _validation(root, sans)
    socket = extension(_NAME, _UPSTREAM, {"common_tls_context": common, "sni": settings.sni})
    follow_host = not settings.sni
    return socket, follow_host, follow_host and not settings.insecure_skip_verify and not settings.subject_alt_names


def plaintext() -> Tree:
    """No TLS, said explicitly, for a transport socket match."""
    return extension("envoy.transport_sockets.raw_buffer", "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer")


def inbound_socket(world: World, alpn: Sequence[str]) -> Tree:
    """A workload's own port in mutual TLS: only peers of the mesh's trust domains get through the handshake."""
    minimum = _VERSIONS.get(world.mesh.min_protocol_version, "TLSv1_2")
    trusted = [{"prefix": f"spiffe://{domain}/"} for domain in world.trust_domains]
    return extension(
        _NAME,
        _DOWNSTREAM,
        {
            "common_tls_context": {
                "alpn_protocols": list(alpn),
                "tls_params": {**_params(minimum, "TLSv1_3"), "cipher_suites": list(_INBOUND_CIPHERS)},
                "tls_certificate_sds_secret_configs": [_secret("default")],
                "combined_validation_context": {
                    "default_validation_context": {"match_subject_alt_names": trusted},
                    "validation_context_sds_secret_config": _secret("ROOTCA"),
                },
            },
            "require_client_certificate": {"value": True},
        },
    )


def gateway_socket(settings: ServerTLSSettings) -> Tree:
    """TLS that a gateway terminates: SIMPLE, MUTUAL, OPTIONAL_MUTUAL, ISTIO_MUTUAL."""
    versions = {
        "tls_minimum_protocol_version": _VERSIONS.get(settings.min_protocol_version),
        "tls_maximum_protocol_version": _VERSIONS.get(settings.max_protocol_version),
    }
    common: Tree = {
        "alpn_protocols": ["h2", "http/1.1"],
        "tls_params": {name: version for name, version in versions.items() if version},  # Envoy's default: from 1.2
    }
    mutual = settings.mode in ("MUTUAL", "OPTIONAL_MUTUAL", "ISTIO_MUTUAL")
    if settings.mode == "ISTIO_MUTUAL":
        certificate, root = "default", "ROOTCA"
    elif settings.credential_name:
        certificate, root = (
            f"kubernetes://{settings.credential_name}",
            f"kubernetes://{settings.credential_name}-cacert",
        )
    else:
        certificate = f"file-cert:{settings.server_certificate}~{settings.private_key}"
        root = f"file-root:{settings.ca_certificates}"
    common["tls_certificate_sds_secret_configs"] = [_secret(certificate)]
    if mutual:
        common["combined_validation_context"] = _validation(root, settings.subject_alt_names)
    return extension(
        _NAME,
        _DOWNSTREAM,
        {
            "common_tls_context": common,
            "require_client_certificate": {"value": mutual and settings.mode != "OPTIONAL_MUTUAL"},
        },
    )


def _validation(root: str, sans: Sequence[str]) -> Tree:
    return {
        "default_validation_context": {"match_subject_alt_names": [_san(san) for san in sans]},
        "validation_context_sds_secret_config": _secret(root),
    }


def _san(text: str) -> Tree:
    if text.startswith("*"):
        return {"suffix": text[1:]}
    if text.endswith("*"):
        return {"prefix": text[:-1]}
    return {"exact": text}


def _secret(name: str) -> dict[str, Any]:
    """Where Envoy finds a secret: the agent beside it, as in Istio. Our data plane goes by the name alone."""
    service: Tree = {
        "api_type": "GRPC",
        "transport_api_version": "V3",
        "grpc_services": [{"envoy_grpc": {"cluster_name": "sds-grpc"}}],
        "set_node_on_first_message_only": True,
    }
    source: Tree = {"api_config_source": service, "initial_fetch_timeout": {}, "resource_api_version": "V3"}
    return {"name": name, "sds_config": source}


def _params(minimum: str, maximum: str) -> Tree:
    return {"tls_minimum_protocol_version": minimum, "tls_maximum_protocol_version": maximum}
