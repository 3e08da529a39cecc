"""A session against a model of a server, and against the embedded server, as Hypothesis state machines.

Messages wait in queues in both directions: each type's responses keep their order, types overtake each other, a response may
be sent twice, a stream may break with everything that was on its way. Whatever happened, once all is delivered the client
holds what the server holds; where the server holds something invalid, it holds the last good one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxyless import protos
from proxyless.controlplane.subscriptions import ClientState, Request, View
from proxyless.protos import CLUSTER, ENDPOINT, LISTENER, ROUTE
from proxyless.xds.session import SotwSession
from proxyless.xds.store import Store
from tests.xds.helpers import BAD, DECODERS, assignment, cluster, listener, response, route

NAMES = ["a", "b", "c"]
ROUTES = ["80", "90"]
COMPLETE = (CLUSTER, LISTENER)
# A change waits to be pushed, is on its way, or has arrived (the client's requests are on their way back then).
FATES = st.sampled_from(["later", "sent", "arrives"])


@dataclass
class Subscription:
    """What the server knows of one type on the current stream."""

    names: list[str] = field(default_factory=list)
    wildcard: bool = False
    nonce: str = ""


class ModelServer:
    """A state-of-the-world server that does what it must and no more: the least helpful correct peer."""

    def __init__(self) -> None:
        self.truth: dict[str, dict[str, Any]] = {CLUSTER: {}, LISTENER: {}, ENDPOINT: {}, ROUTE: {}}
        self.dirty: dict[str, set[str]] = {url: set() for url in self.truth}
        self.subscriptions: dict[str, Subscription] = {}
        self.counter = 0

    def new_stream(self) -> None:
        self.subscriptions = {}

    def set(self, url: str, name: str, message: Any | None) -> None:
        if message is None:
            self.truth[url].pop(name, None)
        else:
            self.truth[url][name] = message
        self.dirty[url].add(name)

    def handle(self, request: Any) -> list[Any]:
        """Answer a request: all on the first one of a type, else only names that are new on this stream."""
        known = self.subscriptions.get(request.type_url)
        names = list(request.resource_names)
        if known is None:
            assert not request.response_nonce, "a nonce of another stream"
            assert request.HasField("node") == (not self.subscriptions), "the node belongs into the first request"
            first = self.subscriptions[request.type_url] = Subscription(names, wildcard=not names)
            return self._respond(request.type_url, None if request.type_url in COMPLETE else first.names)
        if request.response_nonce != known.nonce:
            return []
        added = [name for name in names if name not in known.names]
        known.names = names
        return self._respond(request.type_url, added) if added else []

    def push(self, url: str) -> list[Any]:
        """Send what has changed to whoever subscribed to it."""
        changed, self.dirty[url] = self.dirty[url], set()
        known = self.subscriptions.get(url)
        if known is None or not changed:
            return []
        if url in COMPLETE:
            return self._respond(url, None)
        names = [name for name in known.names if name in changed]
        return self._respond(url, names) if names else []

    def _respond(self, url: str, names: list[str] | None) -> list[Any]:
        held = self.truth[url]
        resources = [message for name, message in held.items() if names is None or name in names]
        if not resources and url not in COMPLETE:
            return []
        self.counter += 1
        self.subscriptions[url].nonce = f"n{self.counter}"
        return [response(url, f"v{self.counter}", *resources, nonce=f"n{self.counter}")]


class EmbeddedServer(ModelServer):
    """The embedded control plane's side of the protocol. It answers unknown names with empty resources, as istiod does."""

    def __init__(self) -> None:
        super().__init__()
        self.new_stream()

    def new_stream(self) -> None:
        self.client = ClientState(self._nonce)

    def _nonce(self, version: str) -> str:
        self.counter += 1
        return f"{version}-{self.counter}"

    def _view(self) -> View:
        resources = {
            url: {name: message.SerializeToString() for name, message in held.items()}
            for url, held in self.truth.items()
        }
        return View(f"v{self.counter}", resources, lambda url, name: empty(url, name).SerializeToString())

    def handle(self, request: Any) -> list[Any]:
        error = request.error_detail.message if request.HasField("error_detail") else None
        asked = Request(
            type_url=request.type_url, names=tuple(request.resource_names), nonce=request.response_nonce, error=error
        )
        return self._responses(self.client.on_request(asked, self._view())[0])

    def push(self, url: str) -> list[Any]:
        return self._responses(self.client.on_view(self._view()))

    def _responses(self, answers: list[Any]) -> list[Any]:
        any_type = protos.message("google.protobuf.Any")
        return [
            response(
                each.type_url,
                each.version,
                *(any_type(type_url=each.type_url, value=raw) for raw in each.resources),
                nonce=each.nonce,
            )
            for each in answers
        ]


def empty(url: str, name: str) -> Any:
    return assignment(name) if url == ENDPOINT else route(name)


class SessionMachine(RuleBasedStateMachine):
    def __init__(self, server: ModelServer | None = None) -> None:
        super().__init__()
        self.server = server or ModelServer()
        self.store = Store(DECODERS)
        self.session = SotwSession(protos.message("envoy.config.core.v3.Node")(id="n"), self.store)
        self.to_client: dict[str, deque[Any]] = {url: deque() for url in self.server.truth}
        self.to_server: deque[Any] = deque()
        self.last_good: dict[str, dict[str, set[bytes]]] = {url: {} for url in self.server.truth}
        self.serial = 0
        self.reconnect()

    # ----------------------------------------------------------------------------------------------- what the world does

    def _set(self, url: str, name: str, message: Any | None, valid: bool, fate: str) -> None:
        self.server.set(url, name, message)
        if message is not None and valid:
            self.last_good[url].setdefault(name, set()).add(message.SerializeToString())
        if fate != "later":
            self.push(url)
        while fate == "arrives" and self.to_client[url]:
            self.deliver_response(url)

    @rule(name=st.sampled_from(NAMES), kind=st.sampled_from(["new", "static", BAD, "gone"]), fate=FATES)
    def change_cluster(self, name: str, kind: str, fate: str) -> None:
        self.serial += 1
        message = None if kind == "gone" else cluster(name, BAD if kind == BAD else str(self.serial), kind != "static")
        self._set(CLUSTER, name, message, kind != BAD, fate)

    @rule(
        name=st.sampled_from(NAMES),
        routes=st.lists(st.sampled_from(ROUTES), unique=True),
        kind=st.sampled_from(["new", BAD, "gone"]),
        fate=FATES,
    )
    def change_listener(self, name: str, routes: list[str], kind: str, fate: str) -> None:
        self.serial += 1
        mark = BAD if kind == BAD else str(self.serial)
        message = None if kind == "gone" else listener(name, *routes, mark=mark)
        self._set(LISTENER, name, message, kind != BAD, fate)

    @rule(name=st.sampled_from(NAMES), good=st.booleans(), fate=FATES)
    def change_endpoints(self, name: str, good: bool, fate: str) -> None:
        self.serial += 1
        self._set(ENDPOINT, name, assignment(name, self.serial if good else 0), good, fate)

    @rule(name=st.sampled_from(ROUTES), good=st.booleans(), fate=FATES)
    def change_route(self, name: str, good: bool, fate: str) -> None:
        self.serial += 1
        self._set(ROUTE, name, route(name, str(self.serial) if good else BAD), good, fate)

    @rule(url=st.sampled_from([CLUSTER, ENDPOINT, LISTENER, ROUTE]))
    def push(self, url: str) -> None:
        self._on_the_way(self.server.push(url))

    # ------------------------------------------------------------------------------------------------ what the wire does

    @rule(url=st.sampled_from([CLUSTER, ENDPOINT, LISTENER, ROUTE]))
    def deliver_response(self, url: str) -> None:
        if self.to_client[url]:
            message = self.to_client[url].popleft()
            requests = self.session.receive(message, 0.0)
            self._check_answer(message, requests)
            self.to_server.extend(requests)

    @rule(url=st.sampled_from([CLUSTER, ENDPOINT, LISTENER, ROUTE]))
    def duplicate_response(self, url: str) -> None:
        if self.to_client[url]:
            self.to_client[url].appendleft(self.to_client[url][0])

    @rule()
    def deliver_request(self) -> None:
        if self.to_server:
            self._on_the_way(self.server.handle(self.to_server.popleft()))

    def _on_the_way(self, messages: list[Any]) -> None:
        for message in messages:
            self.to_client[message.type_url].append(message)

    @rule()
    def reconnect(self) -> None:
        for waiting in self.to_client.values():
            waiting.clear()
        self.server.new_stream()
        self.session.lost()
        self.to_server = deque(self.session.open(0.0))

    def _check_answer(self, message: Any, requests: list[Any]) -> None:
        answers = [request for request in requests if request.type_url == message.type_url]
        assert len(answers) == 1
        assert answers[0].response_nonce == message.nonce
        if answers[0].HasField("error_detail"):
            assert answers[0].error_detail.message
        else:
            assert answers[0].version_info == message.version_info

    # ------------------------------------------------------------------------------------------------- what always holds

    @invariant()
    def only_valid_resources_are_held(self) -> None:
        for item in self.store.dump():
            if item.raw and item.raw not in self.last_good[item.type_url].get(item.name, ()):
                assert isinstance(self.server, EmbeddedServer)
                assert item.raw == empty(item.type_url, item.name).SerializeToString()

    @invariant()
    def a_published_whole_is_whole(self) -> None:
        answered = {url: self.store.answered(url) for url in (ENDPOINT, ROUTE)}
        resources = self.store.take()
        if resources is not None:
            for url in (ENDPOINT, ROUTE):
                assert (self.store.wanted(url) or frozenset()) <= answered[url]
            assert set(resources.assignments) <= (self.store.wanted(ENDPOINT) or frozenset())
            assert set(resources.routes) <= (self.store.wanted(ROUTE) or frozenset())

    @precondition(lambda self: self.server.counter)
    @rule()
    def converge(self) -> None:
        """Deliver everything; then both sides hold the same."""
        for _ in range(200):
            for url in self.to_client:
                self.push(url)
                while self.to_client[url]:
                    self.deliver_response(url)
            if not self.to_server:
                break
            while self.to_server:
                self.deliver_request()
        assert not self.to_server
        held = {(item.type_url, item.name): item.raw for item in self.store.dump() if item.raw}
        for url in self.server.truth:
            wanted = self.store.wanted(url)
            for name, message in self.server.truth[url].items():
                raw = message.SerializeToString()
                if wanted is not None and name not in wanted:
                    continue
                if raw in self.last_good[url].get(name, ()):
                    assert held.get((url, name)) == raw
            if url in COMPLETE:
                assert {name for kind, name in held if kind == url} <= self.server.truth[url].keys()


class EmbeddedMachine(SessionMachine):
    def __init__(self) -> None:
        super().__init__(EmbeddedServer())


EmbeddedMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestEmbeddedMachine = EmbeddedMachine.TestCase
SessionMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestSessionMachine = SessionMachine.TestCase


@pytest.mark.parametrize("machine", [SessionMachine, EmbeddedMachine])
def test_a_gap_that_the_server_never_saw_loses_nothing(machine: type[SessionMachine]) -> None:
    """The one order of events that chance hardly finds: both changes of a subscription carry a stale nonce."""
    world = machine()
    for name in ("a", "b"):
        world.change_endpoints(name, True, "later")
        world.change_cluster(name, "new", "later")
    world.converge()
    world.change_endpoints("a", True, "sent")
    world.change_cluster("b", "gone", "arrives")
    world.change_cluster("b", "new", "arrives")
    world.converge()
