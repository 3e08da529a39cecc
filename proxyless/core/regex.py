"""RE2 patterns on Python's `re`: translated where the two agree in power, refused where RE2 has no such construct.

Envoy evaluates every regular expression of a configuration with RE2 and tests the whole string. A pattern that RE2 would
refuse must be refused here too: a policy must not mean one thing in Envoy and another one in this library. What differs
silently between the two dialects is rewritten: `$` (before a final newline in Python), `\\s` (vertical tab), `{,n}` (a literal
in RE2), flags in the middle of a group, POSIX classes, `\\Q...\\E`, `\\z`, `(?<name>`.

Source: RE2 syntax page and its parser; Envoy `Regex::CompiledGoogleReMatcher` (full match, default options).
"""

from __future__ import annotations

import re

__all__ = ["compile_re2", "re2_fullmatch"]

_MAX_REPEAT = 1000  # RE2 kMaxRepeat

_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "ascii": r"\x00-\x7f",
    "blank": r"\t\ ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": r"!-\~",
    "lower": "a-z",
    "print": r"\ -\~",
    "punct": r"!-/:-@\[-`\{-\~",
    "space": r"\t\n\v\f\r\ ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}
_SPACE = r"\t\n\f\r\ "  # RE2 \s has no vertical tab
_SIMPLE_ESCAPES = frozenset("afnrtv")
_REPEAT = re.compile(r"\{[0-9]+(?:,[0-9]*)?\}")
_GROUP = re.compile(r"\(\?(?:P?<(?P<name>[A-Za-z_][A-Za-z0-9_]*)>|(?P<flags>[imsU]*(?:-[imsU]+)?)(?P<end>[:)]))")


def compile_re2(pattern: str) -> re.Pattern[str]:
    """Compile an RE2 pattern. Raises ValueError with the reason when RE2 would refuse it or `re` cannot express it."""
    translated = _Translator(pattern).run()
    try:
        return re.compile(translated, re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"invalid regular expression {pattern!r}: {error}") from None


def re2_fullmatch(compiled: re.Pattern[str], text: str) -> bool:
    """Full match. Text that is not Unicode (surrogate escapes of invalid UTF-8) matches nothing, as in RE2."""
    if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
        return False
    return compiled.fullmatch(text) is not None


class _Translator:
    """One pass over the pattern. `scopes` holds, for each open group, the flag groups opened inside of it by `(?i)`."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0
        self.out: list[str] = []
        self.scopes: list[list[str]] = [[]]
        self.repeatable = False  # the last item may take a quantifier

    def run(self) -> str:
        pattern = self.pattern
        while self.at < len(pattern):
            char = pattern[self.at]
            if char == "\\":
                self._escape()
            elif char == "[":
                self._char_class()
            elif char == "(":
                self._open()
            elif char == ")":
                self._close()
            elif char == "|":
                self._alternative()
            elif char in "*+?" or (char == "{" and _REPEAT.match(pattern, self.at)):
                self._quantifier(char)
            else:
                self._plain(char)
        if len(self.scopes) != 1:
            raise self._error("missing )")
        self.out.append(")" * len(self.scopes[0]))
        return "".join(self.out)

    def _error(self, reason: str) -> ValueError:
        return ValueError(f"invalid regular expression {self.pattern!r}: {reason} (at {self.at}; the dialect is RE2)")

    def _emit(self, text: str, length: int, *, repeatable: bool = True) -> None:
        self.out.append(text)
        self.at += length
        self.repeatable = repeatable

    def _plain(self, char: str) -> None:
        if char == "$":
            self._emit("$" if self._multiline() else r"\Z", 1)
        elif char == "^":
            self._emit("^", 1)
        elif char == ".":
            self._emit(".", 1)
        else:
            self._emit(re.escape(char), 1)

    def _multiline(self) -> bool:
        state = False
        for scope in self.scopes:
            for flags in scope:
                on, _, off = flags.partition("-")
                state = ("m" in on) or (state and "m" not in off)
        return state

    def _quantifier(self, char: str) -> None:
        if not self.repeatable:
            raise self._error(f"repetition operator {char!r} has nothing to repeat, or follows another one")
        text = char
        if char == "{":
            text = self._counted()
        lazy = self.pattern[self.at + len(text) : self.at + len(text) + 1] == "?"
        self._emit(text + ("?" if lazy else ""), len(text) + lazy, repeatable=False)

    def _counted(self) -> str:
        """The ``{n}``, ``{n,}`` or ``{n,m}`` here."""
        text = self.pattern[self.at : self.pattern.index("}", self.at) + 1]
        numbers = [int(part) for part in text[1:-1].split(",") if part]
        if max(numbers) > _MAX_REPEAT or numbers != sorted(numbers):
            raise self._error("invalid repetition size")
        return text

    def _alternative(self) -> None:
        """`a(?i)b|c`: the flag holds for `c` too, so its groups are closed before the bar and opened again after it."""
        scope = self.scopes[-1]
        self._emit(")" * len(scope) + "|" + "".join(f"(?{flags}:" for flags in scope), 1, repeatable=False)

    def _open(self) -> None:
        if not self.pattern.startswith("(?", self.at):
            self.scopes.append([])
            self._emit("(", 1, repeatable=False)
            return
        found = _GROUP.match(self.pattern, self.at)
        if found is None:
            raise self._error(
                f"{self.pattern[self.at : self.at + 4]!r} is not RE2 (no look-around, references, atomic groups)"
            )
        if found["name"]:
            self.scopes.append([])
            self._emit(f"(?P<{found['name']}>", len(found[0]), repeatable=False)
            return
        flags = found["flags"]
        if "U" in flags:
            raise self._error("flag U (ungreedy) is not supported")
        if found["end"] == ":":
            self.scopes.append([flags] if flags else [])
            self._emit(f"(?:(?{flags}:" if flags else "(?:", len(found[0]), repeatable=False)
            return
        if not flags:
            raise self._error("missing flags in (?)")
        self.scopes[-1].append(flags)
        self._emit(f"(?{flags}:", len(found[0]), repeatable=False)

    def _close(self) -> None:
        if len(self.scopes) == 1:
            raise self._error("unexpected )")
        self._emit(")" * (len(self.scopes.pop()) + 1), 1)

    def _escape(self) -> None:
        following = self.pattern[self.at + 1 : self.at + 2]
        if following == "Q":
            end = self.pattern.find("\\E", self.at + 2)
            literal = self.pattern[self.at + 2 : end if end >= 0 else len(self.pattern)]
            self._emit(re.escape(literal), len(literal) + (4 if end >= 0 else 2), repeatable=bool(literal))
        elif following in ("A", "b", "B"):
            self._emit("\\" + following, 2)
        elif following == "z":
            self._emit(r"\Z", 2)
        elif following in ("d", "D", "w", "W"):
            self._emit("\\" + following, 2)
        elif following in ("s", "S"):
            self._emit(f"[{'^' if following == 'S' else ''}{_SPACE}]", 2)
        else:
            code, length = self._literal_escape()
            self._emit(re.escape(chr(code)), length)

    def _literal_escape(self) -> tuple[int, int]:
        """Code point and length of an escape that stands for one character."""
        rest = self.pattern[self.at + 1 :]
        char = rest[:1]
        if not char:
            raise self._error("trailing \\")
        if char in _SIMPLE_ESCAPES:
            return ord({"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}[char]), 2
        if char == "x":
            found = re.match(r"x(?:([0-9A-Fa-f]{2})|\{([0-9A-Fa-f]{1,6})\})", rest)
            if found is None or (code := int(found[1] or found[2], 16)) > 0x10FFFF:
                raise self._error("invalid escape \\x")
            return code, 1 + len(found[0])
        octal = re.match(r"0[0-7]{0,2}|[1-7][0-7]{1,2}", rest)
        if octal is not None:
            return int(octal[0], 8), 1 + len(octal[0])
        if char.isdigit():
            raise self._error("back references do not exist in RE2")
        if char in "pPC" or char.isalnum() or char == "_" or not char.isascii():
            raise self._error(f"escape \\{char} is not supported")
        return ord(char), 2

    def _char_class(self) -> None:
        out, start = ["["], self.at
        self.at += 1
        if self.pattern.startswith("^", self.at):
            out.append("^")
            self.at += 1
        first = True
        while first or not self.pattern.startswith("]", self.at):
            first = False
            if self.at >= len(self.pattern):
                self.at = start
                raise self._error("missing ]")
            out.append(self._class_item())
        out.append("]")
        self._emit("".join(out), 1)

    def _class_item(self) -> str:
        pattern = self.pattern
        if pattern.startswith("[:", self.at) and (end := pattern.find(":]", self.at)) >= 0:
            name = pattern[self.at + 2 : end]
            if name.startswith("^") or name not in _POSIX:
                raise self._error(f"character class [:{name}:] is not supported")
            self.at = end + 2
            return _POSIX[name]
        if pattern[self.at] == "\\" and pattern[self.at + 1 : self.at + 2] in ("d", "D", "w", "W", "s", "S"):
            kind = pattern[self.at + 1]
            self.at += 2
            if kind == "S":
                raise self._error("\\S inside of a character class is not supported")
            return _SPACE if kind == "s" else "\\" + kind
        low = self._class_char()
        if pattern.startswith("-", self.at) and pattern[self.at + 1 : self.at + 2] not in ("]", ""):
            self.at += 1
            high = self._class_char()
            if high < low:
                raise self._error("invalid character class range")
            return f"{_in_class(low)}-{_in_class(high)}"
        return _in_class(low)

    def _class_char(self) -> int:
        if self.pattern[self.at] == "\\":
            code, length = self._literal_escape()
            self.at += length
            return code
        self.at += 1
        return ord(self.pattern[self.at - 1])


def _in_class(code: int) -> str:
    char = chr(code)
    return char if char.isalnum() or not char.isascii() else f"\\x{code:02x}"
