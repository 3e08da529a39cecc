"""What the command line says, and its exit codes, when it is used wrongly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

GOOD = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop}
spec:
  hosts: [shop.test]
  http: [{directResponse: {status: 200}}]
"""
BAD = GOOD.replace("directResponse", "directResponze")


def proxyless(*arguments: str, text: str | None = "") -> subprocess.CompletedProcess[str]:
    """`text`: standard input; None: there is none at all."""
    command = [sys.executable, "-m", "proxyless", *arguments]
    if text is None:
        command = ["sh", "-c", '"$@" <&-', "sh", *command]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False)


def test_good_yaml_is_0_and_says_what_it_found() -> None:
    done = proxyless("validate", "-", text=GOOD)
    assert (done.returncode, done.stdout.count("error")) == (0, 0), done.stdout
    assert "1 resources, 0 errors" in done.stderr


def test_bad_yaml_is_79_with_place_and_hint(tmp_path: Path) -> None:
    (tmp_path / "shop.yaml").write_text(BAD)
    done = proxyless("validate", str(tmp_path))
    assert done.returncode == 79
    place = f"{tmp_path}/shop.yaml:7:11: error [VirtualService default/shop] spec.http[0].directResponze: unknown field"
    assert f"{place} (did you mean 'directResponse'?)" in done.stdout
    rows = json.loads(proxyless("validate", str(tmp_path), "--output", "json").stdout)
    assert ("error", 7, 11) in [(row["severity"], row["line"], row["column"]) for row in rows]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "COMMAND"),
        (("validate",), "PATH"),
        (("run", "app:app", "--port", "99999"), "'99999' is no port"),
        (("control-plane", "--config", "."), "--run-dir"),
        (("control-plane", "--config", ".", "--run-dir", "r", "--svid-ttl", "soon"), "--svid-ttl"),
    ],
)
def test_wrong_usage_is_2_and_names_the_argument(arguments: tuple[str, ...], words: str) -> None:
    done = proxyless(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("validate", "/nowhere/at/all"), "/nowhere/at/all"),
        (("control-plane", "--config", "/nowhere/at/all", "--run-dir", "/tmp/r"), "/nowhere/at/all"),
        (("dev", "/nowhere/at/all"), "/nowhere/at/all"),
        (("run", "nowhere_at_all:app", "--port", "0"), "nowhere_at_all"),
    ],
)
def test_what_is_not_there_is_named_without_a_traceback(arguments: tuple[str, ...], words: str) -> None:
    done = proxyless(*arguments)
    assert done.returncode not in (0, 2)
    assert words in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_no_standard_input_is_said() -> None:
    done = proxyless("validate", "-", text=None)
    assert (done.returncode, "Traceback" in done.stderr) == (1, False)
    assert "no standard input" in done.stderr
