"""Header mutations on raw pairs, in Envoy's order: level by level, and in a level first removals, then replacements, then
additions.

Source: Envoy `HeaderParser::evaluateHeaders`; HeaderValueOption.append_action; the order recorded from Envoy 1.40. Names are
compared without case. Pseudo-headers and Host are never among them: the decoder refuses such a configuration, as Envoy does.
"""

from __future__ import annotations

from collections.abc import Iterable

from proxyless.core.resources import AppendAction, HeaderMutation, HeaderMutations

__all__ = ["Pairs", "mutate"]

Pairs = list[tuple[bytes, bytes]]


def mutate(headers: Pairs, levels: Iterable[HeaderMutations]) -> None:
    """Apply `levels` to `headers` in place."""
    for level in levels:
        if level.remove:
            gone = frozenset(level.remove)
            headers[:] = [pair for pair in headers if pair[0].lower() not in gone]
        if level.add:
            _add(headers, level.add)


def _add(headers: Pairs, mutations: Iterable[HeaderMutation]) -> None:
    """Whether a header exists is asked before the first of the level is replaced or added."""
    replaced: dict[bytes, bytes] = {}
    added: Pairs = []
    for mutation in mutations:
        name, action = mutation.name, mutation.action
        if action is AppendAction.APPEND_IF_EXISTS_OR_ADD:
            added.append((name, mutation.value))
        elif action is AppendAction.OVERWRITE_IF_EXISTS_OR_ADD:
            replaced[name] = mutation.value
        else:
            exists = any(pair[0].lower() == name for pair in headers)
            if action is AppendAction.OVERWRITE_IF_EXISTS and exists:
                replaced[name] = mutation.value
            elif action is AppendAction.ADD_IF_ABSENT and not exists:
                added.append((name, mutation.value))
    if replaced:
        headers[:] = [pair for pair in headers if pair[0].lower() not in replaced]
        headers += replaced.items()
    headers += added
