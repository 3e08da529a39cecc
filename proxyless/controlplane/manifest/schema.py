"""The model's type hints as a schema: which YAML field has which shape. Compiled once per class."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from .model.common import DurationRule, Limit, PercentMessage, Range, Text, json_name

__all__ = [
    "BooleanShape",
    "BytesShape",
    "DurationShape",
    "EnumShape",
    "Field",
    "FreeShape",
    "ListShape",
    "MapShape",
    "MessageShape",
    "NumberShape",
    "PercentShape",
    "Schema",
    "Shape",
    "StringShape",
    "schema_of",
]


@dataclass(frozen=True, slots=True)
class StringShape:
    limit: Limit | None = None
    text: Text | None = None


@dataclass(frozen=True, slots=True)
class BytesShape:
    """base64 in YAML."""


@dataclass(frozen=True, slots=True)
class BooleanShape:
    pass


@dataclass(frozen=True, slots=True)
class NumberShape:
    whole: bool
    minimum: float = float("-inf")
    maximum: float = float("inf")


@dataclass(frozen=True, slots=True)
class DurationShape:
    minimum: float


@dataclass(frozen=True, slots=True)
class PercentShape:
    pass


@dataclass(frozen=True, slots=True)
class EnumShape:
    words: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ListShape:
    item: Shape
    limit: Limit | None = None


@dataclass(frozen=True, slots=True)
class MapShape:
    value: Shape
    number_keys: bool


@dataclass(frozen=True, slots=True)
class MessageShape:
    cls: type[Any]


@dataclass(frozen=True, slots=True)
class FreeShape:
    """Any YAML value."""


Shape = (
    StringShape
    | BytesShape
    | BooleanShape
    | NumberShape
    | DurationShape
    | PercentShape
    | EnumShape
    | ListShape
    | MapShape
    | MessageShape
    | FreeShape
)


@dataclass(frozen=True, slots=True)
class Field:
    name: str
    attribute: str
    shape: Shape
    required: bool


@dataclass(frozen=True, slots=True)
class Schema:
    cls: type[Any]
    fields: Mapping[str, Field]

    def children(self) -> Iterator[tuple[str, type[Any]]]:
        """(path suffix, class) of the messages directly below, through lists and maps."""
        for field in self.fields.values():
            suffix, shape = field.name, field.shape
            while isinstance(shape, ListShape | MapShape):
                suffix += "[]"
                shape = shape.item if isinstance(shape, ListShape) else shape.value
            if isinstance(shape, MessageShape):
                yield suffix, shape.cls


_CACHE: Final[dict[type[Any], Schema]] = {}


def schema_of(cls: type[Any]) -> Schema:
    schema = _CACHE.get(cls)
    if schema is None:
        schema = _CACHE[cls] = _compile(cls)
    return schema


def _compile(cls: type[Any]) -> Schema:
    hints = typing.get_type_hints(cls, include_extras=True)
    fields: dict[str, Field] = {}
    for item in dataclasses.fields(cls):
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        field = Field(json_name(item.name), item.name, _shape(hints[item.name]), required)
        fields[field.name] = field
    return Schema(cls, fields)


def _shape(hint: Any) -> Shape:
    marks: tuple[Any, ...] = ()
    hint, marks = _unwrap(hint)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return EnumShape(arguments)
    if origin is tuple:
        return ListShape(_shape(arguments[0]), _mark(marks, Limit))
    if hint is Any:
        return FreeShape()
    if origin is not None and issubclass(origin, Mapping):
        value = _shape(arguments[1])
        return FreeShape() if isinstance(value, FreeShape) else MapShape(value, arguments[0] is int)
    if dataclasses.is_dataclass(hint):
        return MessageShape(typing.cast("type[Any]", hint))
    return _scalar_shape(hint, marks)


def _scalar_shape(hint: Any, marks: tuple[Any, ...]) -> Shape:
    if hint is bool:
        return BooleanShape()
    if hint is bytes:
        return BytesShape()
    if hint is str:
        return StringShape(_mark(marks, Limit), _mark(marks, Text))
    duration, bounds = _mark(marks, DurationRule), _mark(marks, Range)
    if duration is not None:
        return DurationShape(duration.minimum)
    if _mark(marks, PercentMessage) is not None:
        return PercentShape()
    if hint in (int, float):
        return NumberShape(hint is int, *((bounds.minimum, bounds.maximum) if bounds else ()))
    raise TypeError(f"the model has no shape for {hint!r}")


def _unwrap(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """Strips Annotated and ``| None``, in any order."""
    marks: tuple[Any, ...] = ()
    while True:
        origin = typing.get_origin(hint)
        if origin is Annotated:
            hint, *more = typing.get_args(hint)
            marks += tuple(more)
        elif origin in (typing.Union, types.UnionType):
            (hint,) = (part for part in typing.get_args(hint) if part is not type(None))
        else:
            return hint, marks


MarkT = typing.TypeVar("MarkT")


def _mark(marks: tuple[Any, ...], cls: type[MarkT]) -> MarkT | None:
    return next((mark for mark in marks if isinstance(mark, cls)), None)
