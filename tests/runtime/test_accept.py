"""Blocking connections between accept and the first request."""

from __future__ import annotations

import fcntl
import resource
import socket

import pytest

from proxyless.runtime.accept import accept_blocking, connection_of
from proxyless.runtime.inbound import gate_of
from tests.asgi.helpers import Fixture, World


def test_a_connection_beyond_descriptor_1023_is_served() -> None:
    """`select` ends there; a server with many threads has more connections than that."""
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2100:
        pytest.skip("this process may not have that many descriptors")
    fixture = Fixture(World())
    fixture.configure("PERMISSIVE")
    ours, theirs = socket.socketpair()
    with theirs, ours, socket.socket(fileno=fcntl.fcntl(ours.fileno(), fcntl.F_DUPFD_CLOEXEC, 2000)) as high:
        theirs.sendall(b"GET / HTTP/1.1\r\n")
        assert accept_blocking(gate_of(fixture.mesh), high) is high
        connection = connection_of(high)
    assert connection is not None
    assert connection.peer.identity is None
