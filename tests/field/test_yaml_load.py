"""What people really write into files, and what they must be told. Test names carry the id of the recorded case."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxyless.controlplane.manifest.loader import LoadResult, load_text

HTTP_RULE = """\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: quotes, namespace: fin}}
spec:
  hosts: [quotes]
  http:
  - route:
    - destination: {{host: quotes, subset: v2}}
{route}
{rule}
"""


def load(text: str | bytes) -> LoadResult:
    return load_text(text, "case.yaml")


def names(result: LoadResult) -> list[str]:
    return [f"{resource.kind} {resource.namespace}/{resource.name}" for resource in result.resources]


# ------------------------------------------------------------------------------------------------------------ FC-01


@pytest.mark.field("FC-01")
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timeout", "400ms"),
        ("retries", "{attempts: 2}"),
        ("fault", "{abort: {httpStatus: 500, percentage: {value: 1}}}"),
        ("rewrite", "{uri: /}"),
        ("mirror", "{host: quotes}"),
        ("corsPolicy", "{allowMethods: [GET]}"),
    ],
)
def test_fc_01_a_field_one_level_too_deep_is_refused_with_its_line_and_its_right_place(field: str, value: str) -> None:
    result = load(HTTP_RULE.format(route=f"      {field}: {value}", rule=""))
    assert names(result) == []
    (error,) = result.errors
    assert error.place.line == 9
    assert error.path == f"spec.http[0].route[0].{field}"
    assert "http[0]" in error.hint


@pytest.mark.field("FC-01")
@given(st.from_regex(r"[a-z]{3,12}", fullmatch=True))
def test_fc_01_no_unknown_field_is_accepted_in_silence(field: str) -> None:
    result = load(HTTP_RULE.format(route="", rule=f"    zz{field}: 1"))
    assert names(result) == []
    assert any(f"zz{field}" in str(error) and error.place.line == 10 for error in result.errors)


# ------------------------------------------------------------------------------------------------------------ FC-03

ITEM = """\
- apiVersion: networking.istio.io/v1alpha3
  kind: VirtualService
  metadata:
    name: cart
    namespace: store
    uid: 00000000-0000-4000-8000-000000000002
    resourceVersion: "77"
    generation: 4
    creationTimestamp: "2025-02-01T10:00:00Z"
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"kind": "VirtualService", "spec": {"hosts": ["unused"]}}
    managedFields:
    - {manager: kubectl, operation: Update, fieldsType: FieldsV1, fieldsV1: {"f:spec": {".": {}}}}
  spec:
    hosts: [cart]
    http: [{route: [{destination: {host: cart}}]}]
  status: {observedGeneration: "4", validationMessages: []}
"""


@pytest.mark.field("FC-03")
@pytest.mark.parametrize("kind", ["List", "VirtualServiceList"])
def test_fc_03_what_kubectl_prints_is_loaded_without_a_warning(kind: str) -> None:
    version = "v1" if kind == "List" else "networking.istio.io/v1"
    result = load(
        f'apiVersion: {version}\nkind: {kind}\nmetadata: {{resourceVersion: "", selfLink: ""}}\nitems:\n{ITEM}'
    )
    assert names(result) == ["VirtualService store/cart"]
    assert not result.errors
    assert not result.warnings
    assert result.resources[0].creation is not None


@pytest.mark.field("FC-03")
def test_fc_03_a_list_among_other_documents_and_an_error_inside_of_it_keep_their_lines() -> None:
    text = (
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: store}\nspec: {host: a}\n---\n"
        "apiVersion: v1\nkind: List\nitems:\n" + ITEM.replace("    hosts: [cart]", "    hots: [cart]")
    )
    result = load(text)
    assert names(result) == ["DestinationRule store/a"]
    line = text.splitlines().index("    hots: [cart]") + 1
    assert any(error.place.line == line and "hots" in str(error) for error in result.errors)


# ------------------------------------------------------------------------------------------------------------ FC-05

WINDOWS = """\
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: edge, namespace: web}
spec:
  selector: {app: edge}
  servers:
  - {port: {number: 80, name: http, protocol: HTTP}, hosts: ["web/site.test"]}
...
---
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: ext, namespace: web}
spec: {hosts: [api.vendor.test], ports: [{number: 443, name: tls, protocol: TLS}], resolution: DNS}
"""


@pytest.mark.field("FC-05")
def test_fc_05_byte_order_mark_and_windows_line_ends() -> None:
    raw = b"\xef\xbb\xbf" + WINDOWS.replace("\n", "\r\n").encode()
    result = load(raw)
    assert names(result) == ["Gateway web/edge", "ServiceEntry web/ext"]
    assert not result.errors
    assert "\r" not in repr([resource.spec for resource in result.resources])


@pytest.mark.field("FC-05")
def test_fc_05_a_windows_line_end_counts_as_one_line() -> None:
    raw = WINDOWS.replace("selector", "selektor").replace("\n", "\r\n").encode()
    (error,) = load(raw).errors
    assert error.place.line == 5


# ------------------------------------------------------------------------------------------------------------ FC-07


@pytest.mark.field("FC-07")
@pytest.mark.parametrize(
    ("text", "seconds"), [("500ms", 0.5), ("1m30s", 90.0), ("600.000s", 600.0), ("0.5s", 0.5), ("1.5h", 5400.0)]
)
def test_fc_07_durations_that_istio_takes(text: str, seconds: float) -> None:
    result = load(HTTP_RULE.format(route="", rule=f"    timeout: {text}"))
    assert not result.errors
    assert result.resources[0].spec.http[0].timeout == pytest.approx(seconds)


@pytest.mark.field("FC-07")
@pytest.mark.parametrize("text", ['"1d"', '"30"', "30", '""', '"10 s"', '"-1s"', '"5S"', '"100us"', "true", "[1s]"])
@pytest.mark.parametrize("field", ["timeout: {}", "retries: {{attempts: 1, perTryTimeout: {}}}"])
def test_fc_07_other_forms_get_one_message_with_path_line_and_an_example(text: str, field: str) -> None:
    result = load(HTTP_RULE.format(route="", rule="    " + field.format(text)))
    assert names(result) == []
    (error,) = result.errors
    assert error.place.line == 10
    assert "imeout" in error.path
    assert "s" in error.hint or "ms" in str(error)
