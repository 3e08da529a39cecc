"""Nodes to dataclasses. Every wrong value gets its own message; a wrong one never stops the search for others."""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

from .context import Context, child_path
from .durations import EXAMPLE, DurationError, parse_duration
from .hints import about_unknown_field, did_you_mean
from .model import Destination, MutualTLS, PortSelector, ProviderRef, StringMatch
from .schema import (
    BooleanShape,
    BytesShape,
    DurationShape,
    EnumShape,
    Field,
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
from .syntax import Node, YamlMapping, YamlScalar, YamlSequence

__all__ = ["FAILED", "decode_message", "decode_value", "is_null"]

FAILED: Final = object()
"""Stands for a value that could not be read; its message has been reported."""

# The field that people mean when they write one word where a message is expected.
_MAIN_FIELDS: Final[dict[type[Any], str]] = {
    StringMatch: "exact",
    Destination: "host",
    PortSelector: "number",
    MutualTLS: "mode",
    ProviderRef: "name",
}
_TRUE: Final = frozenset({"y", "yes", "true", "on"})
_INTEGER: Final = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,19})")


def is_null(node: Node) -> bool:
    return isinstance(node, YamlScalar) and node.type == "null"


def decode_message(context: Context, cls: type[Any], node: Node, path: str) -> Any:
    """An instance of the dataclass, or FAILED."""
    if not isinstance(node, YamlMapping):
        return _wrong_type(context, node, path, "a mapping of fields", _long_form(cls, node))
    schema = schema_of(cls)
    values: dict[str, Any] = {}
    failed = False
    context.ancestors.append((path, cls))
    report_duplicates(context, node, path)
    for key, value_node in node.entries:
        here = child_path(path, key.text)
        field = schema.fields.get(key.text)
        if field is None:
            hint = about_unknown_field(key.text, path, context.ancestors)
            context.report("error", "unknown-field", here, "unknown field", hint, key.place)
            continue
        if is_null(value_node):
            reason = "an empty value counts as absent"
            context.report("warning", "empty", here, reason, "leave the field out, or give it a value", key.place)
            continue
        context.places[here] = key.place
        value = decode_value(context, field.shape, value_node, here)
        failed |= value is FAILED
        values[field.attribute] = value
    for field in schema.fields.values():
        failed |= field.required and _missing(context, field, values, node, path)
    context.ancestors.pop()
    return FAILED if failed else cls(**values)


def _long_form(cls: type[Any], node: Node) -> str:
    """``{host: cart}`` for a destination that was written as the bare word ``cart``."""
    field = _MAIN_FIELDS.get(cls)
    if field is None or not isinstance(node, YamlScalar) or node.type == "null":
        return ""
    return f"write {{{field}: {node.text[:60]}}}"


def report_duplicates(context: Context, node: YamlMapping, path: str) -> None:
    for key, first in node.duplicates:
        here = child_path(path, key.text)
        reason = f"duplicate key, first at line {first.line}"
        context.report("error", "duplicate-key", here, reason, "only one of them would count", key.place)


def _missing(context: Context, field: Field, values: dict[str, Any], node: YamlMapping, path: str) -> bool:
    here = child_path(path, field.name)
    if field.attribute not in values:
        context.report("error", "required", here, "required field is missing", place=node.place)
        context.failed = True
        return True
    if values[field.attribute] in ("", ()):
        context.error(here, "must not be empty", code="required")
    return False


def decode_value(context: Context, shape: Shape, node: Node, path: str) -> Any:
    """The value in the model's form, or FAILED."""
    value: Any
    if isinstance(shape, MessageShape):
        value = decode_message(context, shape.cls, node, path)
    elif isinstance(shape, ListShape):
        value = _decode_list(context, shape, node, path)
    elif isinstance(shape, MapShape):
        value = _decode_map(context, shape, node, path)
    elif isinstance(shape, PercentShape):
        value = _decode_percent(context, node, path)
    elif isinstance(shape, FreeShape):
        value = _plain(node)
    else:
        value = _decode_scalar(context, shape, node, path)
    if value is FAILED:
        context.failed = True
    return value


def _decode_list(context: Context, shape: ListShape, node: Node, path: str) -> Any:
    if not isinstance(node, YamlSequence):
        return _wrong_type(context, node, path, "a list", "put '- ' before each element")
    values = []
    for index, item in enumerate(node.items):
        here = f"{path}[{index}]"
        context.places[here] = item.place
        values.append(decode_value(context, shape.item, item, here))
    if shape.limit is not None and len(values) > shape.limit.maximum:
        context.error(path, f"{len(values)} elements, at most {shape.limit.maximum} are allowed", code="range")
    return FAILED if any(value is FAILED for value in values) else tuple(values)


def _decode_map(context: Context, shape: MapShape, node: Node, path: str) -> Any:
    if not isinstance(node, YamlMapping):
        return _wrong_type(context, node, path, "a mapping of names to values")
    report_duplicates(context, node, path)
    values: dict[Any, Any] = {}
    failed = False
    for key, value_node in node.entries:
        here = child_path(path, key.text)
        context.places[here] = key.place
        if key.type in ("boolean", "null") or (shape.number_keys and not _INTEGER.fullmatch(key.text)):
            wanted = "a number" if shape.number_keys else "a string"
            hint = f'quote it: "{key.text}"' if not shape.number_keys else ""
            context.report("error", "type", here, f"the key must be {wanted}, found {_describe(key)}", hint, key.place)
            failed = True
            continue
        value = decode_value(context, shape.value, value_node, here)
        failed |= value is FAILED
        values[int(key.text) if shape.number_keys else key.text] = value
    return FAILED if failed else values


def _decode_percent(context: Context, node: Node, path: str) -> Any:
    if isinstance(node, YamlScalar):
        return _wrong_type(context, node, path, "a percentage", f"write {{value: {node.text.strip('% ') or 50}}}")
    if not isinstance(node, YamlMapping):
        return _wrong_type(context, node, path, "a percentage", "write {value: 50}")
    report_duplicates(context, node, path)
    result: Any = 0.0
    for key, value_node in node.entries:
        here = child_path(path, key.text)
        if key.text != "value":
            context.report("error", "unknown-field", here, "unknown field", "write {value: 50}", key.place)
        elif not is_null(value_node):
            context.places[here] = key.place
            result = decode_value(context, NumberShape(False, 0, 100), value_node, here)
    return result


def _decode_scalar(context: Context, shape: Shape, node: Node, path: str) -> Any:
    match shape:
        case StringShape():
            return _decode_string(context, shape, node, path)
        case BooleanShape():
            if isinstance(node, YamlScalar) and node.type == "boolean":
                return node.text.lower() in _TRUE
            return _wrong_type(context, node, path, "true or false", _unquote(node))
        case NumberShape():
            return _decode_number(context, shape, node, path)
        case DurationShape():
            return _decode_duration(context, shape, node, path)
        case EnumShape():
            return _decode_enum(context, shape, node, path)
        case BytesShape():
            return _decode_bytes(context, node, path)
        case _:
            raise TypeError(f"no scalar shape: {shape!r}")


def _decode_string(context: Context, shape: StringShape, node: Node, path: str) -> Any:
    if not isinstance(node, YamlScalar) or node.type != "string":
        return _wrong_type(context, node, path, "a string", _quote(node))
    limit, text = shape.limit, node.text
    if limit is not None and not limit.minimum <= len(text) <= limit.maximum:
        return _out_of_range(context, path, f"{len(text)} characters; {limit.minimum} to {limit.maximum} are allowed")
    if shape.text is not None and not re.fullmatch(shape.text.pattern, text):
        return _out_of_range(context, path, f"{text!r} has not the right form", f"for example {shape.text.example}")
    return text


def _decode_number(context: Context, shape: NumberShape, node: Node, path: str) -> Any:
    wanted = "a whole number" if shape.whole else "a number"
    if not isinstance(node, YamlScalar) or node.type != "number":
        return _wrong_type(context, node, path, wanted, _unquote(node))
    value: float
    if _INTEGER.fullmatch(node.text):
        value = int(node.text)
    elif shape.whole:
        return _wrong_type(context, node, path, wanted, "plain decimal digits")
    else:
        try:
            value = float(node.text.replace("_", ""))
        except ValueError:
            return _wrong_type(context, node, path, wanted, "plain decimal digits")
    if not shape.minimum <= value <= shape.maximum:
        return _out_of_range(context, path, f"{node.text} is out of range", _bounds(shape))
    return value if shape.whole else float(value)


def _bounds(shape: NumberShape) -> str:
    if shape.maximum in (float("inf"), 2.0**64 - 1):
        return f"at least {shape.minimum:.15g}"
    return f"from {shape.minimum:.15g} to {shape.maximum:.15g}"


def _decode_duration(context: Context, shape: DurationShape, node: Node, path: str) -> Any:
    if not isinstance(node, YamlScalar) or node.type != "string":
        hint = EXAMPLE
        if isinstance(node, YamlScalar) and node.type == "number":
            hint = f"the unit is missing: {node.text}s or {node.text}ms"
        return _wrong_type(context, node, path, "a duration", hint)
    try:
        return parse_duration(node.text, shape.minimum)
    except DurationError as error:
        context.error(path, error.reason, error.hint, code="duration")
        return FAILED


def _decode_enum(context: Context, shape: EnumShape, node: Node, path: str) -> Any:
    words = ", ".join(shape.words)
    if not isinstance(node, YamlScalar) or node.type != "string":
        return _wrong_type(context, node, path, "a word", f"one of {words}")
    if node.text not in shape.words:
        hint = did_you_mean(node.text, shape.words)
        context.error(path, f"{node.text[:60]!r} is none of the words for it", hint or f"one of {words}", code="enum")
        return FAILED
    return node.text


def _decode_bytes(context: Context, node: Node, path: str) -> Any:
    if not isinstance(node, YamlScalar) or node.type != "string":
        return _wrong_type(context, node, path, "base64 text", _quote(node))
    try:
        return base64.b64decode(node.text, validate=True)
    except (binascii.Error, ValueError):
        context.error(path, "not base64", code="type")
        return FAILED


def _plain(node: Node) -> Any:
    """Free-form content as Python values; words that YAML 1.1 reads as booleans are booleans."""
    if isinstance(node, YamlMapping):
        return {key.text: _plain(value) for key, value in node.entries}
    if isinstance(node, YamlSequence):
        return [_plain(item) for item in node.items]
    if node.type == "boolean":
        return node.text.lower() in _TRUE
    if node.type == "null":
        return None
    if node.type == "number":
        return int(node.text) if _INTEGER.fullmatch(node.text) else node.text
    return node.text


def _describe(node: Node) -> str:
    if isinstance(node, YamlMapping):
        return "a mapping"
    if isinstance(node, YamlSequence):
        return "a list"
    text = node.text if len(node.text) <= 40 else node.text[:40] + "..."
    return {
        "null": "nothing",
        "boolean": f"the boolean {text}",
        "number": f"the number {text}",
        "string": f"the text {text!r}",
    }[node.type]


def _quote(node: Node) -> str:
    if not isinstance(node, YamlScalar):
        return ""
    if node.type == "null":
        return 'write "" for an empty one'
    return f'quote it: "{node.text}"'


def _unquote(node: Node) -> str:
    return "without quotes" if isinstance(node, YamlScalar) and node.type == "string" else ""


def _wrong_type(context: Context, node: Node, path: str, wanted: str, hint: str = "") -> Any:
    place = context.places.get(path, node.place)
    context.report("error", "type", path, f"must be {wanted}, found {_describe(node)}", hint, place)
    return FAILED


def _out_of_range(context: Context, path: str, reason: str, hint: str = "") -> Any:
    context.error(path, reason, hint, code="range")
    return FAILED
