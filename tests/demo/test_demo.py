"""`make demo ARGS=--once`: the whole story holds, and a step that is broken turns red."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "fastapi_app"


def play(directory: Path, *arguments: str, timeout: float = 120) -> tuple[int, list[dict[str, Any]], str]:
    command = [sys.executable, "-m", "proxyless", "dev", str(directory), "--once", "--output", "json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    return done.returncode, json.loads(done.stdout) if done.stdout.strip() else [], done.stderr


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A copy of the example that a test may break."""
    copy = tmp_path / "fastapi_app"
    shutil.copytree(EXAMPLE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    return copy


@pytest.mark.timeout(150)
def test_every_step_of_the_story_holds() -> None:
    code, rows, log = play(EXAMPLE)
    assert [row["step"] for row in rows if not row["holds"]] == [], json.dumps(rows, indent=1) + log[-3000:]
    assert code == 0
    assert len(rows) == 10
    assert sum(row["seconds"] for row in rows) < 80


def test_the_canary_turns_red_without_v2(example: Path) -> None:
    plan = (example / "dev.yaml").read_text()
    start = plan.index("- name: payments-v2")
    (example / "dev.yaml").write_text(plan[:start] + plan[plan.index("- name: api-a") :])
    code, rows, log = play(example, "--step", "canary")
    assert (code, [row["holds"] for row in rows]) == (1, [False]), log[-3000:]


def test_authorization_turns_red_without_the_policy(example: Path) -> None:
    (example / "mesh" / "02-authorization.yaml").unlink()
    code, rows, log = play(example, "--step", "authorization")
    assert (code, [row["holds"] for row in rows]) == (1, [False]), log[-3000:]


def test_an_unknown_step_is_named() -> None:
    code, rows, log = play(EXAMPLE, "--step", "nothing")
    assert (code, rows) == (1, [])
    assert "no step 'nothing'; there are canary" in log


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux ends the children")
def test_a_kill_leaves_no_process_behind() -> None:
    command = [sys.executable, "-m", "proxyless", "dev", str(EXAMPLE)]
    with (
        tempfile.TemporaryDirectory(prefix="kill-") as own,  # what a killed process cannot remove
        subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "TMPDIR": own}
        ) as dev,
    ):
        children = Path(f"/proc/{dev.pid}/task/{dev.pid}/children")
        try:
            wait_until(lambda: len(children.read_text().split()) >= 3, "three processes", 30)
            started = [int(pid) for pid in children.read_text().split()]
        finally:
            dev.kill()
        wait_until(lambda: not any(alive(pid) for pid in started), "their end", 15)


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool], what: str, timeout: float) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{what} did not come in {timeout} s"
        time.sleep(0.02)


def test_a_broken_manifest_is_said_with_its_line_and_nothing_starts(example: Path) -> None:
    manifest = example / "mesh" / "01-canary.yaml"
    manifest.write_text(manifest.read_text().replace("  hosts:", "  hots:", 1))
    code, rows, log = play(example)
    assert (code, rows) == (1, [])
    assert "01-canary.yaml:7:3" in log
    assert "hots" in log
