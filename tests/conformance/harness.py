"""Cases, rows, the record of differences, and the table."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

ROOT = Path(__file__).resolve().parents[2]
DIFFERENCES = Path(__file__).with_name("differences.yaml")
KNOWN_SHARE = 0.02  # of a suite; one case is always allowed

FOLDER_VARIABLE = "PROXYLESS_CONFORMANCE"


def folder() -> Path:
    return Path(os.environ.get(FOLDER_VARIABLE, "") or ROOT / ".." / "shared" / "conformance").resolve()


class Skipped(Exception):
    """The case needs a feature that is not built yet; the text names it."""


@dataclass(frozen=True, slots=True)
class Case:
    """`run` returns None when the product agrees with the data, else what differs. `traits` are what a difference that
    comes from a rule of ours, and not from one case, is recorded by."""

    id: str
    run: Callable[[], str | None]
    traits: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Suite:
    name: str
    cases: Iterable[Case]


@dataclass(slots=True)
class Row:
    suite: str
    total: int = 0
    passed: int = 0
    stricter: int = 0
    known: int = 0
    skipped: int = 0
    features: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, str | int]:
        return {key: getattr(self, key) for key in ("suite", "total", "passed", "stricter", "known", "skipped")}


@dataclass(frozen=True, slots=True)
class Difference:
    """`kind` stricter: we refuse on purpose what the peer takes. known: any other difference. `id` of one case, or `trait`
    of every case that a rule of ours touches; `suite` is a name or a prefix that ends with ``*``."""

    suite: str
    kind: Literal["stricter", "known"]
    what: str
    why: str
    id: str = ""
    trait: str = ""

    def fits(self, suite: str, case: Case) -> bool:
        of_suite = suite.startswith(self.suite[:-1]) if self.suite.endswith("*") else suite == self.suite
        return of_suite and (case.id == self.id if self.id else self.trait in case.traits)


def read_differences() -> list[Difference]:
    return [Difference(**entry) for entry in yaml.safe_load(DIFFERENCES.read_text()) or []]


def skipped(path_cases: Iterable[str], feature: str) -> Iterator[Case]:
    """Every case of a suite whose feature is not built."""

    def refuse() -> str | None:
        raise Skipped(feature)

    for case_id in path_cases:
        yield Case(case_id, refuse)


def run(suite: Suite, record: list[Difference]) -> Row:
    row = Row(suite.name)
    unused: dict[str, str] = {}
    for case in suite.cases:
        row.total += 1
        known = next((entry for entry in record if entry.fits(suite.name, case)), None)
        try:
            difference = case.run()
        except Skipped as reason:
            row.skipped += 1
            row.features[str(reason)] = row.features.get(str(reason), 0) + 1
            continue
        except Exception as error:
            difference = f"{type(error).__name__}: {error}"
        if difference is None:
            row.passed += 1
            if known is not None:
                unused.setdefault(known.id or known.trait, case.id)
        elif known is None:
            row.failures.append(f"{case.id}: {difference}")
        else:
            unused[known.id or known.trait] = ""
            if known.kind == "stricter":
                row.stricter += 1
            else:
                row.known += 1
    for name, case_id in unused.items():
        if case_id:
            row.failures.append(f"{case_id}: recorded under {name}, but passes now: take it out of {DIFFERENCES.name}")
    if row.known > max(1, int(row.total * KNOWN_SHARE)):
        row.failures.append(f"{row.known} known differences of {row.total} are more than {KNOWN_SHARE:.0%}")
    return row


def write(rows: list[Row]) -> None:
    target = ROOT / "build" / "conformance.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps([row.as_json() for row in rows], indent=1) + "\n")


def table(rows: list[Row]) -> str:
    width = max(len(row.suite) for row in rows)
    lines = [f"{'suite':<{width}}  total  passed  stricter  known  skipped"]
    for row in rows:
        features = ", ".join(sorted(row.features))
        lines.append(
            f"{row.suite:<{width}}  {row.total:>5}  {row.passed:>6}  {row.stricter:>8}  {row.known:>5}  {row.skipped:>7}"
            + (f"  {features}" if features else "")
        )
    totals = [sum(getattr(row, key) for row in rows) for key in ("total", "passed", "stricter", "known", "skipped")]
    lines.append(f"{'all':<{width}}  {totals[0]:>5}  {totals[1]:>6}  {totals[2]:>8}  {totals[3]:>5}  {totals[4]:>7}")
    return "\n".join(lines)
