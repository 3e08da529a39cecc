"""RE2 patterns: refused where RE2 refuses them, and matched in bounded time.

Envoy evaluates every regular expression of a configuration with RE2 and tests the whole string. A pattern that RE2 would
refuse must be refused here too: a policy must not mean one thing in Envoy and another one in this library. Python's `re` is
fast but backtracks; an automaton takes over where a text could make it slow.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from proxyless.core.automaton import Automaton
from proxyless.core.regex_syntax import (
    Alternative,
    Assertion,
    Characters,
    Group,
    Node,
    Repeat,
    Sequence_,
    byte_text,
    parse,
)

__all__ = ["compile_re2", "full_matcher"]

_BUDGET = 100_000  # steps that `re` may take at worst: about a millisecond
_ASSERTIONS = {
    "start": r"\A",
    "end": r"\Z",
    "line_start": "(?m:^)",
    "line_end": "(?m:$)",
    "word": r"\b",
    "no_word": r"(?!\b)",  # \B does not match an empty text before Python 3.14
}


def compile_re2(pattern: str) -> re.Pattern[str]:
    """The pattern for `re`, with the same groups, to be used on `byte_text`: for rewrites. Raises ValueError with the reason.

    Matching may backtrack; `full_matcher` does not.
    """
    return _compile(pattern, parse(pattern))


def full_matcher(pattern: str) -> Callable[[str], bool]:
    """A test of whole texts, which may have surrogate escapes for bytes that are no UTF-8. Raises ValueError with the reason."""
    node = parse(pattern)
    compiled = _compile(pattern, node)
    branches, loops = _cost(node)
    if branches + loops == 0:
        return partial(_quick, compiled)
    automaton = Automaton(node)
    return partial(_bounded, compiled, automaton, _longest_text(branches, loops))


def _compile(pattern: str, node: Node) -> re.Pattern[str]:
    try:
        return re.compile(_python(node), re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"invalid regular expression {pattern!r}: {error}") from None


def _quick(compiled: re.Pattern[str], text: str) -> bool:
    return compiled.fullmatch(text if text.isascii() else byte_text(text)) is not None


def _bounded(compiled: re.Pattern[str], automaton: Automaton, longest: int, text: str) -> bool:
    text = byte_text(text)
    if len(text) <= longest:
        return compiled.fullmatch(text) is not None
    return automaton.fullmatch(text)


# ------------------------------------------------------------------------------------------------------------------- cost

_ALWAYS_AUTOMATON = 64


def _cost(node: Node) -> tuple[int, int]:
    """(choices that double the work, loops that multiply it by the length of the text) of backtracking, at worst."""
    match node:
        case Characters() | Assertion():
            return 0, 0
        case Group():
            return _cost(node.node)
        case Sequence_() | Alternative():
            inner = [_cost(each) for each in node.nodes]
            branches = sum(each for each, _ in inner) + (len(node.nodes) - 1 if isinstance(node, Alternative) else 0)
            return branches, sum(each for _, each in inner)
        case Repeat():
            if node.least == node.most == 1 or (node.most == node.least and isinstance(node.node, Characters)):
                return _cost(node.node)
            if isinstance(node.node, Characters):
                return (1, 0) if node.most == 1 else (0, 1)
            branches, loops = _cost(node.node)
            # Something that varies, repeated: exponential.
            return (branches + 1, loops) if node.most == 1 else (_ALWAYS_AUTOMATON, loops)


def _longest_text(branches: int, loops: int) -> int:
    """The longest text on which `re` stays in the budget."""
    share = _BUDGET >> min(branches, _ALWAYS_AUTOMATON)
    if loops == 0:
        return share
    return int(share ** (1 / loops))


# ----------------------------------------------------------------------------------------------------------------- python


def _python(node: Node) -> str:
    match node:
        case Characters():
            return _python_class(node)
        case Assertion():
            return _ASSERTIONS[node.kind]
        case Sequence_():
            return "".join(
                f"(?:{_python(each)})" if isinstance(each, Alternative) else _python(each) for each in node.nodes
            )
        case Alternative():
            return "|".join(_python(each) for each in node.nodes)
        case Group():
            return f"({f'?P<{node.name}>' if node.name else ''}{_python(node.node)})"
        case Repeat():
            inner = _python(node.node)
            if not isinstance(node.node, Characters | Group):
                inner = f"(?:{inner})"
            most = "" if node.most is None else node.most
            return f"{inner}{{{node.least},{most}}}{'?' if node.lazy else ''}"


def _python_class(node: Characters) -> str:
    if node.negated and node.ranges == ((10, 10),):
        return "."
    if not node.negated and len(node.ranges) == 1 and node.ranges[0][0] == node.ranges[0][1]:
        return re.escape(chr(node.ranges[0][0]))
    if not node.ranges:
        return "(?s:.)"  # nothing excluded
    parts = "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in node.ranges)
    return f"[{'^' if node.negated else ''}{parts}]"
