"""Header mutations on raw pairs, in Envoy's order: level by level, and in a level removals before additions.

Source: Envoy `HeaderParser::evaluateHeaders`; HeaderValueOption.append_action. Names are compared without case. Pseudo-headers
and Host cannot be removed; an addition to `:authority`, `host`, `:path` or `:method` replaces that part of the request.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxyless.core.resources import AppendAction, HeaderMutation, HeaderMutations

__all__ = ["Pairs", "mutate"]

Pairs = list[tuple[bytes, bytes]]

_KEPT = frozenset({b"host"})
_ALIASES = {b"host": b":authority"}


def mutate(headers: Pairs, levels: Iterable[HeaderMutations]) -> dict[bytes, bytes] | None:
    """Apply `levels` to `headers` in place. Returns pseudo-headers that were set, by name; None when there are none."""
    pseudo: dict[bytes, bytes] | None = None
    for level in levels:
        if level.remove:
            gone = frozenset(name.lower() for name in level.remove) - _KEPT
            headers[:] = [pair for pair in headers if pair[0].lower() not in gone]
        for mutation in level.add:
            name = _ALIASES.get(mutation.name, mutation.name)
            if name.startswith(b":"):
                pseudo = pseudo if pseudo is not None else {}
                if mutation.action is not AppendAction.ADD_IF_ABSENT:
                    pseudo[name] = mutation.value
            else:
                _add(headers, mutation)
    return pseudo


def _add(headers: Pairs, mutation: HeaderMutation) -> None:
    name, action = mutation.name, mutation.action
    if action is not AppendAction.APPEND_IF_EXISTS_OR_ADD:
        exists = any(pair[0].lower() == name for pair in headers)
        unwanted = AppendAction.ADD_IF_ABSENT if exists else AppendAction.OVERWRITE_IF_EXISTS
        if action is unwanted:
            return
        if exists:
            headers[:] = [pair for pair in headers if pair[0].lower() != name]
    headers.append((name, mutation.value))
