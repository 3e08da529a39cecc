"""Header mutations: core.v3.HeaderValueOption lists -> `HeaderMutations`.

Values are literal text. A value with a substitution command (`%REQ(x)%`) is reported and left out: to send the raw command
would be worse than to send nothing. A value that Envoy refuses is refused.
"""

from __future__ import annotations

import re
from typing import Any

from proxyless.core.resources import NO_MUTATIONS, AppendAction, HeaderMutation, HeaderMutations
from proxyless.xds.decode.errors import at, each

__all__ = ["TOKEN", "has_command", "mutations"]

TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_FORBIDDEN_IN_VALUE = re.compile(r"[\0\r\n]")
_COMMAND = re.compile(r"%(?:%|[A-Z][A-Z0-9_]*(?:\([^()]*(?:\([^()]*\)[^()]*)*\))?(?::[0-9]+)?%)")
_ACTIONS = (
    AppendAction.APPEND_IF_EXISTS_OR_ADD,
    AppendAction.ADD_IF_ABSENT,
    AppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    AppendAction.OVERWRITE_IF_EXISTS,
)


def mutations(message: Any, direction: str) -> HeaderMutations:
    """`direction` is ``request`` or ``response``: the fields `<direction>_headers_to_add` and `..._to_remove`."""
    add_field, remove_field = f"{direction}_headers_to_add", f"{direction}_headers_to_remove"
    to_add, to_remove = getattr(message, add_field), getattr(message, remove_field)
    if not to_add and not to_remove:
        return NO_MUTATIONS
    add = each(add_field, _add, to_add)
    remove = each(remove_field, _remove, to_remove)
    return HeaderMutations(tuple(item for item in add if item is not None), remove)


def has_command(value: str) -> bool:
    """The value has a substitution command in it, so it is not literal."""
    return any(found[0] != "%%" for found in _COMMAND.finditer(value))


def _add(option: Any) -> HeaderMutation | None:
    name = at("header.key", _name, option.header.key)
    if option.header.raw_value:
        raise ValueError("header.raw_value is not supported")
    value = at("header.value", _literal, option.header.value)
    if option.HasField("append"):
        if option.append_action:
            raise ValueError("append and append_action exclude each other")
        action = _ACTIONS[0 if option.append.value else 2]
    elif option.append_action < len(_ACTIONS):
        action = _ACTIONS[option.append_action]
    else:
        raise ValueError(f"unknown append_action {option.append_action}")
    if value is None or (not value and not option.keep_empty_value):
        return None
    return HeaderMutation(name, value, action)


def _name(text: str) -> bytes:
    lower = text.lower()
    if lower.startswith(":") or lower == "host":
        raise ValueError(":-prefixed or host headers may not be modified")
    if not TOKEN.match(text):
        raise ValueError(f"{text!r} is not a header name")
    return lower.encode("ascii")


def _remove(text: str) -> bytes:
    return _name(text)


def _literal(text: str) -> bytes | None:
    if _FORBIDDEN_IN_VALUE.search(text):
        raise ValueError("a header value has no CR, LF or NUL")
    rest = _COMMAND.sub("", text)
    if "%" in rest:
        raise ValueError(f"{text!r} has a substitution command that does not end (a plain % is written %%)")
    if has_command(text):
        return None
    return text.replace("%%", "%").encode("utf-8")
