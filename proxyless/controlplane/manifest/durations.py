"""Durations as Go writes them: numbers with units, ``1m30s``; never a bare number, and no days."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

__all__ = ["DurationError", "parse_duration"]

_NANOSECONDS: Final = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_PART: Final = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
_LONGEST_TEXT: Final = 40
_MOST: Final = 2**63 - 1
EXAMPLE: Final = "a number with its unit, for example 30s, 500ms or 1m30s"


class DurationError(ValueError):
    """A text is no duration, or one out of range.

    Attributes:
        reason, hint: as in a message to a person.
    """

    def __init__(self, reason: str, hint: str = EXAMPLE) -> None:
        super().__init__(reason)
        self.reason, self.hint = reason, hint


def parse_duration(text: str, minimum: float) -> float:
    """Seconds of a Go duration.

    With a ``minimum`` above 0 the value must be whole milliseconds, as istiod demands.

    Raises:
        DurationError: with what to write instead.
    """
    nanoseconds = _nanoseconds(text)
    if nanoseconds < 0:
        raise DurationError(f"{text!r} is negative")
    if minimum > 0:
        if nanoseconds < minimum * 10**9:
            raise DurationError(
                f"{text!r} is below {minimum * 1000:g}ms", "leave the field out for the default; the least is 1ms"
            )
        if nanoseconds % 10**6:
            raise DurationError(f"{text!r} is finer than a millisecond", "whole milliseconds, for example 1500ms")
    return nanoseconds / 10**9


def _nanoseconds(text: str) -> int:
    unsigned = text[1:] if text[:1] in ("+", "-") else text
    total, position = 0, 0
    while position < len(unsigned) <= _LONGEST_TEXT:
        part = _PART.match(unsigned, position)
        if part is None:
            break
        total += int(Decimal(part[1]) * _NANOSECONDS[part[2]])
        position = part.end()
    if not unsigned or position < len(unsigned):
        raise DurationError(f"{text[:_LONGEST_TEXT]!r} is not a duration", _what_to_write(text))
    if total > _MOST:
        raise DurationError(f"{text!r} is too long", "at most about 292 years")
    return -total if text[0] == "-" else total


def _what_to_write(text: str) -> str:
    if re.fullmatch(r"[0-9.]+", text):
        return f"the unit is missing: {text}s or {text}ms"
    if days := re.fullmatch(r"([0-9]{1,6})d", text):
        return f"there is no unit for days: {int(days[1]) * 24}h"
    tidy = re.sub(r"\s+", "", text).lower()
    if tidy != text and re.fullmatch(f"(?:{_PART.pattern})+", tidy):
        return f"lower-case units and no blanks: {tidy}"
    return EXAMPLE
