"""What becomes of path, query and Location when a route rewrites or redirects.

Source: Envoy `config_impl.cc` (`finalizePathHeader`, `newUri`); recordings of Envoy 1.40: a regex rewrite whose result is empty,
or whose substitution names a missing group, leaves the path as it was; `strip_query` also strips a query that was written in
`prefix_rewrite`; a port redirect is appended to what `host_redirect` says.
"""

from __future__ import annotations

import re
from functools import lru_cache

from proxyless.core.matchers import PathMatcher, wire_text
from proxyless.core.regex import compile_re2
from proxyless.core.request import Request
from proxyless.core.resources import Redirect, RouteAction

__all__ = ["redirect_location", "rewrite_path", "to_wire"]

_REFERENCE = re.compile(r"\\(\d|\\)?")


def to_wire(text: str) -> str:
    """Text of a configuration as it stands on the wire: one character per byte of its UTF-8 form."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("latin-1")


def rewrite_path(action: RouteAction, matcher: PathMatcher, path: str) -> str:
    """The path to send; `path` without query is what `matcher` matched. Never raises."""
    return _rewritten(action.prefix_rewrite, action.regex_rewrite, matcher, path)


def _rewritten(prefix: str, regex: tuple[str, str] | None, matcher: PathMatcher, path: str) -> str:
    if prefix:
        return to_wire(prefix) + path[_matched_length(matcher, path) :]
    if regex is not None:
        return _substitute(regex, path)
    return path


def _matched_length(matcher: PathMatcher, path: str) -> int:
    """A prefix is replaced by itself, everything else whole."""
    if matcher.kind in ("prefix", "path_separated_prefix"):
        return len(matcher.value.encode("utf-8", "surrogateescape"))  # one character of `path` per byte
    return len(path)


def _substitute(rewrite: tuple[str, str], path: str) -> str:
    pattern, substitution = _compiled(*rewrite)
    if substitution is None:
        return path
    text = pattern.sub(lambda found: "".join(_group(found, part) for part in substitution), wire_text(path))
    return to_wire(text) or path


def _group(found: re.Match[str], part: str | int) -> str:
    return part if isinstance(part, str) else found[part] or ""


@lru_cache(maxsize=1024)
def _compiled(pattern: str, substitution: str) -> tuple[re.Pattern[str], tuple[str | int, ...] | None]:
    """RE2's substitution: `\\0` to `\\9` are groups, `\\\\` is a backslash. None: it names what is not there."""
    compiled = compile_re2(pattern)
    parts: list[str | int] = []
    at = 0
    for found in _REFERENCE.finditer(substitution):
        parts.append(substitution[at : found.start()])
        at = found.end()
        reference = found[1]
        if reference is None or (reference != "\\" and int(reference) > compiled.groups):
            return compiled, None
        parts.append("\\" if reference == "\\" else int(reference))
    parts.append(substitution[at:])
    return compiled, tuple(parts)


def redirect_location(redirect: Redirect, matcher: PathMatcher, request: Request) -> str:
    """Value of the Location header, one character per byte."""
    scheme = redirect.scheme or request.scheme
    port = f":{redirect.port}" if redirect.port else ""
    host = to_wire(redirect.host) or _host(request, scheme, keep_port=not port)
    if redirect.path:
        path, mark, query = to_wire(redirect.path).partition("?")
        path = path if path.startswith("/") else f"/{path}"
        own_query = bool(mark)
    else:
        path = _rewritten(redirect.prefix_rewrite, redirect.regex_rewrite, matcher, request.path)
        mark = query = ""
        own_query = False
    target = f"{path}{mark}{query}"
    if not own_query:
        if request.query:
            target = f"{target}?{request.query}"
        if redirect.strip_query:
            target = target.partition("?")[0]
    return f"{scheme}://{host}{port}{target}"


def _host(request: Request, scheme: str, *, keep_port: bool) -> str:
    """The request's Host; its port goes when the redirect sets one, or when it was the default of a scheme that changes."""
    host, colon, port = request.authority.rpartition(":")
    if not colon or "]" in port:
        return request.authority
    default = {"https": "443", "http": "80"}.get(request.scheme)
    if not keep_port or (scheme != request.scheme and port == default):
        return host
    return request.authority
