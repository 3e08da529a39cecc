"""What one xDS client has asked for and holds: the state-of-the-world protocol without I/O.

Requests go in, responses come out; the gRPC driver is `ads.py`. Behaviour is istiod's towards a sidecar, where that is
stricter than the specification: LDS and CDS are always everything, unknown EDS and RDS names are answered with an empty
resource (a client cannot tell missing from empty, and must not wait), an empty EDS or RDS list gets no answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from proxyless.protos import CLUSTER, ENDPOINT, LISTENER, ROUTE

__all__ = ["PUSH_ORDER", "Answer", "ClientState", "Nack", "Request", "View"]

PUSH_ORDER = (CLUSTER, ENDPOINT, LISTENER, ROUTE)  # make before break: what is referred to comes first
_WHOLE = (CLUSTER, LISTENER)  # state-of-the-world responses of these types are complete; absent means deleted
_WARMS = {ENDPOINT: CLUSTER, ROUTE: LISTENER}  # Envoy holds a changed cluster or listener back until these come again
MAX_RESPONSE_BYTES = 3 * 1024 * 1024  # gRPC clients refuse messages over 4 MiB unless told otherwise

Resources = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class View:
    """Everything one client may see: serialised resources by type URL and name.

    `missing` makes the resource that answers for an unknown name of a type (EDS, RDS). `settling`: the control plane has
    just started and does not know all endpoints yet.
    """

    version: str
    resources: Mapping[str, Resources]
    missing: Callable[[str, str], bytes] = field(compare=False)
    settling: bool = False


@dataclass(frozen=True, slots=True)
class Nack:
    """A response the client refused."""

    type_url: str
    version: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """The parts of a DiscoveryRequest that matter after the first one."""

    type_url: str
    names: tuple[str, ...] = ()
    nonce: str = ""
    version: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """One DiscoveryResponse to send."""

    type_url: str
    version: str
    nonce: str
    resources: tuple[bytes, ...]


@dataclass(slots=True)
class _Type:
    """State of one resource type on one stream."""

    names: frozenset[str] = frozenset()
    held: dict[str, bytes] = field(default_factory=dict)
    resumed: bool = False  # the client has accepted resources of this type on an earlier stream
    nonce: str = ""
    sent_version: str = ""
    acked_version: str = ""
    error: str = ""


class ClientState:
    """One stream. Not thread-safe; `new_nonce` gives a fresh non-empty string for each response."""

    def __init__(self, new_nonce: Callable[[str], str]) -> None:
        self._types: dict[str, _Type] = {}
        self._new_nonce = new_nonce
        self.nacks = 0

    def on_request(self, request: Request, view: View) -> tuple[list[Answer], Nack | None]:
        """Take one request in; what to send at once, and the refusal it carries."""
        state = self._types.get(request.type_url)
        first = state is None
        if state is None:
            state = self._types[request.type_url] = _Type(resumed=bool(request.version))
        if request.nonce and not first and request.nonce != state.nonce:
            return [], None  # answer to a response that a newer one has replaced
        nack = self._note_outcome(state, request) if not first and request.nonce else None
        again = first or not request.nonce  # a request without nonce asks for everything of the type again
        answers = list(self._subscribe(state, request, view, again))
        if first and request.type_url == CLUSTER and ENDPOINT in self._types:
            answers += self._send(ENDPOINT, view, self._types[ENDPOINT].names)
        return answers, nack

    def on_view(self, view: View) -> list[Answer]:
        """A new configuration: the answers for the types that changed, in the order that keeps traffic whole.

        Clusters that are gone stay until the routes that led to them have changed.
        """
        answers: list[Answer] = []
        changed: set[str] = set()
        removed = False
        for type_url in PUSH_ORDER:
            state = self._types.get(type_url)
            if state is None:
                continue
            if type_url in _WHOLE:
                wanted = dict(view.resources.get(type_url, {}))
                if type_url == CLUSTER and not state.held.keys() <= wanted.keys() and ROUTE in self._types:
                    removed, wanted = True, {**state.held, **wanted}
                if wanted != state.held:
                    changed.add(type_url)
                    answers.append(self._send_whole(type_url, view, wanted))
                continue
            names = {name for name in state.names if self._resource(view, type_url, name) != state.held.get(name)}
            if _WARMS[type_url] in changed:
                names = set(state.names)
            answers += self._send(type_url, view, frozenset(names))
        if removed:
            answers.append(self._send_whole(CLUSTER, view, dict(view.resources.get(CLUSTER, {}))))
        return answers

    def acknowledged(self) -> dict[str, tuple[str, str, str]]:
        """For each type: the version sent, the version accepted, and the text of a refusal."""
        return {url: (state.sent_version, state.acked_version, state.error) for url, state in self._types.items()}

    def _note_outcome(self, state: _Type, request: Request) -> Nack | None:
        if request.error is None:
            state.acked_version, state.error = state.sent_version, ""
            return None
        self.nacks += 1
        state.error = request.error
        return Nack(request.type_url, state.sent_version, request.error)

    def _subscribe(self, state: _Type, request: Request, view: View, again: bool) -> Iterator[Answer]:
        names = frozenset(request.names)
        before, state.names = state.names, names
        if request.type_url in _WHOLE:
            if again:
                yield self._send_whole(request.type_url, view, dict(view.resources.get(request.type_url, {})))
            return
        if request.type_url not in _WARMS:
            if again:  # a type we do not serve: an empty answer, so that the client need not wait
                yield self._answer(request.type_url, view, ())
            return
        for name in before - names:
            state.held.pop(name, None)
        yield from self._send(request.type_url, view, names if again else names - before)

    def _send(self, type_url: str, view: View, names: frozenset[str]) -> Iterator[Answer]:
        state = self._types[type_url]
        chunk: list[bytes] = []
        size = 0
        for name in sorted(names):
            resource = self._resource(view, type_url, name)
            if self._keep_theirs(view, type_url, name, resource):
                continue
            state.held[name] = resource
            if chunk and size + len(resource) > MAX_RESPONSE_BYTES:
                yield self._answer(type_url, view, tuple(chunk))
                chunk, size = [], 0
            chunk.append(resource)
            size += len(resource)
        if chunk:
            yield self._answer(type_url, view, tuple(chunk))

    def _keep_theirs(self, view: View, type_url: str, name: str, resource: bytes) -> bool:
        """Whether the client's endpoints of an earlier stream are better than our none.

        After a restart callers may be back before the workloads they call have registered again.
        """
        state = self._types[type_url]
        return (
            view.settling
            and type_url == ENDPOINT
            and state.resumed
            and name not in state.held
            and resource == view.missing(type_url, name)
        )

    def _send_whole(self, type_url: str, view: View, resources: dict[str, bytes]) -> Answer:
        self._types[type_url].held = resources
        return self._answer(type_url, view, tuple(resources.values()))

    def _answer(self, type_url: str, view: View, resources: tuple[bytes, ...]) -> Answer:
        state = self._types[type_url]
        state.nonce, state.sent_version = self._new_nonce(view.version), view.version
        return Answer(type_url, view.version, state.nonce, resources)

    def _resource(self, view: View, type_url: str, name: str) -> bytes:
        found = view.resources.get(type_url, {}).get(name)
        return found if found is not None else view.missing(type_url, name)
