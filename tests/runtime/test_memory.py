"""Giving memory back changes nothing else, and needs no glibc."""

from __future__ import annotations

import ctypes

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
