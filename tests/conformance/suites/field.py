"""`field`: what people ran into. Configurations are loaded as they are; prose cases are tests marked `field`."""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from proxyless.controlplane.manifest.loader import load_text
from tests.conformance.harness import ROOT, Case, Skipped, Suite

PARTS = ("yaml load", "asgi", "wsgi", "metrics")
FEATURES = {
    "translate": "traffic decisions",
    "route": "traffic decisions",
    "retry": "traffic decisions",
    "gateway": "traffic decisions",
    "authz": "inbound security",
    "jwt": "inbound security (JWT)",
    "tls": "inbound security",
    "httpx": "the HTTP engine",
    "grpc": "gRPC",
    "cli": "operations (analyze)",
}


def suites(folder: Path) -> Iterator[Suite]:
    path = folder / "field" / "cases.yaml"
    if path.exists():
        yield Suite(
            "field", [Case(case["id"], lambda case=case: _run(case)) for case in yaml.safe_load(path.read_text())]
        )  # type: ignore[misc]


def _run(case: Mapping[str, Any]) -> str | None:
    part = case["part"]
    if part not in PARTS:
        raise Skipped(FEATURES.get(part, part))
    loaded = _load(case) if part == "yaml load" else None
    outcome = _outcomes().get(case["id"])
    if outcome is None and loaded is None:
        raise Skipped(f"field case without a test ({part})")
    return "; ".join(filter(None, (loaded, outcome))) or None


def _load(case: Mapping[str, Any]) -> str | None:
    """A case whose input is a configuration: loaded as it is. Empty when all that it states holds, None when it is no such."""
    text, expect = case["input"].get("config"), case["expect"]
    if (
        not isinstance(text, str)
        or not isinstance(expect, Mapping)
        or expect.get("load") not in ("accepted", "refused")
    ):
        return None
    result = load_text(text, "case.yaml")
    said = "\n".join(map(str, result.messages))
    if bool(result.errors) != (expect["load"] == "refused"):
        return f"expected {expect['load']}: {said}"
    wrong = [name for name in expect.get("message_names", ()) if name.removeprefix("line ") not in said]
    names = [f"{resource.kind} {resource.namespace}/{resource.name}" for resource in result.resources]
    if "resources" in expect and names != expect["resources"]:
        wrong.append(f"loaded {names}")
    return f"{wrong}: {said}" if wrong else ""


@functools.lru_cache(maxsize=1)
def _outcomes() -> dict[str, str]:
    """Case id to what failed, empty when its tests passed: one pytest run over every test marked `field`."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "field",
            f"--junit-xml={report}",
        ]
        subprocess.run(command, cwd=ROOT, check=False, capture_output=True, timeout=300)
        outcomes: dict[str, str] = {}
        for test in ElementTree.parse(report).getroot().iter("testcase"):
            failed = [
                child.attrib.get("message", "failed")[:200] for child in test if child.tag in ("failure", "error")
            ]
            for each in test.iter("property"):
                if each.attrib["name"] == "field":
                    case_id = each.attrib["value"]
                    outcomes[case_id] = "; ".join(filter(None, [outcomes.get(case_id, ""), *failed]))
    return outcomes
