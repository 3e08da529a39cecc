"""Where clients come in: the socket of one workload, or TCP with mutual TLS. Both say who is at the other end."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
import grpc.aio

from proxyless.controlplane.ads import Identify
from proxyless.controlplane.authority import Authority, renewal_time
from proxyless.errors import InvalidSvidError, PeerVerificationError, SettingsError
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.svid import X509Svid
from proxyless.identity.verify import verify_peer
from proxyless.spiffe import SpiffeId

__all__ = ["Handlers", "RunDirectory", "TcpTls", "open_socket"]

log = logging.getLogger("proxyless.controlplane")

SERVER_ACCOUNT = "proxyless-control-plane"

# As istiod: a client that is gone without a word is noticed after 40 s.
OPTIONS = (
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)

Handlers = Callable[[Identify], Iterable[Any]]
"""The generic RPC handlers of a listener whose callers are named by the argument."""


class RunDirectory:
    """The private directory of a control plane: ``workloads/<namespace>/<service account>/`` with the sockets of each.

    All of it is 0700: the kernel lets only processes of the same user reach a socket, and those are one trust boundary.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    def claim(self) -> None:
        """Make it and lock it.

        Raises:
            SettingsError: it belongs to somebody else, is open to others, or another control plane uses it.
        """
        _private(self.path)
        lock = os.open(self.path / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(lock)
            raise SettingsError(f"run directory {self.path}: another control plane uses it") from None
        self._lock = lock

    def release(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def workload(self, namespace: str, service_account: str) -> Path:
        """The directory of one workload, made when missing."""
        folder = self.path
        for part in ("workloads", namespace, service_account):
            folder = folder / part
            _private(folder)
        return folder

    def forget(self, namespace: str, service_account: str) -> None:
        """Remove the directory of a workload; what is not ours in it stays."""
        with contextlib.suppress(OSError):
            (self.path / "workloads" / namespace / service_account).rmdir()


def _private(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise SettingsError(
            f"directory {folder} must belong to this user and be closed to others (mode 0700, it is "
            f"{stat.S_IMODE(found.st_mode):04o}): who can open a socket in it has that workload's identity"
        )


async def open_socket(path: Path, identity: SpiffeId, handlers: Handlers) -> grpc.aio.Server:
    """Listen on a Unix socket whose callers all are `identity`.

    Raises:
        SettingsError: it cannot be bound.
    """
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers(tuple(handlers(lambda _: identity)))
    try:
        server.add_insecure_port(f"unix:{quote(str(path))}")
    except RuntimeError as error:
        raise SettingsError(f"cannot listen on {path}: {error}") from None
    await server.start()
    os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
    return server


class TcpTls:
    """ADS on TCP: mutual TLS with SVIDs, ours renewed at half life. Callers are who their certificate says.

    gRPC's TLS checks the chain against our trust domain; the SPIFFE rules are then applied to the leaf by `verify_peer`.
    The server's certificate has the DNS name ``control-plane.<trust domain>``, which gRPC clients check, and the host of the
    address when that is a name.
    """

    def __init__(self, authority: Authority, namespace: str, host: str) -> None:
        self._authority = authority
        self.spiffe_id = SpiffeId.of(authority.trust_domain, "ns", namespace, "sa", SERVER_ACCOUNT)
        names = [f"control-plane.{authority.trust_domain}"]
        if host and not host.replace(".", "").isdigit() and ":" not in host:
            names.append(host)
        self._names = tuple(names)
        self._svid: X509Svid = self._issue()
        self._anchors: tuple[bytes, ...] = ()

    async def listen(self, address: str, handlers: Handlers) -> tuple[grpc.aio.Server, int]:
        """Start to serve; the port that was bound.

        Raises:
            SettingsError: the address cannot be bound.
        """
        wanted = address.rpartition(":")[2]
        if (
            not (wanted.isascii() and wanted.isdigit()) or int(wanted[:6]) > 65535
        ):  # gRPC would take the port modulo 65536
            raise SettingsError(f"cannot listen on {address}: write host:port, for example 127.0.0.1:15012")
        server = grpc.aio.server(options=OPTIONS)
        server.add_generic_rpc_handlers(tuple(handlers(self.identify)))
        credentials = grpc.dynamic_ssl_server_credentials(
            self._configuration(), self._renewed, require_client_authentication=True
        )
        try:
            port = server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise SettingsError(f"cannot listen on {address}: {error}") from None
        await server.start()
        return server, port

    def identify(self, context: Any) -> SpiffeId | None:
        """The verified identity of a caller; None when its certificate breaks a rule, which is logged."""
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        properties = context.auth_context()
        pem = b"".join(properties.get("x509_pem_cert_chain") or properties.get("x509_pem_cert") or ())
        try:
            chain = [found.public_bytes(Encoding.DER) for found in x509.load_pem_x509_certificates(pem)]
            bundles = {domain: TrustBundle(domain, anchors) for domain, anchors in self._authority.bundles.items()}
            return verify_peer(chain, bundles, "client", self._authority.now()).spiffe_id
        except (ValueError, InvalidSvidError, PeerVerificationError) as error:
            log.warning("xDS caller %s refused: %s", context.peer(), error)
            return None

    def _issue(self) -> X509Svid:
        svid = self._authority.issue(self.spiffe_id, dns_names=self._names)
        self._due = renewal_time(svid, self._authority.now())
        return svid

    def _renewed(self) -> Any:
        """Called by gRPC before each handshake: a new configuration, or None to keep the one before."""
        if self._authority.now() < self._due and self._anchors == self._authority.bundle:
            return None
        self._svid = self._issue()
        return self._configuration()

    def _configuration(self) -> Any:
        self._anchors = self._authority.bundle
        return grpc.ssl_server_certificate_configuration(
            [(self._svid.key_pem(), self._svid.chain_pem())],
            root_certificates=TrustBundle(self._authority.trust_domain, self._anchors).pem(),
        )
