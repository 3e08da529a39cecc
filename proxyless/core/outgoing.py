"""The message to send: what the application gave, changed as its route says. Made once for a call, numbered for each attempt.

Order as in Envoy `finalizeRequestHeaders`: header mutations, then the host rewrite, then the path rewrite. The application's own
`x-envoy-*` control headers are taken out; they are instructions to us.
"""

from __future__ import annotations

from proxyless.core.headers import Pairs, mutate
from proxyless.core.regex_syntax import byte_text
from proxyless.core.request import Request
from proxyless.core.resources import RouteAction
from proxyless.core.retry import RETRY_HEADERS
from proxyless.core.rewrites import rewrite_path
from proxyless.core.routing import RouteDecision
from proxyless.core.snapshot import Endpoint
from proxyless.core.timeouts import TIMEOUT_HEADERS

__all__ = ["Outgoing"]

_INITIALS = frozenset((b"h", b"H", b"x", b"X", b"c", b"C"))  # of the header names that matter here
_CONTROL = frozenset(name.encode() for name in (*RETRY_HEADERS, *TIMEOUT_HEADERS, "x-envoy-hedge-on-per-try-timeout"))
_ATTEMPT_COUNT, _EXPECTED = b"x-envoy-attempt-count", b"x-envoy-expected-rq-timeout-ms"
_NUMBERS = tuple(b"%d" % number for number in range(64))


class Outgoing:
    """Attributes:
    method, target, authority: as to be sent; `target` is path and query.
    headers: raw pairs without Host.
    grpc: the request is gRPC.
    instructed: the application sent control headers: look them up in the request.
    """

    __slots__ = (
        "_counted",
        "_host_rewritten",
        "authority",
        "grpc",
        "headers",
        "instructed",
        "method",
        "rewrite_host",
        "target",
    )

    def __init__(self, request: Request, decision: RouteDecision | None) -> None:
        self.method, self.authority = request.method, request.authority
        self.grpc = self.instructed = self.rewrite_host = self._host_rewritten = False
        self._counted = decision is not None and decision.include_attempt_count
        self.headers = self._copy(request)
        path, query = request.path, request.query
        if decision is not None:
            action = decision.route.action
            if decision.request_headers:
                mutate(self.headers, decision.request_headers)
            if isinstance(action, RouteAction):
                path = self._rewrite(action, decision, path, query)
        self.target = (f"{path}?{query}" if query else path).encode("latin-1")

    def _copy(self, request: Request) -> Pairs:
        out: Pairs = []
        for pair in request.headers:
            if pair[0][:1] in _INITIALS:
                name = pair[0].lower()
                if name == b"host":
                    continue
                if name == b"content-type":
                    value = pair[1]
                    self.grpc = value == b"application/grpc" or value.startswith(b"application/grpc+")
                elif name.startswith(b"x-envoy-"):
                    if name in _CONTROL:
                        self.instructed = True
                        continue
                    if name == _EXPECTED or (name == _ATTEMPT_COUNT and self._counted):
                        continue
            out.append(pair)
        return out

    def _rewrite(self, action: RouteAction, decision: RouteDecision, path: str, query: str) -> str:
        self.rewrite_host = action.auto_host_rewrite
        if action.host_rewrite:
            self._set_authority(byte_text(action.host_rewrite), action)
        if not action.prefix_rewrite and action.regex_rewrite is None:
            return path
        rewritten = rewrite_path(action, decision.route.match.path, path)
        if rewritten is None:
            return path
        original = (f"{path}?{query}" if query else path).encode("latin-1")
        self._note(b"x-envoy-original-path", original)
        return rewritten

    def _set_authority(self, authority: str, action: RouteAction) -> None:
        if authority == self.authority:
            return
        if not self._host_rewritten:
            self._host_rewritten = True
            original = self.authority.encode("latin-1")
            self._note(b"x-envoy-original-host", original)
            if action.append_x_forwarded_host:
                self.headers.append((b"x-forwarded-host", original))
        self.authority = authority

    def _note(self, name: bytes, value: bytes) -> None:
        """What was before the rewrite, in place of whatever the application wrote under this name (recorded)."""
        headers = self.headers
        if any(pair[0].lower() == name for pair in headers):
            headers[:] = [pair for pair in headers if pair[0].lower() != name]
        headers.append((name, value))

    def address_to(self, endpoint: Endpoint, action: RouteAction) -> None:
        """`auto_host_rewrite`: Host becomes the name of the endpoint, if it has one."""
        if endpoint.hostname:
            self._set_authority(byte_text(endpoint.hostname), action)

    def numbered(self, attempt: int, expected_ms: int | None) -> Pairs:
        """Headers of one attempt."""
        headers = self.headers
        if self._counted:
            headers = [*headers, (_ATTEMPT_COUNT, _NUMBERS[attempt] if attempt < 64 else b"%d" % attempt)]
        if expected_ms is not None:
            headers = [*headers, (_EXPECTED, b"%d" % expected_ms)]
        return headers
