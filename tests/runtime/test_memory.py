"""Giving memory back changes nothing else, and needs no glibc."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from proxyless.runtime import memory


def test_a_c_library_without_the_calls_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        def __init__(self, name: str | None) -> None:
            pass

    monkeypatch.setattr(ctypes, "CDLL", Other)
    memory.few_arenas()
    memory.give_back()


def test_the_environment_decides_about_arenas(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(memory, "_call", lambda name, *arguments: called.append(name))
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    memory.few_arenas()
    assert called == []
    monkeypatch.delenv("MALLOC_ARENA_MAX")
    memory.few_arenas()
    assert called == ["mallopt"]


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_code_that_was_given_back_still_runs() -> None:
    code = """
import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from proxyless.runtime import memory

def resident():
    return int(open("/proc/self/statm").read().split()[1])

def use():
    digest = hashes.Hash(hashes.SHA256())
    digest.update(b"x")
    with grpc.insecure_channel("unix:/nowhere") as channel:
        try:
            channel.unary_unary("/a/b")(b"", timeout=0.2)
        except grpc.RpcError as error:
            return digest.finalize().hex()[:4], error.code().name

before = use()
full = resident()
memory.give_back()
dropped = full - resident()
assert use() == before, before
assert dropped > 500, dropped
assert len(list(memory._code())) >= 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="there is no /proc")
def test_only_code_that_cannot_be_written_is_given_back() -> None:
    import grpc  # noqa: F401 - so that there is code

    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    permissions = {tuple(int(each, 16) for each in line[0].split("-")): (line[1], line[-1]) for line in lines}
    for where in memory._code():
        allowed, path = permissions[where]
        assert allowed == "r-xp"
        assert "cygrpc" in path or "_rust" in path
