"""Transport sockets -> `UpstreamTls` / `DownstreamTls` (None: plain text).

Secrets are known by name: Istio's `default` and `ROOTCA` and the certificate provider instance `default` mean our own SVID
and bundles; `file-cert:<certificate>~<key>`, `file-root:<file>` and `file-root:system` mean files and the system's trust
store. A secret that is not ours to fetch becomes `TlsMaterial.UNKNOWN`: such connections fail, the others do not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from proxyless.core.matchers import StringMatcher
from proxyless.core.resources import DownstreamTls, TlsMaterial, UpstreamTls
from proxyless.xds.decode.errors import FieldError, at, each
from proxyless.xds.decode.match import string_matcher
from proxyless.xds.decode.values import present_or, unwrap

__all__ = ["downstream_tls", "is_known_secret", "upstream_tls"]

_TLS = "envoy.extensions.transport_sockets.tls.v3."
_RAW = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_MESH_CERTIFICATE, _MESH_ROOTS, _MESH_PROVIDER = "default", "ROOTCA", "default"
_MAX_SNI = 255
_TLS_1_3 = 4  # TlsParameters.TlsProtocol; 1.2 is the floor here whatever the configuration says
_SAN_TYPES_CHECKED = frozenset({"SAN_TYPE_UNSPECIFIED", "DNS", "URI"})
# Checks that we do not make: to ignore one would accept a peer that the configuration refuses.
_REFUSED_CHECKS = (
    "verify_certificate_spki",
    "verify_certificate_hash",
    "require_signed_certificate_timestamp",
    "crl",
    "custom_validator_config",
    "max_verify_depth",
)


class _Certificate(NamedTuple):
    material: TlsMaterial
    file: str = ""
    key: str = ""


class _Validation(NamedTuple):
    material: TlsMaterial
    file: str = ""
    sans: tuple[StringMatcher, ...] = ()


def is_known_secret(name: str) -> bool:
    """There is a source for this SDS secret."""
    return {_certificate_secret(name).material, _roots_secret(name).material} != {TlsMaterial.UNKNOWN}


def upstream_tls(socket: Any) -> UpstreamTls | None:
    """A core.v3.TransportSocket of a cluster."""
    context = _context(socket, "UpstreamTlsContext")
    if context is None:
        return None
    if len(context.sni) > _MAX_SNI:
        raise FieldError("sni", f"longer than {_MAX_SNI}")
    common = context.common_tls_context
    certificate = at("common_tls_context", _certificate, common)
    validation = at("common_tls_context", _validation, common)
    return UpstreamTls(
        sni=context.sni,
        alpn=tuple(common.alpn_protocols),
        certificate=certificate.material,
        certificate_file=certificate.file,
        key_file=certificate.key,
        validation=validation.material,
        ca_file=validation.file,
        san_matchers=validation.sans,
        tls13_only=common.tls_params.tls_minimum_protocol_version >= _TLS_1_3,
    )


def downstream_tls(socket: Any) -> DownstreamTls | None:
    """A core.v3.TransportSocket of a filter chain."""
    context = _context(socket, "DownstreamTlsContext")
    if context is None:
        return None
    common = context.common_tls_context
    certificate = at("common_tls_context", _certificate, common)
    validation = at("common_tls_context", _validation, common)
    if certificate.material is TlsMaterial.NONE:
        raise FieldError("common_tls_context", "a server needs a certificate")
    require = bool(present_or(context, "require_client_certificate", False))
    if require and validation.material is TlsMaterial.NONE:
        raise FieldError("require_client_certificate", "needs a validation context")
    return DownstreamTls(
        require_client_certificate=require,
        alpn=tuple(common.alpn_protocols),
        certificate=certificate.material,
        certificate_file=certificate.file,
        key_file=certificate.key,
        validation=validation.material,
        ca_file=validation.file,
        san_matchers=validation.sans,
        tls13_only=common.tls_params.tls_minimum_protocol_version >= _TLS_1_3,
    )


def _context(socket: Any, kind: str) -> Any | None:
    name, found = unwrap(socket.typed_config)
    if name == _RAW or (not name and socket.name == "envoy.transport_sockets.raw_buffer"):
        return None
    if name != _TLS + kind or found is None:
        raise FieldError("typed_config", f"transport socket {name or socket.name!r} is not supported")
    if not found.HasField("common_tls_context"):
        raise FieldError("common_tls_context", "is not set")
    return found


def _certificate(common: Any) -> _Certificate:
    for field in ("tls_certificate_provider_instance", "tls_certificate_certificate_provider_instance"):
        if common.HasField(field):
            ours = getattr(common, field).instance_name == _MESH_PROVIDER
            return _Certificate(TlsMaterial.MESH if ours else TlsMaterial.UNKNOWN)
    if common.tls_certificate_sds_secret_configs:
        return _certificate_secret(common.tls_certificate_sds_secret_configs[0].name)
    if common.tls_certificates:
        first = common.tls_certificates[0]
        chain, key = first.certificate_chain.filename, first.private_key.filename
        if not chain or not key:
            raise FieldError("tls_certificates[0]", "only certificates in files are supported")
        return _Certificate(TlsMaterial.FILE, chain, key)
    return _Certificate(TlsMaterial.NONE)


def _certificate_secret(name: str) -> _Certificate:
    if name == _MESH_CERTIFICATE:
        return _Certificate(TlsMaterial.MESH)
    if name.startswith("file-cert:"):
        certificate, separator, key = name.removeprefix("file-cert:").partition("~")
        if certificate and separator and key:
            return _Certificate(TlsMaterial.FILE, certificate, key)
    return _Certificate(TlsMaterial.UNKNOWN, name)


def _validation(common: Any) -> _Validation:
    match common.WhichOneof("validation_context_type"):
        case "combined_validation_context":
            return at("combined_validation_context", _combined, common.combined_validation_context)
        case "validation_context":
            return at("validation_context", _context_of, common.validation_context)
        case "validation_context_sds_secret_config":
            return _roots_secret(common.validation_context_sds_secret_config.name)
        case "validation_context_certificate_provider_instance":
            return _provider(common.validation_context_certificate_provider_instance)
        case None:
            return _Validation(TlsMaterial.NONE)
    raise ValueError("this kind of validation context is not supported")


def _combined(value: Any) -> _Validation:
    """The secret gives the trust anchors, the default context the names; what the secret sets wins."""
    default = at("default_validation_context", _context_of, value.default_validation_context)
    if value.HasField("validation_context_sds_secret_config"):
        roots = _roots_secret(value.validation_context_sds_secret_config.name)
    elif value.HasField("validation_context_certificate_provider_instance"):
        roots = _provider(value.validation_context_certificate_provider_instance)
    else:
        return default
    return _Validation(roots.material, roots.file, default.sans)


def _context_of(value: Any) -> _Validation:
    for field in _REFUSED_CHECKS:
        if field in dict.fromkeys(descriptor.name for descriptor, _ in value.ListFields()):
            raise FieldError(field, "this check is not supported")
    if value.trust_chain_verification != 0:
        raise FieldError("trust_chain_verification", "only VERIFY_TRUST_CHAIN is supported")
    sans = each("match_subject_alt_names", string_matcher, value.match_subject_alt_names)
    sans += each("match_typed_subject_alt_names", _typed_san, value.match_typed_subject_alt_names)
    if value.HasField("ca_certificate_provider_instance"):
        return _provider(value.ca_certificate_provider_instance)._replace(sans=sans)
    if value.HasField("system_root_certs"):
        return _Validation(TlsMaterial.SYSTEM, sans=sans)
    if value.HasField("trusted_ca"):
        if not value.trusted_ca.filename:
            raise FieldError("trusted_ca", "only trust anchors in files are supported")
        return _Validation(TlsMaterial.FILE, value.trusted_ca.filename, sans)
    return _Validation(TlsMaterial.NONE, sans=sans)


def _typed_san(value: Any) -> StringMatcher:
    kind = value.DESCRIPTOR.fields_by_name["san_type"].enum_type.values_by_number[value.san_type].name
    if kind not in _SAN_TYPES_CHECKED:
        raise FieldError("san_type", f"{kind} names are not checked")
    return at("matcher", string_matcher, value.matcher)


def _provider(value: Any) -> _Validation:
    return _Validation(TlsMaterial.MESH if value.instance_name == _MESH_PROVIDER else TlsMaterial.UNKNOWN)


def _roots_secret(name: str) -> _Validation:
    if name == _MESH_ROOTS:
        return _Validation(TlsMaterial.MESH)
    if name == "file-root:system":
        return _Validation(TlsMaterial.SYSTEM)
    if name.startswith("file-root:") and len(name) > len("file-root:"):
        return _Validation(TlsMaterial.FILE, name.removeprefix("file-root:"))
    return _Validation(TlsMaterial.UNKNOWN, name)
