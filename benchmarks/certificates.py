"""Certificates for the bare side: one authority, a server and a client leaf, P-256, as the mesh's."""

from __future__ import annotations

from pathlib import Path

from proxyless.controlplane.authority import Authority
from proxyless.spiffe import SpiffeId


def write_certificates(folder: Path) -> tuple[str, str, str]:
    """Paths of server, client (key and chain in one file each) and authority, in a private directory."""
    authority = Authority("bench.test")
    paths = []
    for name in ("server", "client"):
        svid = authority.issue(SpiffeId.parse(f"spiffe://bench.test/ns/default/sa/{name}"), dns_names=("localhost",))
        path = folder / f"{name}.pem"
        path.touch(0o600)
        path.write_bytes(svid.key_pem() + svid.chain_pem())
        paths.append(str(path))
    roots = folder / "authority.pem"
    roots.write_bytes(b"".join(_pem(der) for der in authority.bundle))
    return paths[0], paths[1], str(roots)


def _pem(der: bytes) -> bytes:
    import ssl

    return ssl.DER_cert_to_PEM_cert(der).encode()
