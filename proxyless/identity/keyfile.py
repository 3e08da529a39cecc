"""Give a certificate and key to `ssl`, which reads them from a path only, without leaving the key on a disk (rule M-43)."""

from __future__ import annotations

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path

from proxyless.identity.svid import X509Svid

__all__ = ["load_svid"]


def load_svid(context: ssl.SSLContext, svid: X509Svid) -> None:
    """Load the SVID as the certificate of `context`.

    Raises:
        ssl.SSLError: OpenSSL refuses it, for example because the key does not fit.
    """
    with _as_path(svid.key_pem() + svid.chain_pem()) as path:
        context.load_cert_chain(path)


@contextlib.contextmanager
def _as_path(content: bytes) -> Iterator[str]:
    """A path that can be opened several times while the block runs, and that only this user can read."""
    opened = _memory_file(content)
    if opened is None:
        with _private_file(content) as path:
            yield path
        return
    try:
        yield f"/proc/self/fd/{opened}"
    finally:
        os.close(opened)


def _memory_file(content: bytes) -> int | None:
    """An anonymous file in memory; None where the system has none, or no /proc to name it by."""
    if not hasattr(os, "memfd_create"):
        return None
    try:
        opened = os.memfd_create("identity", os.MFD_CLOEXEC)
    except OSError:
        return None
    try:
        _write_all(opened, content)
        if Path(f"/proc/self/fd/{opened}").exists():
            return opened
    except BaseException:
        os.close(opened)
        raise
    os.close(opened)
    return None


@contextlib.contextmanager
def _private_file(content: bytes) -> Iterator[str]:
    """A 0600 file in a 0700 directory, on tmpfs where there is one; gone when the block ends."""
    memory = "/dev/shm"  # noqa: S108 - a private directory of a fresh name is made in it
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        path = Path(folder) / "identity"
        opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            _write_all(opened, content)
        finally:
            os.close(opened)
        yield str(path)


def _write_all(opened: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(opened, view) :]
