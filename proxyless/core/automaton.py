"""A regular expression as a finite automaton: a full match in time proportional to the text, whatever pattern and text are.

Thompson's construction; states of the deterministic automaton are made when a text first needs them and kept in a bounded cache,
as in RE2. Python's `re` is faster on easy patterns and can take exponential time on others, which a header could provoke.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxyless.core.regex_syntax import (
    Alternative,
    Assertion,
    Characters,
    Group,
    Node,
    Repeat,
    Sequence_,
)

__all__ = ["Automaton"]

_MAX_INSTRUCTIONS = 5_000
_MAX_STATES = 1_000
_MAX_TRANSITIONS = 256  # of one state
_WORD_CHARACTERS = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz")
_MATCH = 0

# What stands before a position: nothing, a line feed, a word character, anything else.
_START, _LINE, _WORD, _OTHER = range(4)


class _State:
    """A set of instructions that may be next, and what stands before. `ends` caches whether the text may end here."""

    __slots__ = ("before", "ends", "instructions", "next")

    def __init__(self, instructions: frozenset[int], before: int) -> None:
        self.instructions, self.before = instructions, before
        self.next: dict[str, _State] = {}
        self.ends: bool | None = None


class Automaton:
    """Safe for threads: states are complete before they are shared, and only ever added."""

    def __init__(self, node: Node) -> None:
        """Raises ValueError when the pattern is too large."""
        # An instruction is a set of characters and its successor, an assertion and its successor, or successors alone.
        self._tests: list[Characters | Assertion | None] = [None]
        self._after: list[tuple[int, ...]] = [()]
        start = self._build(node, _MATCH)
        self._states: dict[tuple[frozenset[int], int], _State] = {}
        self._first = self._state(frozenset((start,)), _START)

    def fullmatch(self, text: str) -> bool:
        state = self._first
        for char in text:
            found = state.next.get(char)
            state = found if found is not None else self._step(state, char)
            if not state.instructions:
                return False
        if state.ends is None:
            state.ends = _MATCH in self._closure(state, "")
        return state.ends

    # -------------------------------------------------------------------------------------------------------- construction

    def _add(self, test: Characters | Assertion | None, after: tuple[int, ...]) -> int:
        if len(self._tests) >= _MAX_INSTRUCTIONS:
            raise ValueError("the regular expression is too large")
        self._tests.append(test)
        self._after.append(after)
        return len(self._tests) - 1

    def _build(self, node: Node, after: int) -> int:
        """Instructions for `node` that lead to `after`; returns the first one."""
        match node:
            case Characters() | Assertion():
                return self._add(node, (after,))
            case Group():
                return self._build(node.node, after)
            case Sequence_():
                for each in reversed(node.nodes):
                    after = self._build(each, after)
                return after
            case Alternative():
                return self._add(None, tuple(self._build(each, after) for each in node.nodes))
            case Repeat():
                return self._repeat(node, after)

    def _repeat(self, node: Repeat, after: int) -> int:
        if node.most is None:
            loop = self._add(None, ())
            self._after[loop] = (self._build(node.node, loop), after)
            after = loop
        else:
            end = after
            for _ in range(node.most - node.least):
                after = self._add(None, (self._build(node.node, after), end))
        for _ in range(node.least):
            after = self._build(node.node, after)
        return after

    # ---------------------------------------------------------------------------------------------------------- simulation

    def _state(self, instructions: frozenset[int], before: int) -> _State:
        key = (instructions, before)
        state = self._states.get(key)
        if state is None:
            if len(self._states) >= _MAX_STATES:
                self._states = {}
            state = self._states[key] = _State(instructions, before)
        return state

    def _step(self, state: _State, char: str) -> _State:
        code = ord(char)
        reached = [
            self._after[each][0]
            for each in self._closure(state, char)
            if isinstance(test := self._tests[each], Characters) and test.holds(code)
        ]
        before = _LINE if char == "\n" else _WORD if char in _WORD_CHARACTERS else _OTHER
        found = self._state(frozenset(reached), before)
        if len(state.next) < _MAX_TRANSITIONS:
            state.next[char] = found
        return found

    def _closure(self, state: _State, char: str) -> Iterable[int]:
        """Instructions reachable without a character; `char` is the next one, empty at the end."""
        seen: set[int] = set()
        todo = list(state.instructions)
        while todo:
            each = todo.pop()
            if each in seen:
                continue
            seen.add(each)
            test = self._tests[each]
            if test is None or (isinstance(test, Assertion) and _stands(test, state.before, char)):
                todo.extend(self._after[each])
        return seen


def _stands(assertion: Assertion, before: int, char: str) -> bool:
    match assertion.kind:
        case "start":
            return before == _START
        case "end":
            return not char
        case "line_start":
            return before in (_START, _LINE)
        case "line_end":
            return char in ("", "\n")
        case "word":
            return (before == _WORD) != (char in _WORD_CHARACTERS)
        case "no_word":
            return (before == _WORD) == (char in _WORD_CHARACTERS)
