"""Whatever is in a file: collected messages, right lines, no exception."""

from __future__ import annotations

import time
from typing import Any

import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from proxyless.controlplane.manifest.loader import load_text
from proxyless.controlplane.manifest.meshconfig import load_mesh_text
from proxyless.controlplane.manifest.model import SPECS, EnvoyOnly, VirtualService
from proxyless.controlplane.manifest.references import check_references
from proxyless.controlplane.manifest.schema import (
    BooleanShape,
    BytesShape,
    DurationShape,
    EnumShape,
    FreeShape,
    ListShape,
    MapShape,
    MessageShape,
    NumberShape,
    PercentShape,
    Shape,
    StringShape,
    schema_of,
)

from .helpers import errors, route

YAMLISH = st.lists(
    st.sampled_from(
        ["a", "kind", "spec", "http", ": ", ":", "- ", "\n", "\n  ", "\n---\n", "\n...\n", "[", "]", "{", "}", ",", "&x ",
         "*x", "<<", "? ", "|", ">", '"', "'", "#", "!t ", "%", "\t", "\ufeff", "~", "off", "5", "1s", "\r\n", "\x00"]
    ),
    max_size=40,
).map("".join)  # fmt: skip

LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 70000), st.floats(), st.text(max_size=8),
    st.sampled_from(["a.b", "1s", "*", "10.0.0.0/8", "ALLOW", "STATIC", "shop/edge", "mesh", "5xx", "/v1/{*}", "-1", ""]),
)  # fmt: skip


@given(st.one_of(YAMLISH, st.text(max_size=200)))
@example("? ")
@example("&a")
@example("a: &a [*a]")
def test_any_text_gives_messages_and_never_an_exception(text: str) -> None:
    begin = time.monotonic()
    for content in (text, text.encode("utf-8", "surrogatepass")):
        for message in load_text(content, "f").messages:
            assert str(message).startswith("f:")
    load_mesh_text(text, "mesh")
    assert time.monotonic() - begin < 2


@given(st.binary(max_size=200))
def test_any_bytes_do(data: bytes) -> None:
    load_text(data, "f")


def values(shape: Shape, depth: int) -> st.SearchStrategy[Any]:
    """Values that fit a shape, mostly."""
    match shape:
        case StringShape():
            good: st.SearchStrategy[Any] = st.sampled_from(
                ["a", "a.b", "*.a", "1.2.3.4", "GET", "x-y", "shop/a", "8080"]
            )
        case BooleanShape():
            good = st.booleans()
        case NumberShape():
            good = st.integers(0, 600)
        case DurationShape():
            good = st.sampled_from(["1s", "10ms", "0s"])
        case EnumShape():
            good = st.sampled_from(shape.words)
        case PercentShape():
            good = st.fixed_dictionaries({"value": st.integers(0, 100)})
        case BytesShape():
            good = st.just("YQ==")
        case ListShape():
            good = st.lists(values(shape.item, depth), max_size=2)
        case MapShape():
            keys = st.sampled_from(["80", "8080"] if shape.number_keys else ["a", "x-b", "http"])
            good = st.dictionaries(keys, values(shape.value, depth), max_size=2)
        case MessageShape():
            good = messages(shape.cls, depth - 1)
        case FreeShape():
            good = st.just({})
    return st.one_of(good, good, good, good, LEAVES)


def messages(cls: type[Any], depth: int) -> st.SearchStrategy[dict[str, Any]]:
    if depth < 0:
        return st.just({})
    fields = schema_of(cls).fields.values()
    required = {field.name: values(field.shape, depth) for field in fields if field.required}
    optional = {field.name: values(field.shape, depth) for field in fields if not field.required}
    return st.fixed_dictionaries(required, optional=optional)


DOCUMENTS = st.sampled_from([key for key, spec in SPECS.items() if spec is not EnvoyOnly]).flatmap(
    lambda key: st.fixed_dictionaries(
        {
            "apiVersion": st.just(f"{key[0]}/v1"),
            "kind": st.just(key[1]),
            "metadata": st.just({"name": "x", "namespace": "shop"}),
            "spec": st.deferred(lambda: messages(SPECS[key], 5)),
        }
    )
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(DOCUMENTS)
def test_specs_that_nearly_fit_are_accepted_or_refused_with_places_inside_the_file(document: dict[str, Any]) -> None:
    text = yaml.safe_dump(document, sort_keys=False, allow_unicode=True)
    result = load_text(text, "f")
    assert bool(result.resources) != bool(result.errors)
    findings = check_references(result.resources)
    lines = text.count("\n") + 1
    for message in (*result.messages, *findings):
        assert 1 <= message.place.line <= lines
        assert message.reason


WORDS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJ_", min_size=1, max_size=12)
HTTP = ["name: a", "timeout: 1s", "retries: {attempts: 1}", "route: [{destination: {host: a.b}}]"]


@given(WORDS, st.integers(0, len(HTTP)))
def test_an_unknown_field_is_always_reported_at_its_own_line(word: str, position: int) -> None:
    known = schema_of(SPECS["networking.istio.io", "VirtualService"]).fields["http"].shape
    assert isinstance(known, ListShape)
    assert isinstance(known.item, MessageShape)
    lines = [*HTTP]
    lines.insert(position, f'"{word}": 1')
    result = route("\n".join(lines))
    if word not in schema_of(known.item.cls).fields:
        (error,) = errors(result)
        assert (error.code, error.place.line) == ("unknown-field", 7 + position)
        assert error.path == f"spec.http[0].{word}"


@given(st.permutations(HTTP))
def test_the_order_of_fields_means_nothing(lines: list[str]) -> None:
    (shuffled,), (plain,) = route("\n".join(lines)).of(VirtualService), route("\n".join(HTTP)).of(VirtualService)
    assert shuffled.spec == plain.spec
