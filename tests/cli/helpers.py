"""`python -m proxyless ...` in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from tests.asgi.helpers import ask

ROOT = Path(__file__).parents[2]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


class Process:
    """One command, from its start to its end; `log` has what it wrote. `module`: what Python runs."""

    def __init__(
        self, log: Path, *arguments: str, env: Mapping[str, str] | None = None, module: str = "proxyless"
    ) -> None:
        self.log, self.admin, self._module = log, free_port(), module
        self._arguments, self._env = arguments, env or {}

    def __enter__(self) -> Process:
        env = {
            **{
                name: text
                for name, text in os.environ.items()
                if not name.startswith(("PROXYLESS_", "SPIFFE_", "PROM"))
            },
            "PYTHONPATH": str(ROOT),
            "PROXYLESS_ADMIN": f"127.0.0.1:{self.admin}",
            **self._env,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self._module, *self._arguments], cwd=ROOT, env=env, stdout=log, stderr=log
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise
        if error is not None:
            print(self.text)

    @property
    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def says(self, words: str) -> bool:
        """The log has these words. Fails when the process has ended."""
        assert self.process.poll() is None, self.text
        return words in self.text

    def get(self, path: str) -> tuple[int, str]:
        """Of the admin listener; status 0 when it does not answer."""
        try:
            with socket.create_connection(("127.0.0.1", self.admin), 5) as sock:
                status, body = ask(sock, f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n".encode())
        except OSError:
            return 0, ""
        return status, body.decode()

    def ready(self) -> bool:
        assert self.process.poll() is None, self.text
        return self.get("/ready")[0] == 200

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples with these labels."""
        total = 0.0
        for line in self.get("/metrics")[1].splitlines():
            found = re.match(r"(\w+)(?:\{(.*)\})? (\S+)$", line)
            if (
                found
                and found[1] == name
                and labels.items() <= dict(re.findall(r'(\w+)="([^"]*)"', found[2] or "")).items()
            ):
                total += float(found[3])
        return total
