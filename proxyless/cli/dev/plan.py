"""`dev.yaml`: which processes a development mesh has.

    config: mesh                     directory of manifests, with mesh.yaml
    story: story.py                  optional: what `proxyless dev` plays, see `proxyless.cli.dev.stage`
    svidTtl: 20                      optional: seconds that a certificate lives (3600)
    gateway:                         optional
      serviceAccount: ingress
      labels: {istio: ingressgateway}
    processes:
    - name: payments-v1
      app: payments:app              served by `proxyless run`; or `command: [...]` for a process outside of the mesh
      service: payments
      serviceAccount: payments       default: the service
      labels: {app: payments, version: v1}
      env: {VERSION: v1}
      port: 8001                     optional: another one is taken when it is in use

In `command` and `env`, `{port}` is the process's port, `{ports.NAME}` that of another, `{run}` a private directory. Where a
port of the plan or of mesh.yaml's `gatewayPorts` is in use, mesh.yaml's `addressMap` and `gatewayPorts` follow to the other one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from proxyless.errors import ConfigError

__all__ = ["Gateway", "Plan", "Process", "read_plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    name: str
    app: str = ""
    command: tuple[str, ...] = ()
    service: str = ""
    service_account: str = ""
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    port: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    service_account: str = "ingress"
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    directory: Path
    config: Path
    processes: tuple[Process, ...]
    gateway: Gateway | None = None
    story: Path | None = None
    svid_ttl: float = 3600.0


_PROCESS = {"name", "app", "command", "service", "serviceAccount", "namespace", "labels", "env", "port"}
_GATEWAY = {"serviceAccount", "namespace", "labels"}
_TOP = {"config", "story", "svidTtl", "gateway", "processes"}


def read_plan(directory: Path) -> Plan:
    """Read `dev.yaml` of a directory.

    Raises:
        ConfigError: it is absent or unusable; the text says what and where.
    """
    path = directory / "dev.yaml"
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; a directory for `proxyless dev` has a dev.yaml") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: {error}") from error
    top = _mapping(path, "", document, _TOP)
    processes = tuple(
        _process(path, f"processes[{index}]", entry) for index, entry in enumerate(top.get("processes") or ())
    )
    if not processes:
        raise ConfigError(f"{path}: processes: at least one is needed")
    config = directory / str(top.get("config", "mesh"))
    if not config.is_dir():
        raise ConfigError(f"{path}: config: {config} is no directory")
    return Plan(
        directory=directory.resolve(),
        config=config.resolve(),
        processes=processes,
        gateway=_gateway(path, top["gateway"]) if "gateway" in top else None,
        story=(directory / top["story"]).resolve() if "story" in top else None,
        svid_ttl=float(top.get("svidTtl", 3600.0)),
    )


def _process(path: Path, field_path: str, entry: Any) -> Process:
    values = _mapping(path, field_path, entry, _PROCESS)
    if "name" not in values or ("app" in values) == ("command" in values):
        raise ConfigError(f"{path}: {field_path}: needs a name, and either app or command")
    service = str(values.get("service", ""))
    return Process(
        name=str(values["name"]),
        app=str(values.get("app", "")),
        command=tuple(map(str, values.get("command", ()))),
        service=service,
        service_account=str(values.get("serviceAccount", service or "default")),
        namespace=str(values.get("namespace", "default")),
        labels=_strings(values.get("labels")),
        env=_strings(values.get("env")),
        port=int(values.get("port", 0)),
    )


def _gateway(path: Path, entry: Any) -> Gateway:
    values = _mapping(path, "gateway", entry, _GATEWAY)
    return Gateway(
        service_account=str(values.get("serviceAccount", "ingress")),
        namespace=str(values.get("namespace", "default")),
        labels=_strings(values.get("labels")),
    )


def _mapping(path: Path, field_path: str, value: Any, known: set[str]) -> dict[str, Any]:
    where = f"{path}: {field_path}".rstrip(": ")
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: a mapping is expected")
    unknown = sorted(set(map(str, value)) - known)
    if unknown:
        raise ConfigError(f"{where}: unknown field {unknown[0]} (known: {', '.join(sorted(known))})")
    return value


def _strings(value: Any) -> dict[str, str]:
    return {str(key): str(item) for key, item in (value or {}).items()}
