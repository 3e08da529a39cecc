"""The source of chance, as an argument: `random.Random` fits."""

from __future__ import annotations

from typing import Protocol

__all__ = ["Rng"]


class Rng(Protocol):
    def random(self) -> float:
        """Uniform in [0, 1)."""
        ...
