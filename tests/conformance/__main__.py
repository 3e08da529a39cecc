"""`python -m tests.conformance [SUITE ...]`: one row a suite, `build/conformance.json`, exit 1 when anything is not as recorded."""

from __future__ import annotations

import os
import sys

from tests.conformance import harness
from tests.conformance.suites import suites


def main(names: list[str]) -> int:
    folder = harness.folder()
    if not folder.is_dir():
        print(
            f"conformance: no data at {folder}; set {harness.FOLDER_VARIABLE} to the folder that holds it", flush=True
        )
        return 1 if os.environ.get("CI") else 0
    record = harness.read_differences()
    rows: list[harness.Row] = []
    for suite in suites(folder):
        if names and not any(suite.name.startswith(name) for name in names):
            continue
        row = harness.run(suite, record)
        rows.append(row)
        for failure in row.failures[:20]:
            print(f"{suite.name}: {failure}", file=sys.stderr, flush=True)
        if len(row.failures) > 20:
            print(f"{suite.name}: and {len(row.failures) - 20} more", file=sys.stderr, flush=True)
    if not rows:
        print(f"conformance: no suite named {' '.join(names)}", file=sys.stderr)
        return 2
    print(harness.table(rows))
    if not names:
        harness.write(rows)
    failed = sum(len(row.failures) for row in rows)
    passed = sum(row.passed + row.stricter + row.known for row in rows)
    print(f"\n{passed} passed, {failed} failed, {sum(row.skipped for row in rows)} skipped")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
