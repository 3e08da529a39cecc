"""What a story may use: the running mesh, seen from outside.

A story is a Python file with `STEPS`, a list of `Step`. Each step's function gets the `Stage` and returns a `Measured`, or
raises `AssertionError` with what did not hold. Counts come from the receivers: their admin listeners' metrics.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from proxyless.cli.dev.processes import Child

__all__ = ["Measured", "Stage", "Step"]

_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Measured:
    """What a step saw. `text` is one line for people, `data` the same for programs."""

    text: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Step:
    """`shows` says what is expected, before it is measured."""

    name: str
    shows: str
    play: Callable[[Stage], Awaitable[Measured]]


class Stage:
    """The running mesh.

    Attributes:
        children: processes by name; `gateway` is one of them.
        config: the copy of the manifests that the control plane watches. Editing it is what an operator does.
        gateway: base URL of the gateway's port 80; empty without a gateway.
        notes: for steps that belong together.
    """

    def __init__(self, children: Mapping[str, Child], config: Path, gateway: str) -> None:
        self.children, self.config, self.gateway = children, config, gateway
        self.notes: dict[str, Any] = {}
        self._client = httpx.AsyncClient(timeout=60.0, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, process: str, path: str) -> Any:
        """Call a process directly, as a person with curl would; its JSON."""
        answer = await self._client.get(f"http://127.0.0.1:{self.children[process].port}{path}")
        assert answer.status_code == 200, f"GET {process}{path}: {answer.status_code} {answer.text[:200]}"  # noqa: S101 - a step that does not hold says so by AssertionError
        return answer.json()

    async def through_gateway(self, host: str, path: str) -> httpx.Response:
        """Call the gateway from outside."""
        return await self._client.get(f"{self.gateway}{path}", headers={"host": host})

    async def metric(self, process: str, name: str, **labels: str) -> float:
        """Sum of the samples of a metric, at the admin listener of a process, that have these labels."""
        text = (await self._client.get(f"http://127.0.0.1:{self.children[process].admin}/metrics")).text
        total = 0.0
        for line in text.splitlines():
            sample = _SAMPLE.match(line)
            if sample is None or sample["name"] != name:
                continue
            seen = dict(_LABEL.findall(sample["labels"] or ""))
            if all(seen.get(key) == value for key, value in labels.items()):
                total += float(sample["value"])
        return total

    async def received(self, process: str, **labels: str) -> int:
        """Requests that a process has received, by its own count."""
        return int(await self.metric(process, "istio_requests_total", reporter="destination", **labels))

    def edit(self, file: str, change: Callable[[str], str]) -> None:
        """Edit a manifest while everything runs."""
        path = self.config / file
        path.write_text(change(path.read_text()))

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]], timeout: float) -> float:
        """Wait for a condition; the seconds it took.

        Raises:
            AssertionError: it does not hold in time.
        """
        start = time.monotonic()
        while not await condition():
            if time.monotonic() - start > timeout:
                raise AssertionError(f"{what}: not within {timeout:.0f} s")
            await asyncio.sleep(0.1)
        return time.monotonic() - start
