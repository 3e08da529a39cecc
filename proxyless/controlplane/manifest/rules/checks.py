"""Forms of names, addresses, patterns; each check reports and says whether the value is good."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from typing import Final

from proxyless.controlplane.manifest.context import Context, child_path
from proxyless.controlplane.manifest.hints import did_you_mean

__all__ = [
    "check_cidrs",
    "check_export_to",
    "check_header_name",
    "check_labels",
    "check_one_of",
    "check_port_name",
    "check_protocol",
    "check_regex",
    "check_selector",
    "duplicates",
    "is_host",
    "is_ip",
    "is_namespace",
    "is_port",
    "regex_problem",
]

_LABEL: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_WILDCARD_LABEL: Final = re.compile(r"\*|\*?-?[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_SNI_NAME: Final = re.compile(r"outbound_\.[0-9]+_\.[-A-Za-z0-9]*_\.[-A-Za-z0-9.*]+")
_NAMESPACE: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_PORT_NAME: Final = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?")
_HEADER: Final = re.compile(r"[-_A-Za-z0-9!#$%&'*+.^`|~]+")
_LABEL_KEY: Final = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE: Final = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
PROTOCOLS: Final = (
    "HTTP",
    "HTTPS",
    "HTTP2",
    "GRPC",
    "GRPC-WEB",
    "HTTP_PROXY",
    "TCP",
    "TLS",
    "UDP",
    "MONGO",
    "REDIS",
    "MYSQL",
    "HBONE",
)


def is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_host(text: str, *, wildcard: bool) -> bool:
    """A DNS name; its first label may hold a leading star when ``wildcard``."""
    if not text or len(text) > 255:
        return False
    if _SNI_NAME.fullmatch(text):
        return True
    first, *rest = text.removesuffix(".").split(".")
    pattern = _WILDCARD_LABEL if wildcard else _LABEL
    return bool(pattern.fullmatch(first)) and all(_LABEL.fullmatch(label) for label in rest)


def is_namespace(text: str) -> bool:
    return bool(_NAMESPACE.fullmatch(text))


def is_port(text: str, *, lowest: int = 1) -> bool:
    """A number from `lowest` to 65535 in ASCII digits: `str.isdigit` takes others, and `int` refuses some of those."""
    return text.isascii() and text.isdigit() and len(text) <= 5 and lowest <= int(text) <= 65535


def duplicates(values: Iterable[object]) -> list[int]:
    """Indexes of the values that stood before."""
    seen: set[object] = set()
    found = []
    for index, value in enumerate(values):
        if value in seen:
            found.append(index)
        seen.add(value)
    return found


def check_cidrs(context: Context, path: str, values: Iterable[str]) -> None:
    for index, value in enumerate(values):
        try:
            ipaddress.ip_network(value, strict=False)
        except ValueError:
            hint = "for example 10.1.0.0/16 or 10.1.2.3"
            context.error(f"{path}[{index}]", f"{value!r} is no IP address or CIDR block", hint)


def check_labels(context: Context, path: str, labels: Mapping[str, str]) -> None:
    for key, value in labels.items():
        here = child_path(path, key)
        if not _LABEL_KEY.fullmatch(key):
            context.error(here, f"{key!r} is no label name", "wildcards are not allowed" if "*" in key else "")
        if not _LABEL_VALUE.fullmatch(value):
            hint = "wildcards are not allowed" if "*" in value else "letters, digits, '-', '_' and '.', at most 63"
            context.error(here, f"{value!r} is no label value", hint)


def check_selector(context: Context, path: str, labels: Mapping[str, str], field: str = "matchLabels") -> None:
    """A selector that is written; ``field`` of it holds the labels."""
    check_labels(context, f"{path}.{field}", labels)
    if not labels:
        context.warn(path, "an empty selector selects every workload", "leave it out if that is meant")


def check_export_to(context: Context, values: tuple[str, ...], *, none_allowed: bool = False) -> None:
    """``exportTo``: ``*`` or ``~`` alone, ``.``, namespaces; each once."""
    path = "spec.exportTo"
    for index, value in enumerate(values):
        here = f"{path}[{index}]"
        if value == "~" and not none_allowed:
            context.error(here, "'~' is only for a ServiceEntry", "'.' keeps it in its own namespace")
        elif value in ("*", "~") and len(values) > 1:
            context.error(here, f"{value!r} goes with nothing else")
        elif value not in ("*", "~", ".") and not is_namespace(value):
            context.error(here, f"{value!r} is no namespace", "'.', '*' or a namespace")
    own = context.subject.namespace
    for index in duplicates(own if value == "." else value for value in values):
        context.error(f"{path}[{index}]", f"namespace {values[index]!r} stands twice")


def check_header_name(context: Context, path: str, name: str, *, pseudo: bool = True) -> bool:
    bare = name[1:] if pseudo and name.startswith(":") else name
    if _HEADER.fullmatch(bare):
        return True
    context.error(path, f"{name!r} is no header name")
    return False


def check_port_name(context: Context, path: str, name: str) -> None:
    if not _PORT_NAME.fullmatch(name):
        context.error(path, f"{name[:80]!r} is no port name", "letters, digits and '-', at most 63")


def check_protocol(context: Context, path: str, protocol: str) -> None:
    """Empty means "find out"."""
    if protocol and protocol.upper() not in PROTOCOLS:
        hint = did_you_mean(protocol, PROTOCOLS) or f"one of {', '.join(PROTOCOLS[:8])}"
        context.error(path, f"unknown protocol {protocol[:40]!r}", hint)


def check_one_of(context: Context, path: str, present: Mapping[str, bool], *, required: bool = False) -> None:
    """At most one field of a oneof is set; exactly one when ``required``."""
    chosen = [name for name, is_set in present.items() if is_set]
    names = ", ".join(present)
    if len(chosen) > 1:
        context.error(child_path(path, chosen[1]), f"{chosen[0]} and {chosen[1]} exclude each other", f"one of {names}")
    elif required and not chosen:
        context.error(path, f"needs one of {names}", code="required")


def check_regex(context: Context, path: str, pattern: str) -> None:
    if problem := regex_problem(pattern):
        context.error(path, f"not an RE2 pattern: {problem}")


_RE2_ATOMS: Final = re.compile(
    r"\\Q.*?\\E|\\[pP](?:[A-Z]|\{\^?[A-Za-z_]+\})|\\x\{[0-9A-Fa-f]+\}|\[\[:\^?[a-z]+:\]\]|\\[zC]|\\.|\(\?[imsU-]+[:)]",
    re.DOTALL,
)
_NOT_RE2: Final = re.compile(r"\(\?(?:=|!|<=|<!|>|\(|#|P=)|[*+?}]\+")
_LONGEST_PATTERN: Final = 10_000
_REPEAT: Final = re.compile(r"\{([0-9]+)(?:,([0-9]*))?\}")


def regex_problem(pattern: str) -> str:
    """Why RE2 would refuse a pattern; empty when it would take it.

    Python's own parser judges the structure, after what only RE2 has was replaced by plain atoms.
    """
    if len(pattern) > _LONGEST_PATTERN:
        return f"more than {_LONGEST_PATTERN} characters"
    if re.search(r"(?<!\\)(?:\\\\)*\\[1-9]", pattern):
        return "RE2 has no back-references"
    plain = _RE2_ATOMS.sub(_as_atom, pattern)
    if _NOT_RE2.search(plain):
        return "RE2 has no look-around, possessive repeats or conditionals"
    if any(int(count[:9] or 0) > 1000 for groups in _REPEAT.findall(plain) for count in groups):
        return "RE2 repeats at most 1000 times"
    try:
        re.compile(re.sub(r"\[\[(?!:)", r"[\\[", plain))
    except (re.error, RecursionError, OverflowError) as error:
        return str(error)
    return ""


def _as_atom(match: re.Match[str]) -> str:
    text = match[0]
    if text.startswith("(?"):
        return "(?:" if text.endswith(":") else "(?:)"
    return "a" if len(text) > 2 or text[1] in "zC" else text
