"""The workers of one server and what they tell each other: a state file for each, in a directory of theirs.

The launcher (`proxyless run`, `proxyless.gunicorn`) makes the directory and names it in PROXYLESS_WORKERS_DIR. A worker lives as
long as it holds the lock on its file: a record lock ends with its process however that ends, and a number that the system gives
to another process later cannot take its place.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

__all__ = ["WorkerState", "Workers"]


@dataclass(frozen=True, slots=True)
class WorkerState:
    """What one worker last said of itself."""

    pid: int
    ready: bool
    reasons: tuple[str, ...]
    generation: int


class Workers:
    """Our place among the workers. One thread.

    Args:
        directory: exists, mode 0700; shared by the workers of one server and nobody else.
    """

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self._lock = -1
        self._told: WorkerState | None = None

    def tell(self, state: WorkerState) -> None:
        """Write our state if it changed."""
        if self._lock >= 0 and not self._path(state.pid, "lock").exists():  # cleaned away, as old files in /tmp are
            os.close(self._lock)
            self._lock, self._told = -1, None
        if self._lock < 0:
            self._lock = os.open(self._path(state.pid, "lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if state != self._told:
            fresh = self._path(state.pid, "new")
            fresh.write_text(json.dumps(asdict(state)))
            fresh.replace(self._path(state.pid, "json"))
            self._told = state

    def leave(self) -> None:
        """Forget us; the others see it at once."""
        if self._lock >= 0:
            self._remove(os.getpid())
            os.close(self._lock)
            self._lock = -1
            self._told = None

    def living(self) -> list[WorkerState]:
        """States of all workers that live, ours among them, by process number. What the dead left is removed."""
        states = []
        for path in sorted(self._directory.glob("worker-*.json")):
            try:
                values = json.loads(path.read_text())
                state = WorkerState(values["pid"], values["ready"], tuple(values["reasons"]), values["generation"])
            except (OSError, ValueError, KeyError):
                continue  # its owner is just leaving
            if state.pid == os.getpid() or self._lives(state.pid):
                states.append(state)
            else:
                self._remove(state.pid)
        return sorted(states, key=lambda state: state.pid)

    def _lives(self, pid: int) -> bool:
        try:
            probe = os.open(self._path(pid, "lock"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.lockf(probe, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(probe)
        return False

    def _remove(self, pid: int) -> None:
        for suffix in ("json", "lock", "new"):
            with contextlib.suppress(FileNotFoundError):
                self._path(pid, suffix).unlink()

    def _path(self, pid: int, suffix: str) -> Path:
        return self._directory / f"worker-{pid}.{suffix}"
