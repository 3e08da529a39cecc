"""How a decoder says what is wrong and where: leaves raise ValueError, each level above adds its part of the field path."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from proxyless.errors import InvalidResourceError

__all__ = ["FieldError", "at", "each", "guarded"]

T = TypeVar("T")


class FieldError(ValueError):
    """`path` in proto names, `reason` for people. Never leaves the package: `guarded` makes an InvalidResourceError of it."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(reason)
        self.path, self.reason = path, reason

    def under(self, parent: str) -> FieldError:
        return FieldError(f"{parent}.{self.path}" if self.path else parent, self.reason)


def at(name: str, decode: Callable[[Any], T], value: Any) -> T:
    """`decode(value)`; an error gets `name` in front of its path."""
    try:
        return decode(value)
    except ValueError as error:
        raise _as_field_error(error).under(name) from None


def each(name: str, decode: Callable[[Any], T], values: Iterable[Any]) -> tuple[T, ...]:
    """`decode` of every item; an error gets ``name[index]`` in front of its path."""
    result: list[T] = []
    for index, value in enumerate(values):
        try:
            result.append(decode(value))
        except ValueError as error:
            raise _as_field_error(error).under(f"{name}[{index}]") from None
    return tuple(result)


def guarded(type_url: str, name: str, decode: Callable[[Any], T], value: Any) -> T:
    """The outermost level: whatever a decoder raises becomes an InvalidResourceError."""
    try:
        return decode(value)
    except ValueError as error:
        found = _as_field_error(error)
        raise InvalidResourceError(type_url, name, found.path, found.reason) from None


def _as_field_error(error: ValueError) -> FieldError:
    return error if isinstance(error, FieldError) else FieldError("", str(error))
