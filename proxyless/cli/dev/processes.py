"""Child processes of a development mesh: started, watched, waited for, ended. Nothing of them is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import httpx

from proxyless.errors import ProxylessError

__all__ = ["Child", "ProcessFailedError", "free_port"]

STOP_TIMEOUT = 8.0
# Runs its arguments, and has the kernel end them with us, however we end (prctl PR_SET_PDEATHSIG; Linux, elsewhere nothing).
_WITH_PARENT = """
import os, sys
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class ProcessFailedError(ProxylessError):
    """A child process ended or did not become ready; the text has the end of its log."""


def free_port(preferred: int = 0) -> int:
    """A TCP port of the loopback interface that nobody uses now; the preferred one if it is free. None twice, and none of those
    (from 32768 on) that the kernel gives to whoever connects before our process listens."""
    candidates = [preferred] if preferred else []
    candidates += random.sample(range(20_000, 32_000), 100)
    for port in candidates:
        if port in _GIVEN:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _GIVEN.add(port)
        return port
    raise ProcessFailedError("no free port on 127.0.0.1")


_GIVEN: set[int] = set()


class Child:
    """One process. `admin` is the port of its admin listener, 0 for a process outside of the mesh."""

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path, port: int, admin: int
    ) -> None:
        self.name, self.port, self.admin, self.log = name, port, admin, log
        self._command, self._cwd = list(command), cwd
        self._env = {**os.environ, **env}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """From the main thread: a child ends with the thread that started it."""
        command = [sys.executable, "-c", _WITH_PARENT, str(os.getpid()), *self._command]
        with self.log.open("ab") as log:
            # A session of its own: Ctrl-C reaches us alone, and we end the children in order.
            self._process = subprocess.Popen(  # noqa: S603 - the operator's own dev.yaml names the command
                command, env=self._env, cwd=self._cwd, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    async def wait_ready(self, timeout: float) -> None:
        """Wait until the admin listener, if there is one, says ready, and the port accepts connections.

        Raises:
            ProcessFailedError: it ended, or is not ready in time.
        """
        end = time.monotonic() + timeout
        reason = "does not answer"
        async with httpx.AsyncClient(timeout=1.0, trust_env=False) as client:
            while time.monotonic() < end:
                if self._process is not None and self._process.poll() is not None:
                    raise ProcessFailedError(f"{self.name} ended with {self._process.returncode}:\n{self.tail()}")
                ready, reason = await self._ready(client)
                if ready:
                    return
                await asyncio.sleep(0.05)
        raise ProcessFailedError(f"{self.name} is not ready after {timeout:.0f} s: {reason}\n{self.tail()}")

    async def _ready(self, client: httpx.AsyncClient) -> tuple[bool, str]:
        try:
            if self.admin:
                answer = await client.get(f"http://127.0.0.1:{self.admin}/ready")
                if answer.status_code != 200:
                    return False, answer.text.strip()
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.close()
        except (httpx.HTTPError, OSError) as error:
            return False, str(error) or type(error).__name__
        return True, ""

    def tail(self, lines: int = 15) -> str:
        """The end of the log."""
        try:
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        except OSError:
            return ""

    def interrupt(self) -> None:
        """Ask it to end."""
        if self._process is not None and self._process.poll() is None:
            self._signal(signal.SIGTERM)

    def stop(self) -> None:
        """Wait for the end; kill what does not end in time."""
        process = self._process
        if process is None:
            return
        self.interrupt()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT)
        self._signal(signal.SIGKILL)  # workers of its own, if any are left
        process.wait()

    def _signal(self, number: int) -> None:
        assert self._process is not None  # noqa: S101 - callers have checked
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def python_module(module: str, *arguments: str) -> list[str]:
    """A command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
