"""Matchers: type.matcher.v3 and the match parts of route.v3 -> `proxyless.core.matchers` and RBAC value matchers."""

from __future__ import annotations

import math
from typing import Any

from proxyless.core.matchers import CidrMatcher, HeaderMatcher, PathMatcher, QueryMatcher, StringMatcher
from proxyless.core.rbac import JWT_METADATA, MetadataRule, ValueMatcher
from proxyless.xds.decode.errors import at, each
from proxyless.xds.decode.values import typed

__all__ = ["cidr", "header_matcher", "metadata_matcher", "query_matcher", "regex", "string_matcher", "uri_template"]

URI_TEMPLATE = "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig"
_LEGACY_HEADER = {
    "exact_match": "exact",
    "prefix_match": "prefix",
    "suffix_match": "suffix",
    "contains_match": "contains",
}
_MAX_VALUE_DEPTH = 16


def regex(value: Any) -> str:
    """The pattern of a RegexMatcher."""
    pattern = str(value.regex)
    if not pattern:
        raise ValueError("regex is empty")
    return pattern


def string_matcher(value: Any) -> StringMatcher:
    kind = value.WhichOneof("match_pattern")
    match kind:
        case "exact":
            return StringMatcher("exact", value.exact, value.ignore_case)
        case "prefix" | "suffix" | "contains":
            text = getattr(value, kind)
            if not text:
                raise ValueError(f"{kind} is empty")
            return StringMatcher(kind, text, value.ignore_case)
        case "safe_regex":
            if value.ignore_case:
                raise ValueError("ignore_case has no effect for safe_regex")
            return StringMatcher("regex", at("safe_regex", regex, value.safe_regex))
    raise ValueError(f"string matcher of kind {kind or 'unset'} is not supported")


def header_matcher(value: Any) -> HeaderMatcher:
    """Also the deprecated fields (`exact_match` and so on). No specifier at all is a presence test."""
    if not value.name:
        raise ValueError("name is empty")
    kind = value.WhichOneof("header_match_specifier")
    string: StringMatcher | None = None
    interval: tuple[int, int] | None = None
    present: bool | None = None
    match kind:
        case "string_match":
            string = at("string_match", string_matcher, value.string_match)
        case "exact_match" | "prefix_match" | "suffix_match" | "contains_match":
            text = getattr(value, kind)
            if not text and kind != "exact_match":
                raise ValueError(f"{kind} is empty")
            string = StringMatcher(_LEGACY_HEADER[kind], text)  # type: ignore[arg-type] # the values of the table
        case "safe_regex_match":
            string = StringMatcher("regex", at("safe_regex_match", regex, value.safe_regex_match))
        case "range_match":
            interval = (value.range_match.start, value.range_match.end)
        case "present_match":
            present = value.present_match
    return HeaderMatcher(value.name, string, interval, present, value.invert_match, value.treat_missing_header_as_empty)


def query_matcher(value: Any) -> QueryMatcher:
    if not value.name:
        raise ValueError("name is empty")
    match value.WhichOneof("query_parameter_match_specifier"):
        case "string_match":
            return QueryMatcher(value.name, at("string_match", string_matcher, value.string_match))
        case "present_match":
            return QueryMatcher(value.name, present=value.present_match)
    return QueryMatcher(value.name)


def uri_template(extension: Any) -> PathMatcher:
    """A TypedExtensionConfig that must hold a UriTemplateMatchConfig."""
    config = at("typed_config", lambda packed: typed(packed, URI_TEMPLATE), extension.typed_config)
    return at("typed_config.path_template", lambda text: PathMatcher("template", text), config.path_template)


def cidr(value: Any) -> CidrMatcher:
    return CidrMatcher(value.address_prefix, value.prefix_len.value)


def metadata_matcher(value: Any) -> MetadataRule:
    """Dynamic metadata. Only what a verified JWT puts there is known; another filter's is refused, for a rule that can never
    match is a hole in a DENY policy."""
    if value.filter != JWT_METADATA:
        raise ValueError(f"dynamic metadata of filter {value.filter!r} does not exist here")
    if not value.path or any(segment.WhichOneof("segment") != "key" for segment in value.path):
        raise ValueError("path needs at least one key")
    matcher = at("value", lambda nested: _value_matcher(nested, 0), value.value)
    return MetadataRule(value.filter, tuple(segment.key for segment in value.path), matcher, value.invert)


def _value_matcher(value: Any, depth: int) -> ValueMatcher:
    if depth > _MAX_VALUE_DEPTH:
        raise ValueError("value matcher is nested too deeply")

    def nested(inner: Any) -> ValueMatcher:
        return _value_matcher(inner, depth + 1)

    match value.WhichOneof("match_pattern"):
        case "null_match":
            return ValueMatcher(null=True)
        case "double_match":
            return ValueMatcher(number=at("double_match", _interval, value.double_match))
        case "string_match":
            return ValueMatcher(string=at("string_match", string_matcher, value.string_match))
        case "bool_match":
            return ValueMatcher(boolean=value.bool_match)
        case "present_match":
            return ValueMatcher(present=value.present_match)
        case "list_match" if value.list_match.WhichOneof("match_pattern") == "one_of":
            return ValueMatcher(one_of=at("list_match.one_of", nested, value.list_match.one_of))
        case "or_match" if len(value.or_match.value_matchers) >= 2:
            return ValueMatcher(any_of=each("or_match.value_matchers", nested, value.or_match.value_matchers))
    raise ValueError("value matcher is unset or of an unknown kind")


def _interval(value: Any) -> tuple[float, float]:
    match value.WhichOneof("match_pattern"):
        case "range":
            start, end = value.range.start, value.range.end
            return (start, end) if start < end else (math.nan, math.nan)
        case "exact":
            return value.exact, value.exact
    raise ValueError("double matcher is unset")
