"""The state-of-the-world variant of ADS without I/O: responses in, requests out.

One `SotwSession` outlives many streams. For each resource type it keeps the subscribed names, the last accepted version
(survives the stream) and the last nonce (does not). What resources mean is the business of the `ResourceSink`: it decodes,
keeps the last good value, and says which names it wants next. A sink does not know which protocol variant feeds it.

Rules (xDS protocol "State of the World", gRFC A27, A46, A57):
- Each response is answered by exactly one request with its nonce: an ACK with its version, or a NACK with the last accepted
  version and an `error_detail` that names every refused resource. Valid neighbours of a refused resource are used.
- LDS and CDS responses are complete: what is absent was deleted. RDS and EDS may be partial: absence means nothing.
- `node` is sent in the first request of a stream only.

Not thread safe: one caller at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from proxyless import protos

__all__ = ["TYPES", "ResourceSink", "SessionStats", "SotwSession"]

# Make before break: what is referred to is asked for, and sent, before what refers to it.
TYPES = (protos.CLUSTER, protos.ENDPOINT, protos.LISTENER, protos.ROUTE)
COMPLETE = frozenset({protos.CLUSTER, protos.LISTENER})

# gRFC A57: a resource that is not sent within this time after its subscription went out does not exist.
DOES_NOT_EXIST_AFTER = 15.0

# Bounds against a broken or hostile server. Istio's largest published meshes stay below 20,000 services.
MAX_RESOURCES = 100_000
MAX_NAME = 8_192
MAX_ERROR_TEXT = 65_536
MAX_RETIRED = 256

_WRAPPER = protos.TYPE_PREFIX + "envoy.service.discovery.v3.Resource"
_INVALID_ARGUMENT = 3


class ResourceSink(Protocol):
    """What a session needs from the store of resources."""

    def wanted(self, type_url: str) -> frozenset[str] | None:
        """Names to subscribe to, the same object while nothing changes; None: all there are (wildcard)."""

    def held(self, type_url: str) -> Collection[str]:
        """Names with an accepted resource."""

    def answered(self, type_url: str) -> Collection[str]:
        """Names about which something is known: accepted, refused, or known not to exist."""

    def name_of(self, type_url: str, raw: bytes) -> str | None:
        """The name of a resource that was seen with exactly these bytes."""

    def apply(
        self,
        type_url: str,
        version: str,
        resources: Mapping[str, bytes],
        removed: Iterable[str],
        unusable: Mapping[str, str],
    ) -> Mapping[str, str]:
        """Take in one response. `unusable` are names (or places) with the reason why they could not even be read.

        Returns:
            Every refused name with its reason, `unusable` included; empty means the response is accepted as a whole.
        """

    def forget(self, type_url: str, names: Iterable[str]) -> None:
        """Drop resources that are no longer subscribed."""

    def mark_absent(self, type_url: str, names: Iterable[str]) -> None:
        """The server had its time and did not send these."""


@dataclass(slots=True)
class SessionStats:
    """Counters since the start of the process."""

    responses: int = 0
    accepted: int = 0
    refused: int = 0
    ignored: int = 0  # responses of a type that was never asked for


@dataclass(slots=True)
class _Type:
    """State of one resource type. `names`, `nonce`, `retired` and `deadlines` belong to the stream; `version` survives it.

    Attributes:
        names: names of the last request; None before the first one.
        wanted, sorted: what the sink last named, and the same in order.
        retired: no longer wanted, in order of retirement. See `SotwSession._retire`.
        deadlines: monotonic instant after which a wanted name counts as not existing.
    """

    url: str
    version: str = ""
    nonce: str = ""
    names: tuple[str, ...] | None = None
    wanted: frozenset[str] | None = None
    sorted: tuple[str, ...] = ()
    retired: dict[str, None] = field(default_factory=dict)
    deadlines: dict[str, float] = field(default_factory=dict)

    def reset(self) -> None:
        self.nonce, self.names = "", None
        self.retired.clear()
        self.deadlines.clear()


@dataclass(slots=True)
class _Batch:
    """One response, read: `resources` by name, `unusable` by name or by place when there is no name."""

    resources: dict[str, bytes] = field(default_factory=dict)
    unusable: dict[str, str] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    nameless: bool = False


class SotwSession:
    """StreamAggregatedResources, client side.

    Args:
        node: the `envoy.config.core.v3.Node` to introduce ourselves with on the next stream.
        sink: receives resources, names the subscriptions.
        stats: counters to add to.
    """

    def __init__(self, node: Any, sink: ResourceSink, stats: SessionStats | None = None) -> None:
        self.stats = stats or SessionStats()
        self.node, self._sink = node, sink
        self._types = {url: _Type(url) for url in TYPES}

    def open(self, now: float) -> list[Any]:
        """A new stream exists: the first request of every type, with the versions accepted on earlier streams."""
        self.lost()
        requests = self._subscribe(now)
        if requests:
            requests[0].node.CopyFrom(self.node)
        return requests

    def lost(self) -> None:
        """The stream is gone: nonces and running waits end with it. An outage is never a deletion."""
        for state in self._types.values():
            self._sink.forget(state.url, list(state.retired))
            state.reset()

    def receive(self, response: Any, now: float) -> list[Any]:
        """Take in one DiscoveryResponse; returns the answer, then subscriptions that follow from it."""
        self.stats.responses += 1
        state = self._types.get(response.type_url)
        if state is None or state.names is None:
            # An answer to a type that was never asked for would be a wildcard subscription to it.
            self.stats.ignored += 1
            return []
        state.nonce = response.nonce
        batch = self._read(state, response)
        refused = self._sink.apply(
            state.url, response.version_info, batch.resources, self._removed(state, batch), batch.unusable
        )
        if refused:
            self.stats.refused += 1
        else:
            self.stats.accepted += 1
            state.version = response.version_info
        answer = self._request(state)
        if refused:
            answer.error_detail.code = _INVALID_ARGUMENT
            answer.error_detail.message = _error_text(refused)
        return [answer, *self._subscribe(now)]

    def next_deadline(self) -> float | None:
        """When `expire` has something to do; None: nothing is waited for."""
        return min((at for state in self._types.values() for at in state.deadlines.values()), default=None)

    def expire(self, now: float) -> bool:
        """Declare what was not sent in time as not existing; True when there was any."""
        found = False
        for state in self._types.values():
            late = [name for name, at in state.deadlines.items() if at <= now]
            for name in late:
                del state.deadlines[name]
            if late:
                found = True
                self._sink.mark_absent(state.url, late)
        return found

    def waiting(self) -> list[tuple[str, str]]:
        """(type URL, name) of all that was asked for on this stream and not yet answered."""
        return [(state.url, name) for state in self._types.values() for name in state.deadlines]

    # ------------------------------------------------------------------------------------------------------- requests

    def _subscribe(self, now: float) -> list[Any]:
        """Requests for the types whose wanted names differ from those last sent."""
        requests = []
        for state in self._types.values():
            names = self._names(state)
            if state.names is None and state.wanted is not None and not names:
                continue  # a first request without names would be a wildcard
            if state.names != names:
                self._retire(state, names)
                requests.append(self._request(state))
            self._watch(state, names, now)
        return requests

    def _request(self, state: _Type) -> Any:
        state.names = self._names(state)
        return protos.message("envoy.service.discovery.v3.DiscoveryRequest")(
            type_url=state.url, version_info=state.version, response_nonce=state.nonce, resource_names=state.names
        )

    def _names(self, state: _Type) -> tuple[str, ...]:
        """The names to ask for, sorted once for each change of the sink's set."""
        wanted = self._sink.wanted(state.url)
        if wanted is not state.wanted or wanted is None:
            state.wanted, state.sorted = wanted, tuple(sorted(wanted or ()))
        return state.sorted

    def _retire(self, state: _Type, names: tuple[str, ...]) -> None:
        """Stop using what is no longer wanted, but keep it up to date for the rest of the stream.

        The server ignores a request with a stale nonce. When a name is given up and taken again around such a request, the
        server has never seen the gap and does not send the resource again: the one we hold must still be right then.
        """
        wanted = set(names)
        for name in set(state.names or ()) - wanted:
            state.retired[name] = None
        for name in wanted & state.retired.keys():
            del state.retired[name]
        surplus = list(state.retired)[: max(0, len(state.retired) - MAX_RETIRED)]
        for name in surplus:
            del state.retired[name]
        self._sink.forget(state.url, surplus)

    def _watch(self, state: _Type, names: tuple[str, ...], now: float) -> None:
        missing = set(names) - set(self._sink.answered(state.url)) if names else set()
        for name in state.deadlines.keys() - missing:
            del state.deadlines[name]
        for name in missing - state.deadlines.keys():
            state.deadlines[name] = now + DOES_NOT_EXIST_AFTER

    # ------------------------------------------------------------------------------------------------------ responses

    def _read(self, state: _Type, response: Any) -> _Batch:
        batch = _Batch()
        if len(response.resources) > MAX_RESOURCES:
            batch.nameless = True
            batch.unusable[""] = (
                f"{len(response.resources)} resources in one response; at most {MAX_RESOURCES} are read"
            )
            return batch
        expected: set[str] | None = None
        if state.wanted is not None:
            expected = {*(state.names or ()), *state.retired}
        for index, packed in enumerate(response.resources):
            self._read_one(state, packed, f"resources[{index}]", expected, batch)
        return batch

    def _read_one(self, state: _Type, packed: Any, place: str, expected: set[str] | None, batch: _Batch) -> None:
        """Sort one resource into the batch. What was not subscribed is ignored, valid or not."""
        alias = ""
        if packed.type_url == _WRAPPER:
            wrapper = _parse(_WRAPPER, packed.value)
            if wrapper is None:
                batch.nameless, batch.unusable[place] = True, "not a valid Resource"
                return
            alias = wrapper.name
            if not wrapper.HasField("resource"):  # a heartbeat: the resource is as it was
                batch.present.add(alias)
                return
            packed = wrapper.resource
        name, reason = self._name(state, packed)
        name = name or alias
        if expected is not None and name and name not in expected:
            return
        if reason:
            batch.nameless = batch.nameless or not name
            batch.unusable[name or place] = reason
        elif name in batch.present:
            batch.resources.pop(name, None)
            batch.unusable[name] = "occurs twice in one response"
        else:
            batch.resources[name] = packed.value
        batch.present.add(name)

    def _name(self, state: _Type, packed: Any) -> tuple[str, str]:
        """(name, reason why the resource cannot be used); an empty reason means it can be tried."""
        if packed.type_url != state.url:
            return "", f"unexpected type {packed.type_url[:MAX_NAME]!r}"
        raw = packed.value
        name = self._sink.name_of(state.url, raw)
        if name is not None:
            return name, ""
        message = _parse(state.url, raw)
        if message is None:
            return "", f"not a valid {protos.type_name(state.url)}"
        name = message.cluster_name if state.url == protos.ENDPOINT else message.name
        if not name:
            return "", "has no name"
        if len(name) > MAX_NAME:
            return "", f"its name has {len(name)} characters; at most {MAX_NAME} are allowed"
        return name, ""

    def _removed(self, state: _Type, batch: _Batch) -> list[str]:
        """What a complete response no longer holds. Nothing, when a resource in it could not be named: it may be any."""
        if state.url not in COMPLETE or batch.nameless:
            return []
        return [name for name in self._sink.held(state.url) if name not in batch.present]


def _parse(type_url: str, raw: bytes) -> Any | None:
    from google.protobuf.message import DecodeError

    try:
        return protos.message(protos.type_name(type_url)).FromString(raw)
    except DecodeError:
        return None


def _error_text(refused: Mapping[str, str]) -> str:
    """All refused names first, so that a cut never hides one, then the reasons."""
    names = ", ".join(repr(name) for name in refused)
    reasons = "; ".join(reason if name in reason else f"{name!r}: {reason}" for name, reason in refused.items())
    return f"{len(refused)} refused: {names}. {reasons}"[:MAX_ERROR_TEXT]
