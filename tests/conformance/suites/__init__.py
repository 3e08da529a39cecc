"""Every suite of the data, in a fixed order. A file that no module here reads shows up as skipped, never left out."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from tests.conformance.harness import Case, Suite, skipped
from tests.conformance.suites import authz, field, istiod, samples, spiffe_ids, units

# Suites of features that are not built yet, by path prefix: the feature's name in the roadmap.
NOT_BUILT = {
    "authz-bypass": "inbound security",
    "envoy/jwt_requirements": "inbound security (JWT)",
    "envoy/rbac": "inbound security",
    "envoy/route_config_invalid": "xDS, complete",
    "envoy": "traffic decisions",
    "envoy-oracle/rbac": "inbound security",
    "envoy-oracle/filters": "inbound security (JWT, CORS, rate limit), traffic decisions (fault)",
    "envoy-oracle": "traffic decisions",
    "gateway-api": "Gateway API",
    "grpc": "xDS, complete",
    "istio/analyzers": "operations (analyze)",
    "istio/authz-builder": "inbound security",
    "istio/crd-validation": "traffic decisions, inbound security",
    "istio/gateway-api": "Gateway API",
    "istio/mtls-reachability": "inbound security",
    "istio/path-normalization": "inbound security",
    "istio/requestauthn-behaviour": "inbound security (JWT)",
    "istio/units/grpc": "xDS, complete",
    "istio/units": "traffic decisions, inbound security",
    "istio/validation": "traffic decisions, inbound security",
    "istiod": "xDS, complete; traffic decisions; inbound security",
    "spiffe": "inbound security",
    "xds-server-checklist": "xDS, complete",
}


def suites(folder: Path) -> Iterator[Suite]:
    built = {
        suite.name: suite
        for module in (samples, units, authz, istiod, spiffe_ids, field)
        for suite in module.suites(folder)
    }
    seen = set()
    for name, ids in _all(folder):
        seen.add(name)
        yield built.get(name) or Suite(name, skipped(ids, _feature(name)))
    for name, suite in built.items():
        if name not in seen:
            yield suite


def _feature(name: str) -> str:
    fitting = [prefix for prefix in NOT_BUILT if name == prefix or name.startswith((prefix + "/", prefix + "-"))]
    return NOT_BUILT[max(fitting, key=len)] if fitting else "not read by any suite module"


def _all(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(suite name, case ids) of everything in the folder."""
    for path in sorted(folder.rglob("cases.yaml")):
        name = path.parent.relative_to(folder).as_posix()
        if name in ("istio", "grpc", "envoy"):
            continue
        yield name, _ids(yaml.safe_load(path.read_text()), ("cases", "tests"))
    for part in ("envoy", "grpc", "spiffe"):
        for path in sorted((folder / part).glob("*.yaml")):
            if path.stem in ("cases", "jwt_fixtures"):
                continue
            yield f"{part}/{path.stem}", _ids(yaml.safe_load(path.read_text()), ("cases",))
    for path in sorted((folder / "envoy" / "router_check").glob("*.golden.proto.json")):
        yield f"envoy/router_check/{path.name.split('.')[0]}", _ids(json.loads(path.read_text()), ("tests",))
    corpus = [
        path.relative_to(folder / "envoy" / "corpus").as_posix()
        for path in sorted((folder / "envoy" / "corpus").rglob("*"))
        if path.is_file()
    ]
    if corpus:
        yield "envoy/corpus", corpus
    for path in sorted((folder / "envoy-oracle").glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as lines:
            yield f"envoy-oracle/{path.name.split('.')[0]}", [json.loads(line)["id"] for line in lines]
    repeated = folder / "envoy-oracle" / "repeated-headers.json"
    if repeated.exists():
        yield "envoy-oracle/repeated-headers", _ids(json.loads(repeated.read_text()), ())
    for path in sorted((folder / "istiod").glob("*/decisions.json")):
        document = json.loads(path.read_text())
        count = sum(len(rows) for rows in document["outbound"].values())
        count += sum(len(rows) for ports in document["inbound"].values() for rows in ports.values())
        yield f"istiod/{path.parent.name}", [str(index) for index in range(count)]
    for path in sorted((folder / "istiod" / "transcripts").glob("*.jsonl")):
        yield f"istiod/transcripts/{path.stem}", [path.stem]
    bypass = folder / "authz-bypass.yaml"
    if bypass.exists():
        yield "authz-bypass", _ids(yaml.safe_load(bypass.read_text()), ("vectors",))
    checklist = folder / "xds-server-checklist.md"
    if checklist.exists():
        yield (
            "xds-server-checklist",
            [line.split()[3] for line in checklist.read_text().splitlines() if line.startswith("- [ ]")],
        )


def _ids(document: Any, keys: tuple[str, ...]) -> list[str]:
    rows = document
    if isinstance(document, dict):
        rows = next((document[key] for key in keys if key in document), [])
    return [
        str(row.get("id") or row.get("name") or index) if isinstance(row, dict) else str(index)
        for index, row in enumerate(rows)
    ]


__all__ = ["Case", "suites"]
