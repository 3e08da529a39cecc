"""`proxyless dev DIR`: control plane, development CA, gateway and the services of a directory, in separate processes.

Plays the directory's story. With `--once` it ends afterwards, with exit code 1 if a step does not hold; otherwise everything
keeps running until Ctrl-C. Works on a private copy of the manifests; nothing is left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib.util
import logging
import re
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from proxyless.cli.dev.plan import Plan, Process, read_plan
from proxyless.cli.dev.processes import Child, free_port, python_module
from proxyless.cli.dev.report import Report, Row
from proxyless.cli.dev.stage import Stage, Step
from proxyless.controlplane.server import ControlPlane
from proxyless.errors import ConfigError, ProxylessError

__all__ = ["main"]

START_TIMEOUT = 60.0
GATEWAY = "gateway"


def main(arguments: argparse.Namespace) -> int:
    """Entry point of `proxyless dev`."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    report = Report(arguments.output)
    plan = read_plan(Path(arguments.directory))
    steps = _story(plan, arguments.step)
    with tempfile.TemporaryDirectory(prefix="proxyless-") as run:
        logs = Path(arguments.keep_logs or Path(run) / "logs")
        logs.mkdir(parents=True, exist_ok=True)
        mesh = _Mesh(plan, Path(run), logs, report)
        try:
            return asyncio.run(mesh.play(steps, once=arguments.once))
        finally:
            mesh.stop()


class _Mesh:
    """Everything that runs, for as long as it runs."""

    def __init__(self, plan: Plan, run: Path, logs: Path, report: Report) -> None:
        self._plan, self._run, self._report = plan, run, report
        self._ports = {process.name: free_port(process.port) for process in plan.processes}
        self._settings, self._gateway_ports = _mesh_settings(plan, self._ports)
        self._config = run / "config"
        self._children = {process.name: self._child(process, logs) for process in plan.processes}
        if plan.gateway is not None:
            self._children[GATEWAY] = self._gateway(logs)
        self._control_plane: ControlPlane | None = None

    async def play(self, steps: list[Step], *, once: bool) -> int:
        """Start, play the story, and end or stay."""
        started = time.monotonic()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
        story = asyncio.create_task(self._start_and_play(steps, started))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((story, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not story.done():
            story.cancel()
            self._report.say("\nending")
            return 130
        stopped.cancel()
        rows = story.result()
        if rows:
            self._report.end(rows)
        if not once:
            self._report.say("\neverything keeps running; Ctrl-C ends it")
            await stop.wait()
        return 0 if all(row.holds for row in rows) else 1

    def stop(self) -> None:
        """End every process, then the control plane."""
        for child in self._children.values():
            child.interrupt()
        for child in self._children.values():
            child.stop()
        if self._control_plane is not None:
            self._control_plane.close()

    async def _start_and_play(self, steps: list[Step], started: float) -> list[Row]:
        self._report.say(f"starting a control plane and {len(self._children)} processes")
        self._copy_config()
        self._control_plane = ControlPlane(self._config, self._run / "mesh", svid_ttl=self._plan.svid_ttl)
        await asyncio.to_thread(self._control_plane.start)
        for child in self._children.values():
            child.start()
        await asyncio.gather(*(self._wait(child) for child in self._children.values()))
        self._report.say(f"all ready after {time.monotonic() - started:.1f} s\n")
        self._where_to_look()
        stage = Stage(self._children, self._config, self._gateway_url())
        try:
            return [await self._step(stage, number, len(steps), step) for number, step in enumerate(steps, 1)]
        finally:
            await stage.close()

    async def _wait(self, child: Child) -> None:
        begun = time.monotonic()
        await child.wait_ready(START_TIMEOUT)
        self._report.say(f"  {child.name:<16} ready after {time.monotonic() - begun:.1f} s")

    async def _step(self, stage: Stage, number: int, total: int, step: Step) -> Row:
        self._report.playing(number, total, step.name, step.shows)
        begun = time.monotonic()
        try:
            measured = await step.play(stage)
        except (AssertionError, ProxylessError, OSError, LookupError, ValueError) as error:
            row = Row(step.name, step.shows, False, f"{error or type(error).__name__}", time.monotonic() - begun, {})
        except Exception as error:  # a client library's error is a step that does not hold, not a crash
            row = Row(step.name, step.shows, False, f"{type(error).__name__}: {error}", time.monotonic() - begun, {})
        else:
            row = Row(step.name, step.shows, True, measured.text, time.monotonic() - begun, measured.data)
        self._report.played(row)
        return row

    # ------------------------------------------------------------------------------------------------- preparation

    def _copy_config(self) -> None:
        shutil.copytree(self._plan.config, self._config)
        (self._config / "mesh.yaml").write_text(yaml.safe_dump(self._settings))

    def _names(self, process: str) -> dict[str, str]:
        names = {f"ports.{name}": str(port) for name, port in self._ports.items()}
        return names | {"port": str(self._ports.get(process, 0)), "run": str(self._run), "python": sys.executable}

    def _child(self, process: Process, logs: Path) -> Child:
        names = self._names(process.name)
        port = self._ports[process.name]
        env = {key: _fill(value, names) for key, value in process.env.items()}
        log = logs / f"{process.name}.log"
        if process.command:
            command = [_fill(part, names) for part in process.command]
            return Child(process.name, command, env, self._plan.directory, log, port, 0)
        admin = free_port()
        env |= self._environment(process.namespace, process.service_account, process.labels, admin)
        env |= {"PROXYLESS_SERVICE": process.service, "PROXYLESS_WORKLOAD": process.name, "PROXYLESS_PORT": str(port)}
        command = python_module("proxyless", "run", process.app, "--port", str(port), "--log-level", "warning")
        return Child(process.name, command, env, self._plan.directory, log, port, admin)

    def _gateway(self, logs: Path) -> Child:
        gateway = self._plan.gateway
        assert gateway is not None  # noqa: S101 - the caller has looked
        admin = free_port()
        env = self._environment(gateway.namespace, gateway.service_account, gateway.labels, admin)
        env["PROXYLESS_WORKLOAD"] = GATEWAY
        command = python_module("proxyless", "gateway", "--log-level", "warning")
        first = next(iter(self._gateway_ports.values()), 0)
        return Child(GATEWAY, command, env, self._plan.directory, logs / "gateway.log", first, admin)

    def _environment(self, namespace: str, account: str, labels: Mapping[str, str], admin: int) -> dict[str, str]:
        sockets = self._run / "mesh" / "workloads" / namespace / account
        return {
            "PROXYLESS_XDS": f"unix:{sockets / 'xds.sock'}",
            "SPIFFE_ENDPOINT_SOCKET": f"unix:{sockets / 'workload-api.sock'}",
            "PROXYLESS_NAMESPACE": namespace,
            "PROXYLESS_SERVICE_ACCOUNT": account,
            "PROXYLESS_LABELS": ",".join(f"{key}={value}" for key, value in labels.items()),
            "PROXYLESS_ADMIN": f"127.0.0.1:{admin}",
            "PROXYLESS_ACCESS_LOG": "stdout",
        }

    def _gateway_url(self) -> str:
        port = self._gateway_ports.get(80)
        return f"http://127.0.0.1:{port}" if port else ""

    def _where_to_look(self) -> None:
        say = self._report.say
        say(f"  manifests, edit them while it runs   {self._config}")
        for child in self._children.values():
            admin = f"http://127.0.0.1:{child.admin}/metrics /config_dump /clusters" if child.admin else ""
            say(f"  {child.name:<16} http://127.0.0.1:{child.port:<6} pid {child.pid:<8} {admin}")


def _mesh_settings(plan: Plan, ports: Mapping[str, int]) -> tuple[dict[str, Any], dict[int, int]]:
    """mesh.yaml with the ports that were really taken, and the gateway's ports."""
    path = plan.config / "mesh.yaml"
    settings = (yaml.safe_load(path.read_text()) if path.exists() else None) or {}
    own = settings.get("proxyless") or {}
    moved = {
        f"127.0.0.1:{process.port}": f"127.0.0.1:{ports[process.name]}" for process in plan.processes if process.port
    }
    if "addressMap" in own:
        own["addressMap"] = {key: moved.get(value, value) for key, value in own["addressMap"].items()}
    gateway_ports = {}
    if plan.gateway is not None:
        gateway_ports = {int(number): free_port(int(host)) for number, host in (own.get("gatewayPorts") or {}).items()}
        own["gatewayPorts"] = gateway_ports
    return settings, gateway_ports


def _fill(text: str, names: Mapping[str, str]) -> str:
    """Replace each `{name}`.

    Raises:
        ConfigError: an unknown name.
    """

    def value(match: re.Match[str]) -> str:
        try:
            return names[match[1]]
        except KeyError:
            raise ConfigError(f"{match[0]} is unknown; there are {', '.join(sorted(names))}") from None

    return re.sub(r"\{([\w.-]+)\}", value, text)


def _story(plan: Plan, only: list[str]) -> list[Step]:
    if plan.story is None:
        return []
    spec = importlib.util.spec_from_file_location("proxyless_story", plan.story)
    if spec is None or spec.loader is None or not plan.story.exists():
        raise ConfigError(f"{plan.story}: no story there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    steps: list[Step] = list(module.STEPS)
    unknown = [name for name in only if name not in {step.name for step in steps}]
    if unknown:
        raise ConfigError(f"no step {unknown[0]!r}; there are {', '.join(step.name for step in steps)}")
    return [step for step in steps if not only or step.name in only]
