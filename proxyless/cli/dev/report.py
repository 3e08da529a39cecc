"""What `proxyless dev` prints: progress, where to look, steps as they are played, and the table at the end."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Report", "Row"]


@dataclass(frozen=True, slots=True)
class Row:
    step: str
    shows: str
    holds: bool
    measured: str
    seconds: float
    data: Mapping[str, Any]


class Report:
    """Text goes to standard output, or to standard error when the result is JSON."""

    def __init__(self, output: str) -> None:
        self._json = output == "json"
        self._stream = sys.stderr if self._json else sys.stdout

    def say(self, text: str = "") -> None:
        print(text, file=self._stream, flush=True)

    def playing(self, number: int, total: int, name: str, shows: str) -> None:
        self.say(f"\n[{number}/{total}] {name}: {shows}")

    def played(self, row: Row) -> None:
        self.say(f"      {'holds' if row.holds else 'DOES NOT HOLD'} ({row.seconds:.1f} s): {row.measured}")

    def end(self, rows: list[Row]) -> None:
        if self._json:
            print(json.dumps([_as_json(row) for row in rows], indent=1))
            return
        width = max(len(row.step) for row in rows)
        self.say("\n" + "-" * 100)
        for row in rows:
            self.say(f"{'ok  ' if row.holds else 'FAIL'}  {row.step:<{width}}  {row.seconds:>5.1f} s  {row.measured}")
        failed = [row.step for row in rows if not row.holds]
        self.say("-" * 100)
        self.say(
            f"{len(rows) - len(failed)} of {len(rows)} steps hold" + (f"; not: {', '.join(failed)}" if failed else "")
        )


def _as_json(row: Row) -> dict[str, Any]:
    return {
        "step": row.step,
        "shows": row.shows,
        "holds": row.holds,
        "measured": row.measured,
        "seconds": round(row.seconds, 2),
        "data": row.data,
    }
