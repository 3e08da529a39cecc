"""`proxyless validate`, called in this process."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from proxyless.cli import main
from tests.cli.helpers import ROOT
from tests.cli.test_arguments import BAD, GOOD

CANARY = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: canary, namespace: shop}
spec:
  hosts: [shop.test]
  http: [{route: [{destination: {host: shop, subset: v2}}]}]
"""


def validate(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["validate", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_warning_has_a_place_and_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "canary.yaml").write_text(CANARY)
    code, out, err = validate(capsys, str(tmp_path))
    assert code == 0
    assert f"{tmp_path}/canary.yaml:7:46: warning [VirtualService shop/canary]" in out
    assert "'v2'" in out
    assert err == "1 resources, 0 errors, 2 warnings, 0 notices\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [("kind: [", 1), ("a: 1\n\tb: 2\n", 2), (GOOD + "  hosts: []\n", 8), ('a: "x\n', 2), ("- 1\n", 1)],
)
def test_what_is_no_yaml_or_no_manifest_is_79_with_its_line(
    text: str, line: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    code, out, _ = validate(capsys, str(file))
    assert code == 79
    assert f"{file}:{line}:" in out


def test_one_bad_document_takes_no_other_with_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "all.yaml").write_text(GOOD + "---" + BAD.replace("shop}", "other}") + "---" + CANARY)
    code, _, err = validate(capsys, str(tmp_path / "all.yaml"))
    assert code == 79
    assert err.startswith("2 resources, 2 errors")


def test_json_is_one_list_for_any_number_of_findings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mesh.yaml").write_text("trustDomain: shop.test")
    (tmp_path / "good.yaml").write_text(GOOD.replace("{name: shop}", "{name: shop, namespace: default}"))
    code, out, err = validate(capsys, str(tmp_path), "--output", "json")
    assert (code, json.loads(out), err) == (0, [], "")
    (tmp_path / "bad.yaml").write_text(BAD)
    code, out, _ = validate(capsys, str(tmp_path), "--output", "json")
    assert code == 79
    row = next(row for row in json.loads(out) if row["code"] == "unknown-field")
    assert row == {
        "severity": "error", "code": "unknown-field", "file": f"{tmp_path}/bad.yaml", "line": 7, "column": 11,
        "kind": "VirtualService", "namespace": "default", "name": "shop", "path": "spec.http[0].directResponze",
        "reason": "unknown field", "hint": "did you mean 'directResponse'?",
    }  # fmt: skip


def test_settings_come_from_the_directory_or_from_the_file_that_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    (tmp_path / "mesh.yaml").write_text("trustDomian: x")
    code, out, _ = validate(capsys, str(tmp_path))
    assert code == 79
    assert "mesh.yaml:1:1: error [MeshConfig] trustDomian: unknown field" in out
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "settings.yaml").write_text("proxyless: {defaultNamespace: shop}")
    code, out, _ = validate(capsys, str(tmp_path / "good.yaml"), "--mesh", str(tmp_path / "other" / "settings.yaml"))
    assert code == 0
    assert "got 'shop'" in out
    assert validate(capsys, str(tmp_path / "good.yaml"), "--mesh", str(tmp_path / "nowhere.yaml"))[0] == 79


def test_standard_input_may_stand_among_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    piped = io.TextIOWrapper(io.BytesIO(CANARY.encode() + b"---\n" + BAD.replace("shop}", "second}").encode()))
    monkeypatch.setattr(sys, "stdin", piped)
    code, out, err = validate(capsys, str(tmp_path / "good.yaml"), "-")
    assert code == 79
    assert "<stdin>:" in out, "every document of it is looked at"
    assert "default/second" in out
    assert err.startswith("2 resources, 2 errors")


def test_a_reader_that_has_read_enough_gets_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text("---".join(BAD.replace("shop}", f"shop{i}}}") for i in range(500)))
    command = f"{sys.executable} -m proxyless validate {tmp_path}; echo $? >{tmp_path}/code"
    done = subprocess.run(
        ["sh", "-c", f"({command}) | head -n 1"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    assert (tmp_path / "code").read_text() == "1\n"
