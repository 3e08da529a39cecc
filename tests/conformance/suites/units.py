"""`istio/units/host-matching`: Istio's wildcard host names."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from proxyless.controlplane import hosts
from tests.conformance.harness import Case, Suite

_FUNCTIONS = {"TestNameMatches": hosts.matches, "TestNameSubsetOf": hosts.subset_of}


def suites(folder: Path) -> Iterator[Suite]:
    path = folder / "istio" / "units" / "host-matching" / "cases.yaml"
    if path.exists():
        cases = yaml.safe_load(path.read_text())["cases"]
        yield Suite("istio/units/host-matching", [Case(case["id"], lambda case=case: _run(case)) for case in cases])  # type: ignore[misc]


def _run(case: dict[str, Any]) -> str | None:
    answer = _FUNCTIONS[case["id"].partition("/")[0]](case["a"], case["b"])
    return None if answer == case["out"] else f"{case['a']!r} and {case['b']!r}: {answer}"
