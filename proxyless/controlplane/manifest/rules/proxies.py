"""Gateway and Sidecar."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from proxyless.controlplane.manifest.context import Context
from proxyless.controlplane.manifest.model import (
    Gateway,
    IstioEgressListener,
    IstioIngressListener,
    Server,
    ServerTLSSettings,
    Sidecar,
)

from .checks import (
    check_labels,
    check_port_name,
    check_protocol,
    check_selector,
    duplicates,
    is_host,
    is_ip,
    is_namespace,
    is_port,
)
from .destination import check_connection_pool
from .routing import check_destination

__all__ = ["check_gateway", "check_sidecar"]

_UNIX: Final = "unix://"
_PLAIN_HTTP: Final = frozenset({"HTTP", "HTTP2", "GRPC", "GRPC-WEB", "HTTP_PROXY"})
_TLS: Final = frozenset({"HTTPS", "TLS"})
_CIPHERS: Final = frozenset(
    {
        *(f"ECDHE-{kind}-{cipher}" for kind in ("ECDSA", "RSA") for cipher in (
            "AES128-GCM-SHA256", "AES256-GCM-SHA384", "CHACHA20-POLY1305", "AES128-SHA", "AES256-SHA", "AES128-SHA256",
        )),
        "AES128-GCM-SHA256",
        "AES256-GCM-SHA384",
        "AES128-SHA",
        "AES256-SHA",
        "DES-CBC3-SHA",
        "PSK-AES128-CBC-SHA",
        "PSK-AES256-CBC-SHA",
        "ECDHE-PSK-AES128-CBC-SHA",
        "ECDHE-PSK-AES256-CBC-SHA",
        "ECDHE-PSK-CHACHA20-POLY1305",
    }
)  # fmt: skip


def check_gateway(context: Context, spec: Gateway) -> None:
    check_labels(context, "spec.selector", spec.selector)
    if not spec.selector:
        context.warn("spec.selector", "an empty selector: every gateway of the mesh serves it")
    for index, server in enumerate(spec.servers):
        _check_server(context, f"spec.servers[{index}]", server)
    names = [server.port.name for server in spec.servers]
    for index in duplicates(names):
        context.error(f"spec.servers[{index}].port.name", f"port name {names[index]!r} stands twice")


def _check_server(context: Context, path: str, server: Server) -> None:
    if server.port.name:
        check_port_name(context, f"{path}.port.name", server.port.name)
    check_protocol(context, f"{path}.port.protocol", server.port.protocol)
    _check_bind(context, path, server.bind, server.port.number)
    for index, host in enumerate(server.hosts):
        _check_scoped_host(context, f"{path}.hosts[{index}]", host)
    _check_server_tls(context, path, server)


def _check_bind(context: Context, path: str, bind: str, number: int) -> None:
    if bind.startswith(_UNIX):
        _check_socket_path(context, f"{path}.bind", bind)
        if number:
            context.error(f"{path}.port.number", "must be 0 with a Unix socket")
        return
    if bind and not is_ip(bind):
        context.error(f"{path}.bind", f"{bind[:80]!r} is no IP address", "an address of this machine, or unix:///path")
    if not 1 <= number <= 65535:
        context.error(f"{path}.port.number", f"{number} is no port", "from 1 to 65535")


def _check_socket_path(context: Context, path: str, bind: str) -> None:
    socket = bind.removeprefix(_UNIX)
    if not socket.startswith(("/", "@")) or len(socket) < 2:
        context.error(path, "no path of a socket", "unix:///absolute/path or unix://@name")


def _check_scoped_host(context: Context, path: str, text: str) -> None:
    namespace, slash, host = text.rpartition("/")
    if slash and namespace not in ("*", ".") and not is_namespace(namespace):
        context.error(path, f"{namespace[:80]!r} is no namespace", "namespace/host, ./host or */host")
    if not is_host(host, wildcard=True) and not is_ip(host):
        context.error(path, f"{host[:80]!r} is no host name", "a star is allowed at the beginning only")


def _check_server_tls(context: Context, path: str, server: Server) -> None:
    protocol, tls = server.port.protocol.upper(), server.tls
    if tls is None:
        if protocol in _TLS:
            context.error(f"{path}.tls", f"a server of protocol {protocol} needs tls", code="required")
        return
    if protocol in _PLAIN_HTTP and tls != ServerTLSSettings(https_redirect=tls.https_redirect):
        context.error(f"{path}.tls", f"a server of protocol {protocol} has no TLS", "set protocol: HTTPS")
        return
    check_server_tls(context, f"{path}.tls", tls)


def check_server_tls(context: Context, path: str, tls: ServerTLSSettings) -> None:
    sources = {
        "credentialName": bool(tls.credential_name),
        "credentialNames": bool(tls.credential_names),
        "tlsCertificates": bool(tls.tls_certificates),
        "serverCertificate": bool(tls.server_certificate and tls.private_key),
    }
    if tls.mode == "ISTIO_MUTUAL":
        for name, value in (
            ("credentialName", tls.credential_name),
            ("credentialNames", tls.credential_names),
            ("serverCertificate", tls.server_certificate),
            ("privateKey", tls.private_key),
            ("caCertificates", tls.ca_certificates),
            ("caCrl", tls.ca_crl),
            ("tlsCertificates", tls.tls_certificates),
        ):
            if value:
                context.error(f"{path}.{name}", "is not allowed with ISTIO_MUTUAL")
    elif tls.mode in _NO_FILES:
        for name, present in sources.items():
            if present:
                context.warn(f"{path}.{name}", f"{tls.mode} does not use certificates", code="no-effect")
    else:
        _check_certificates(context, path, tls, sources)
    _check_ciphers(context, path, tls.cipher_suites)


_NO_FILES: Final = ("PASSTHROUGH", "AUTO_PASSTHROUGH")


def _check_certificates(context: Context, path: str, tls: ServerTLSSettings, sources: dict[str, bool]) -> None:
    chosen = [name for name, present in sources.items() if present]
    if len(chosen) > 1:
        context.error(f"{path}.{chosen[1]}", f"excludes {chosen[0]}", f"one of {', '.join(sources)}")
    if tls.mode in ("MUTUAL", "OPTIONAL_MUTUAL") and not any(
        (tls.credential_name, tls.credential_names, tls.ca_certificates, tls.ca_cert_credential_name)
    ):
        hint = "caCertificates or credentialName"
        context.error(f"{path}.caCertificates", f"{tls.mode} needs the CA of its clients", hint, code="required")
    if chosen in ([], ["serverCertificate"]):
        pairs = [(path, tls.server_certificate, tls.private_key)]
    else:
        pairs = [
            (f"{path}.tlsCertificates[{index}]", pair.server_certificate, pair.private_key)
            for index, pair in enumerate(tls.tls_certificates)
        ]
    for where, certificate, key in pairs:
        for name, value in (("serverCertificate", certificate), ("privateKey", key)):
            if not value:
                context.error(f"{where}.{name}", f"required with {tls.mode}, or credentialName", code="required")


def _check_ciphers(context: Context, path: str, suites: Sequence[str]) -> None:
    for index, suite in enumerate(suites):
        if suite.lstrip("-+!") not in _CIPHERS:
            context.warn(f"{path}.cipherSuites[{index}]", f"unknown cipher suite {suite[:60]!r}: it is ignored")
    for index in duplicates(suites):
        context.warn(f"{path}.cipherSuites[{index}]", f"{suites[index]!r} stands twice")


def check_sidecar(context: Context, spec: Sidecar) -> None:
    if spec == Sidecar():
        context.error("spec", "an empty Sidecar", "egress, ingress or outboundTrafficPolicy", code="required")
    if spec.workload_selector is not None:
        check_selector(context, "spec.workloadSelector", spec.workload_selector.labels, "labels")
    for index, listener in enumerate(spec.egress):
        _check_egress(context, f"spec.egress[{index}]", listener, is_last=index == len(spec.egress) - 1)
    for index, ingress in enumerate(spec.ingress):
        _check_ingress(context, f"spec.ingress[{index}]", ingress)
    for field, numbers in (
        ("egress", [listener.port.number if listener.port else None for listener in spec.egress]),
        ("ingress", [listener.port.number for listener in spec.ingress]),
    ):
        for index in duplicates(number or f"unnumbered {position}" for position, number in enumerate(numbers)):
            context.error(f"spec.{field}[{index}].port.number", f"port {numbers[index]} stands twice")
    binds = [listener.bind for listener in spec.egress]
    for index in duplicates(bind or position for position, bind in enumerate(binds)):
        if binds[index].startswith(_UNIX):
            context.error(f"spec.egress[{index}].bind", f"{binds[index]} stands twice")
    policy = spec.outbound_traffic_policy
    if policy is not None and policy.egress_proxy is not None:
        path = "spec.outboundTrafficPolicy.egressProxy"
        check_destination(context, path, policy.egress_proxy)
        if policy.egress_proxy.port is None:
            context.error(f"{path}.port", "required field is missing", code="required")
    if spec.inbound_connection_pool is not None:
        check_connection_pool(context, "spec.inboundConnectionPool", spec.inbound_connection_pool)


def _check_egress(context: Context, path: str, listener: IstioEgressListener, *, is_last: bool) -> None:
    if listener.port is None:
        if not is_last:
            context.error(path, "only the last egress listener may leave out its port", code="required")
        if listener.bind:
            context.error(f"{path}.bind", "a listener with bind needs a port")
        if listener.capture_mode not in ("DEFAULT", "IPTABLES"):
            context.error(f"{path}.captureMode", "a listener without port uses the default")
    else:
        check_protocol(context, f"{path}.port.protocol", listener.port.protocol)
        _check_bind(context, path, listener.bind, listener.port.number or 0)
        if listener.bind.startswith(_UNIX) and listener.capture_mode not in ("DEFAULT", "NONE"):
            context.error(f"{path}.captureMode", "a Unix socket cannot be captured", "leave it out, or NONE")
    for index, host in enumerate(listener.hosts):
        _check_egress_host(context, f"{path}.hosts[{index}]", host)


def _check_egress_host(context: Context, path: str, text: str) -> None:
    namespace, slash, host = text.partition("/")
    form = "namespace/host, for example ./*, */* or shop/cart.shop.svc.cluster.local"
    if not slash or not namespace or not host:
        context.error(path, f"{text[:80]!r} has not the form namespace/host", form)
        return
    scope = namespace.removeprefix("~")
    if namespace not in ("*", ".", "~", "~*", "~.") and not is_namespace(scope):
        context.error(path, f"{namespace[:80]!r} is no namespace", form)
    if not is_host(host, wildcard=True):
        context.error(path, f"{host[:80]!r} is no host name", form)


def _check_ingress(context: Context, path: str, listener: IstioIngressListener) -> None:
    check_protocol(context, f"{path}.port.protocol", listener.port.protocol)
    if not 1 <= (listener.port.number or 0) <= 65535:
        context.error(f"{path}.port.number", f"{listener.port.number or 0} is no port", "from 1 to 65535")
    if listener.bind and not is_ip(listener.bind):
        context.error(f"{path}.bind", f"{listener.bind[:80]!r} is no IP address")
    if listener.default_endpoint:
        _check_default_endpoint(context, f"{path}.defaultEndpoint", listener.default_endpoint)
    protocol = listener.port.protocol.upper()
    if listener.tls is not None:
        _check_ingress_tls(context, f"{path}.tls", listener.tls, protocol)
    pool = listener.connection_pool
    if pool is not None:
        check_connection_pool(context, f"{path}.connectionPool", pool)
        if pool.http is not None and protocol in ("TCP", "TLS", "MONGO", "REDIS", "MYSQL"):
            context.warn(f"{path}.connectionPool.http", f"has no effect on protocol {protocol}", code="no-effect")


def _check_default_endpoint(context: Context, path: str, endpoint: str) -> None:
    if endpoint.startswith(_UNIX):
        _check_socket_path(context, path, endpoint)
        return
    host, _, port = endpoint.rpartition(":")
    if host not in ("127.0.0.1", "0.0.0.0", "[::1]", "[::]", "") or (not host and endpoint[:1] != ":"):  # noqa: S104 - a word of Istio's, nothing is bound
        hint = "127.0.0.1:port, 0.0.0.0:port, [::1]:port, [::]:port or unix:///path"
        context.error(path, f"{endpoint[:80]!r} is not on this machine", hint)
    if not is_port(port):
        context.error(path, f"{port[:20]!r} is no port", "from 1 to 65535")


def _check_ingress_tls(context: Context, path: str, tls: ServerTLSSettings, protocol: str) -> None:
    if tls.mode in ("ISTIO_MUTUAL", "AUTO_PASSTHROUGH"):
        context.error(f"{path}.mode", f"{tls.mode} is not possible here", "SIMPLE, MUTUAL or OPTIONAL_MUTUAL")
    if protocol not in _TLS:
        context.error(path, f"a listener of protocol {protocol or 'unknown'} has no TLS", "set protocol: HTTPS or TLS")
    for name, value in (
        ("httpsRedirect", tls.https_redirect),
        ("subjectAltNames", tls.subject_alt_names),
        ("credentialName", tls.credential_name),
        ("credentialNames", tls.credential_names),
        ("tlsCertificates", tls.tls_certificates),
    ):
        if value:
            context.error(f"{path}.{name}", "is not possible in a Sidecar")
    check_server_tls(context, path, tls)
