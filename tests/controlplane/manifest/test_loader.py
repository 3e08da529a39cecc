"""Files to resources: what is accepted, what is refused and with which words, and that nothing hides anything else."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from proxyless.controlplane.manifest.loader import load_paths, load_text
from proxyless.controlplane.manifest.model import DestinationRule, Gateway, ServiceEntry, VirtualService
from proxyless.errors import ManifestError, Place

from .helpers import errors, load, manifest, only_error, route

CART = manifest("VirtualService", "hosts: [cart]\nhttp: [{route: [{destination: {host: cart}}]}]", "cart")


def test_a_field_one_level_too_deep_is_refused_with_its_place_and_where_it_belongs() -> None:
    error = only_error(route("route:\n- destination: {host: cart, subset: v2}\n  timeout: 400ms"))
    assert error.path == "spec.http[0].route[0].timeout"
    assert (error.place.line, error.place.column) == (9, 7)
    assert error.hint == "timeout belongs to spec.http[0]"


@pytest.mark.parametrize(
    ("http", "path", "hint"),
    [
        ("timout: 1s", "spec.http[0].timout", "'timeout'"),
        ("cors_policy: {}", "spec.http[0].cors_policy", "'corsPolicy'"),
        ("perTryTimeout: 1s", "spec.http[0].perTryTimeout", "spec.http[0].retries"),
        ("hosts: [a]", "spec.http[0].hosts", "belongs to spec"),
        ("websocketUpgrade: true", "spec.http[0].websocketUpgrade", "removed"),
        ("retries: {attempts: 2, retryon: 5xx}", "spec.http[0].retries.retryon", "'retryOn'"),
        ("fault: {abort: {percent: 10, httpStatus: 500}}", "spec.http[0].fault.abort.percent", "percentage"),
        ("mirrorPercentage: {percent: 10}", "spec.http[0].mirrorPercentage.percent", "value"),
    ],
)
def test_an_unknown_field_says_what_was_meant(http: str, path: str, hint: str) -> None:
    error = next(e for e in errors(route(f"{http}\nroute: [{{destination: {{host: cart}}}}]")) if e.path == path)
    assert error.code == "unknown-field"
    assert error.place.line == 7
    assert hint in error.hint


@pytest.mark.parametrize("word", ["off", "on", "y", "n", "yes", "No", "TRUE", "5", "1.5", "0x1F", "1e5", "010", ".inf"])
def test_a_plain_word_that_yaml_reads_as_something_else_than_a_string_is_refused_with_quotes_as_hint(word: str) -> None:
    error = only_error(load("DestinationRule", f"host: cart\nsubsets:\n- name: {word}"))
    assert (error.path, error.place.line) == ("spec.subsets[0].name", 7)
    assert error.hint == f'quote it: "{word}"'


@pytest.mark.parametrize("word", ['"off"', "'5'", "v1", "2024-01-02", "12:30", "!!str 5", "offline", "yes-1"])
def test_quoted_words_and_ordinary_ones_are_strings(word: str) -> None:
    result = load("DestinationRule", f"host: cart\nsubsets: [{{name: x, labels: {{version: {word}}}}}]")
    assert [e for e in errors(result) if e.code == "type"] == []


@pytest.mark.parametrize("key", ["on", "y", "true", "~"])
def test_a_key_that_yaml_reads_as_a_boolean_is_refused_in_a_map_of_strings(key: str) -> None:
    error = only_error(load("DestinationRule", f"host: cart\nsubsets: [{{name: x, labels: {{{key}: a}}}}]"))
    assert "key must be a string" in error.reason


@pytest.mark.parametrize(
    ("spec", "path", "found"),
    [
        ("hosts: cart", "spec.hosts", "the text 'cart'"),
        ("hosts: {a: b}", "spec.hosts", "a mapping"),
        ("hosts: [[a]]", "spec.hosts[0]", "a list"),
        ("hosts: [null]", "spec.hosts[0]", "nothing"),
        ("http: [x]", "spec.http[0]", "the text 'x'"),
        ("http: [{timeout: [1s]}]", "spec.http[0].timeout", "a list"),
        ("http: [{match: [{port: '80'}]}]", "spec.http[0].match[0].port", "the text '80'"),
        ("http: [{match: [{port: 80.5}]}]", "spec.http[0].match[0].port", "the number 80.5"),
        ("http: [{match: [{ignoreUriCase: 'true'}]}]", "spec.http[0].match[0].ignoreUriCase", "the text 'true'"),
        ("http: [{mirrorPercentage: 50}]", "spec.http[0].mirrorPercentage", "the number 50"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_as_what_it_is(spec: str, path: str, found: str) -> None:
    error = only_error(load("VirtualService", spec))
    assert (error.path, error.code) == (path, "type")
    assert error.reason.endswith(f"found {found}")


@pytest.mark.parametrize(
    ("http", "hint"),
    [
        ("match: [{headers: {x-a: v1}}]", "write {exact: v1}"),
        ("route: [{destination: cart}]", "write {host: cart}"),
        ("route: [{destination: {host: cart, port: 80}}]", "write {number: 80}"),
        ("fault: {abort: {percentage: 10%}}", "write {value: 10}"),
        ("match: {uri: {prefix: /}}", "put '- ' before each element"),
    ],
)
def test_a_short_form_gets_the_long_one_as_hint(http: str, hint: str) -> None:
    assert hint in [error.hint for error in errors(route(http))]


@pytest.mark.parametrize("host", ["*", "*.example.com", "@x", "%x", "`x`"])
def test_a_host_with_an_unquoted_special_character_gets_quotes_as_hint(host: str) -> None:
    error = only_error(load("Gateway", f"servers:\n- hosts:\n  - {host}\n  port: {{number: 80}}"))
    assert error.code == "yaml"
    assert error.hint.startswith("quote")


def test_a_duplicate_key_is_refused_with_both_lines() -> None:
    error = only_error(route("timeout: 1s\nroute: [{destination: {host: cart}}]\ntimeout: 2s"))
    assert (error.code, error.path, error.place.line) == ("duplicate-key", "spec.http[0].timeout", 9)
    assert "line 7" in error.reason


@pytest.mark.parametrize(
    "text",
    [
        manifest("VirtualService", "hosts: [a.b]\nhosts: [c.d]"),
        CART.replace("spec:", "kind: VirtualService\nspec:"),
        CART.replace("name: cart", "name: cart, name: other"),
        manifest("DestinationRule", "host: a\nsubsets: [{name: v, labels: {a: b, a: c}}]"),
    ],
)
def test_duplicate_keys_are_found_at_every_level(text: str) -> None:
    assert "duplicate-key" in {e.code for e in errors(load_text(text, "f"))}


@pytest.mark.parametrize("kind", ["VirtualServices", "Virtualservice", "VirtualSerivce", "virtualservice"])
def test_a_misspelt_kind_of_an_istio_group_is_an_error_that_names_the_right_one(kind: str) -> None:
    error = only_error(load_text(CART.replace("kind: VirtualService", f"kind: {kind}"), "f.yaml"))
    assert (error.path, error.place.line) == ("kind", 2)
    assert "'VirtualService'" in error.hint


@pytest.mark.parametrize(
    ("version", "hint"),
    [
        ("networking.istio.io/v2", "networking.istio.io/v1"),
        ("security.istio.io/v1", "networking.istio.io"),
        ("networking.istio.o/v1", "networking.istio.io"),
        ("v1", "networking.istio.io"),
        ("rbac.istio.io/v1alpha1", ""),
    ],
)
def test_a_kind_under_the_wrong_group_or_version_is_an_error(version: str, hint: str) -> None:
    error = only_error(load_text(CART.replace("networking.istio.io/v1", version), "f.yaml"))
    assert hint in error.hint


def test_documents_of_other_kinds_are_skipped_with_a_notice() -> None:
    others = [("apps/v1", "Deployment"), ("v1", "Service"), ("gateway.networking.k8s.io/v1", "Gateway")]
    text = "---\n".join(f"apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n" for version, kind in others)
    result = load_text(text + "---\n" + CART, "f.yaml")
    assert [notice.code for notice in result.notices] == ["skipped"] * 3
    assert [resource.name for resource in result.resources] == ["cart"]
    assert not errors(result)


def test_one_bad_document_hides_neither_the_others_nor_their_messages() -> None:
    broken = "kind: [unclosed\n"
    text = "---\n".join([CART, broken, "just text\n", CART.replace("hosts", "hostz").replace("cart", "other"), CART])
    result = load_text(text, "f.yaml")
    assert [resource.key for resource in result.resources] == [("VirtualService", "shop", "cart")]
    assert [error.code for error in errors(result)] == ["yaml", "not-a-manifest", "unknown-field", "twice"]
    assert [error.place.line for error in errors(result)] == [8, 10, 16, 21]


def test_kubectl_lists_are_read_without_complaint_about_what_the_server_added() -> None:
    text = """\
apiVersion: v1
kind: List
metadata: {resourceVersion: "", selfLink: ""}
items:
- apiVersion: networking.istio.io/v1alpha3
  kind: VirtualService
  metadata:
    name: cart
    namespace: store
    uid: 00000000-0000-4000-8000-000000000001
    generation: 3
    creationTimestamp: "2025-04-03T18:52:36Z"
    managedFields: [{manager: kubectl, fieldsV1: {"f:spec": {".": {}}}}]
  spec:
    hosts: [cart]
    http: [{route: [{destination: {host: cart}}]}]
  status: {observedGeneration: "3", validationMessages: []}
- apiVersion: networking.istio.io/v1
  kind: DestinationRule
  metadata: {name: cart, namespace: store}
  spec:
    host: cart
    subset: v1
"""
    result = load_text(text, "f.yaml")
    error = only_error(result)
    assert (error.path, error.place.line, error.hint) == ("spec.subset", 23, "did you mean 'subsets'?")
    (cart,) = result.resources
    assert cart.creation == 1743706356.0
    assert not result.warnings
    fixed = text.replace("    subset: v1\n", "").replace("kind: List", "kind: VirtualServiceList")
    assert len(load_text(CART + "---\n" + fixed, "f.yaml").resources) == 3


def test_windows_files_byte_order_marks_and_document_ends_are_read_with_right_lines() -> None:
    gateway = manifest(
        "Gateway", "selector: {app: e}\nservers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]"
    )
    entry = manifest(
        "ServiceEntry", "hosts: [a.test]\nports: [{number: 443, name: tls, protocol: TLS}]\nresolution: DNS"
    )
    text = "\ufeff" + gateway + "...\n---\n\ufeff" + entry + "...\n" + CART + "  bad: 1\n"
    result = load_text(text.replace("\n", "\r\n").encode(), "f.yaml")
    assert only_error(result).place == Place("f.yaml", 23, 3)
    assert [type(resource.spec) for resource in result.resources] == [Gateway, ServiceEntry]
    assert result.of(ServiceEntry)[0].spec.ports[0].name == "tls"
    assert "\r" not in repr(result.resources)


def test_anchors_and_merge_keys_work_and_written_keys_win() -> None:
    text = manifest(
        "VirtualService",
        """
        hosts: [cart]
        http:
        - &base {timeout: 1s, name: a, route: [{destination: {host: cart}}]}
        - {<<: *base, name: b, match: [{uri: {prefix: /b}}]}
        """,
    )
    (cart,) = load_text(text, "f").of(VirtualService)
    assert [(http.name, http.timeout) for http in cart.spec.http] == [("a", 1.0), ("b", 1.0)]


def test_positions_of_fields_are_kept_for_later_checks() -> None:
    (cart,) = route("timeout: 1s\nroute:\n- destination: {host: cart}").resources
    assert cart.place_of("spec.http[0].timeout") == Place("f.yaml", 7, 5)
    assert cart.place_of("spec.http[0].route[0].destination.host") == Place("f.yaml", 9, 21)
    assert cart.place_of("spec.http[0].retries.attempts") == Place("f.yaml", 7, 5)  # the nearest that is there
    assert cart.place == Place("f.yaml", 1, 1)


def test_absent_and_zero_are_told_apart() -> None:
    (cart,) = route("route:\n- {destination: {host: a.b}, weight: 0}\n- {destination: {host: c.d}, weight: 1}").of(
        VirtualService
    )
    (bare,) = load("DestinationRule", "host: a").of(DestinationRule)
    assert [target.weight for target in cart.spec.http[0].route] == [0, 1]
    assert cart.spec.http[0].timeout is None
    assert bare.spec.traffic_policy is None


def test_a_missing_namespace_is_filled_in_and_said_once_for_each_file() -> None:
    text = CART.replace(", namespace: shop", "")
    result = load_text(text + "---\n" + text.replace("cart", "pay"), "f.yaml", "team")
    assert {resource.namespace for resource in result.resources} == {"team"}
    (notice,) = result.notices
    assert "'team'" in notice.reason
    assert "bare istiod" in notice.hint


@pytest.mark.parametrize(
    ("text", "code", "line"),
    [
        ("kind: VirtualService\n", "not-a-manifest", 1),
        ("# comment\n\n- a\n", "not-a-manifest", 3),
        ("\n42\n", "not-a-manifest", 2),
        ("a: [1\n", "yaml", 2),
        ("a: b: c\n", "yaml", 1),
        ("a:\n\tb: c\n", "yaml", 2),
        ("a: *nowhere\n", "yaml", 1),
        ("a: !secret b\n", "yaml", 1),
        ("a: \x07\n", "yaml", 1),
        ("a: {{ .Values.x }}\n", "yaml", 1),
        ("a: ok\n? [x, y]\n: z\n", "yaml", 2),
    ],
)
def test_text_that_is_no_manifest_gives_one_message_with_its_line(text: str, code: str, line: int) -> None:
    error = only_error(load_text(text, "f.yaml"))
    assert (error.code, error.place.line) == (code, line)


def test_bytes_that_are_no_utf8_are_named_with_their_place() -> None:
    assert only_error(load_text(b"a: b\nc: \xff\n", "f.yaml")).place == Place("f.yaml", 2, 4)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x,x,x,x,x,x,x,x]\n"
        + "".join(f"{c}: &{c} [{','.join(['*' + p] * 9)}]\n" for p, c in zip("abcdefgh", "bcdefghi", strict=True)),
        "a: &a {b: *a}\n",
        "[" * 5000,
        "- " * 5000,
        "a: [" + "x," * 120_000 + "]",
        "x" * (5 * 2**20),
    ],
    ids=["laughs", "cycle", "flow", "block", "long", "huge"],
)
def test_documents_that_blow_up_are_refused_quickly(text: str) -> None:
    assert only_error(load_text(text, "f.yaml")).code == "yaml"


@pytest.mark.parametrize(
    "text", ["", "\n\n", "# only a comment\n", "---\n---\n...\n", "%YAML 1.1\n---\n", "---\n# c\n"]
)
def test_nothing_is_no_error(text: str) -> None:
    assert load_text(text, "f.yaml").messages == ()


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ("{namespace: a}", "metadata.name"),
        ("{name: ''}", "metadata.name"),
        ("{name: 5}", "metadata.name"),
        ("{name: a b}", "metadata.name"),
        ("{name: a, namespace: A_B}", "metadata.namespace"),
        ("{name: a, namspace: b}", "metadata.namspace"),
        ("{name: a, labels: {a: 1}}", "metadata.labels.a"),
        ("{name: a, labels: [a]}", "metadata.labels"),
        ("{name: a, annotations: {'x/y': true}}", 'metadata.annotations["x/y"]'),
        ("{name: a, creationTimestamp: yesterday}", "metadata.creationTimestamp"),
        ("[a]", "metadata"),
        ("", "metadata"),
    ],
)
def test_metadata_is_checked_like_everything_else(metadata: str, path: str) -> None:
    text = f"apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {metadata}\nspec: {{host: a.b}}\n"
    result = load_text(text, "f.yaml")
    assert path in {error.path for error in errors(result)}
    assert result.resources == ()


def test_fields_beside_spec_are_refused() -> None:
    error = only_error(load_text(CART + "hosts: [x]\n", "f.yaml"))
    assert (error.path, error.place.line) == ("hosts", 7)


def test_an_empty_value_counts_as_absent_and_is_said() -> None:
    result = route("timeout:\nroute: [{destination: {host: a.b}}]")
    assert [(warning.code, warning.path) for warning in result.warnings] == [("empty", "spec.http[0].timeout")]
    assert len(result.resources) == 1


def test_kinds_that_only_speak_to_envoy_are_accepted_and_reported() -> None:
    text = (
        "apiVersion: networking.istio.io/v1alpha3\nkind: EnvoyFilter\nmetadata: {name: a, namespace: b}\nspec: {x: 1}\n"
    )
    result = load_text(text, "f.yaml")
    assert len(result.resources) == 1
    (warning,) = result.warnings
    assert (warning.code, warning.path) == ("unsupported", "spec")


def test_fields_without_effect_are_named_once() -> None:
    http = "corsPolicy: {allowOrigins: [{exact: 'http://a'}]}\nroute: [{destination: {host: a.b}}]"
    assert [(w.code, w.path) for w in route(http).warnings] == [("unsupported", "spec.http[0].corsPolicy")]


def test_directories_are_read_recursively_without_hidden_files_and_mesh_settings(tmp_path: Path) -> None:
    (tmp_path / "sub" / "..data").mkdir(parents=True)
    (tmp_path / "a.yaml").write_text(CART)
    (tmp_path / "sub" / "b.yml").write_text(CART.replace("cart", "pay"))
    (tmp_path / "sub" / "c.txt").write_text("not: yaml: at all")
    (tmp_path / "sub" / "..data" / "d.yaml").write_text(CART)
    (tmp_path / ".e.yaml").write_text("broken: [")
    (tmp_path / "mesh.yaml").write_text("trustDomain: a.b\n")
    result = load_paths([tmp_path])
    assert [resource.name for resource in result.resources] == ["cart", "pay"]
    assert result.messages == ()


def test_the_same_resource_in_two_files_is_reported_with_both_places(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(CART)
    error = only_error(load_paths([tmp_path / "a.yaml", tmp_path / "b.yaml"]))
    assert error.place.file.endswith("b.yaml")
    assert "a.yaml:1:1" in error.hint


def test_files_that_are_not_there_and_empty_directories_are_errors(tmp_path: Path) -> None:
    assert [error.code for error in errors(load_paths([tmp_path / "no.yaml", tmp_path]))] == ["file", "file"]


def test_standard_input_counts_lines_from_the_start_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.TextIOWrapper(io.BytesIO((CART + "---\n" + "a scalar\n").encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    result = load_paths("-")
    assert only_error(result).place == Place("<stdin>", 8, 1)
    assert len(result.resources) == 1


def test_messages_have_a_one_line_form_and_a_json_form() -> None:
    message = only_error(route("timout: 1s\nroute: [{destination: {host: a.b}}]"))
    assert str(message) == (
        "f.yaml:7:5: error [VirtualService shop/x] spec.http[0].timout: unknown field (did you mean 'timeout'?)"
    )
    assert message.as_json() == {
        "severity": "error",
        "code": "unknown-field",
        "file": "f.yaml",
        "line": 7,
        "column": 5,
        "kind": "VirtualService",
        "namespace": "shop",
        "name": "x",
        "path": "spec.http[0].timout",
        "reason": "unknown field",
        "hint": "did you mean 'timeout'?",
    }


def test_a_result_tells_its_errors_and_what_was_refused() -> None:
    result = load("AuthorizationPolicy", "rulez: []")
    (error,) = result.errors
    assert isinstance(error, ManifestError)
    assert error.place == Place("f.yaml", 5, 3)
    assert [(refused.kind, refused.name) for refused in result.refused] == [("AuthorizationPolicy", "x")]
