"""A back-off ends early when the server behind a socket has started again, and only then."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from proxyless.unix import sit_out


def bind(path: Path) -> socket.socket:
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    return server


@pytest.mark.parametrize("before", [True, False], ids=["there before", "missing before"])
def test_a_socket_that_is_bound_anew_ends_the_wait(tmp_path: Path, before: bool) -> None:
    path = tmp_path / "agent.sock"
    if before:
        bind(path).close()
    looks = 0

    def wait(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            path.unlink(missing_ok=True)
            bind(path).close()

    sit_out(60.0, wait, str(path))
    assert looks == 3


def test_a_socket_that_goes_away_does_not_end_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    bind(path).close()
    waited: list[float] = []

    def wait(seconds: float) -> bool:
        path.unlink(missing_ok=True)
        waited.append(seconds)
        return len(waited) == 4

    sit_out(60.0, wait, str(path))
    assert len(waited) == 4


def test_whoever_waits_can_end_it(tmp_path: Path) -> None:
    waited: list[float] = []
    sit_out(60.0, lambda seconds: waited.append(seconds) or True, str(tmp_path / "none.sock"))  # type: ignore[func-returns-value]  # one line
    assert len(waited) == 1


def test_it_ends_by_itself(tmp_path: Path) -> None:
    started = time.monotonic()
    sit_out(0.02, time.sleep, str(tmp_path / "none.sock"))
    sit_out(0.02, time.sleep, "")
    assert 0.04 <= time.monotonic() - started < 5.0
