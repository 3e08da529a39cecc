"""What `/metrics` answers: one process alone, or all workers together through prometheus_client's multiprocess files.

PROMETHEUS_MULTIPROC_DIR must be set before prometheus_client is imported in a worker; `proxyless run` and
`proxyless.gunicorn` do that. Without it each worker shows its own numbers.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

__all__ = ["forget_dead_workers", "render", "shared_directory"]

_LIVE_GAUGE = re.compile(r"gauge_live[a-z]+_(\d+)\.db")


def shared_directory() -> str:
    """Directory of the multiprocess files; empty when every process counts for itself."""
    return os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")


def render(registry: CollectorRegistry) -> tuple[bytes, str]:
    """The text format and its content type. With several workers `registry` is not read, their files are."""
    from prometheus_client import CollectorRegistry, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST

    if shared_directory():
        from prometheus_client.multiprocess import MultiProcessCollector

        forget_dead_workers()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # its signature has no annotations
    return generate_latest(registry), CONTENT_TYPE_LATEST


def forget_dead_workers(alive: Callable[[int], bool] | None = None) -> None:
    """Drop the gauges of workers that are gone. Their counters stay: a counter never falls."""
    from prometheus_client.multiprocess import mark_process_dead

    directory = Path(shared_directory())
    pids = {int(match[1]) for path in directory.iterdir() if (match := _LIVE_GAUGE.fullmatch(path.name))}
    for pid in pids:
        if not (alive or _alive)(pid):
            with contextlib.suppress(FileNotFoundError):  # another worker is asked at the same moment
                mark_process_dead(pid, str(directory))  # type: ignore[no-untyped-call]  # its signature has no annotations


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
