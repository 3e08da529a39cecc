"""Accepted resources, what they refer to, and the whole that may be published.

Each resource has an accepted value (the last good one) and, apart from it, the last refusal: a bad update never takes away
what works. Listeners name route configurations, clusters name load assignments; those names are the subscriptions.

A whole is published only when every name that it refers to has been answered (gRFC A74): a request never sees a listener
whose routes, or a cluster whose endpoints, are still on their way. A route to a cluster that does not exist is allowed, as
in Envoy: requests there get 503 NC.

One writer (the xDS thread). `dump`, `unsupported` and the counters may be read from any thread.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from proxyless import protos
from proxyless.core.rbac import Rbac
from proxyless.core.resources import (
    Cluster,
    ClusterType,
    DownstreamTls,
    FilterChain,
    FilterChainMatch,
    HttpConnectionManager,
    Listener,
)
from proxyless.core.snapshot import Resources
from proxyless.errors import InvalidResourceError

__all__ = ["Decoder", "Dumped", "Store", "deny_all_listener", "references"]

log = logging.getLogger("proxyless.xds")

Decoder = Callable[[bytes], tuple[Any, tuple[str, ...]]]

# Between so many decoded resources other threads get their turn: a large update must not delay requests.
BREATHE_EVERY = 8
MAX_REASON = 1_000
MAX_LINE = 2_000
MAX_REPORTED_FIELDS = 1_000

_TYPES = (protos.LISTENER, protos.ROUTE, protos.CLUSTER, protos.ENDPOINT)
_REFERRED_BY = {protos.ROUTE: protos.LISTENER, protos.ENDPOINT: protos.CLUSTER}


class Dumped(NamedTuple):
    """One resource as `/config_dump` shows it. `raw` is empty when nothing was accepted, `error` when nothing was refused."""

    type_url: str
    name: str
    version: str
    raw: bytes
    error: str
    unsupported: tuple[str, ...]


@dataclass(slots=True)
class _Accepted:
    raw: bytes
    version: str
    value: Any
    unsupported: tuple[str, ...]
    refers_to: tuple[str, ...]


@dataclass(slots=True)
class _Refused:
    raw: bytes
    version: str
    reason: str


@dataclass(slots=True)
class _Table:
    """All resources of one type. `names` maps exact bytes to a name; `unreadable` are refusals without a name."""

    accepted: dict[str, _Accepted] = field(default_factory=dict)
    refused: dict[str, _Refused] = field(default_factory=dict)
    absent: set[str] = field(default_factory=set)
    names: dict[bytes, str] = field(default_factory=dict)
    unreadable: int = 0
    received: bool = False
    refers_to: frozenset[str] = frozenset()
    refers_to_stale: bool = False
    values: Mapping[str, Any] | None = None
    values_for: frozenset[str] | None = None


class Store:
    """The `ResourceSink` of a session.

    Args:
        decoders: type URL to decoder; default: `proxyless.xds.decode`.
        breathe: called between resources of a large update, for example to yield the GIL.
    """

    def __init__(
        self, decoders: Mapping[str, Decoder] | None = None, breathe: Callable[[], None] = lambda: None
    ) -> None:
        self._decoders = decoders if decoders is not None else _default_decoders()
        self._breathe = breathe
        self._tables = {url: _Table() for url in _TYPES}
        self._reported: dict[str, None] = {}
        self._changed = False
        self.decoded = 0

    # ----------------------------------------------------------------------------------------------------- ResourceSink

    def wanted(self, type_url: str) -> frozenset[str] | None:
        """Sidecar form: every listener and cluster; the routes and endpoints that accepted ones refer to."""
        parent = _REFERRED_BY.get(type_url)
        if parent is None:
            return None
        table = self._tables[parent]
        if table.refers_to_stale:
            table.refers_to_stale = False
            names = frozenset(name for entry in table.accepted.values() for name in entry.refers_to)
            if names != table.refers_to:
                table.refers_to = names
        return table.refers_to

    def held(self, type_url: str) -> Collection[str]:
        return self._tables[type_url].accepted.keys()

    def answered(self, type_url: str) -> frozenset[str]:
        table = self._tables[type_url]
        return frozenset().union(table.accepted, table.refused, table.absent)

    def name_of(self, type_url: str, raw: bytes) -> str | None:
        return self._tables[type_url].names.get(raw)

    def apply(
        self,
        type_url: str,
        version: str,
        resources: Mapping[str, bytes],
        removed: Iterable[str],
        unusable: Mapping[str, str],
    ) -> Mapping[str, str]:
        """See `ResourceSink.apply`. Only what differs from what is held is decoded."""
        table = self._tables[type_url]
        if not table.received:
            table.received = True
            self._changed = self._changed or type_url not in _REFERRED_BY
        refused = dict(unusable)
        self._refuse_unusable(type_url, table, version, unusable)
        for name, raw in resources.items():
            reason = self._take_in(type_url, table, version, name, raw)
            if reason:
                refused[name] = reason
        for name in list(removed):
            self._drop(table, name)
        if type_url not in _REFERRED_BY:
            for name in table.refused.keys() - refused.keys():
                self._drop_refusal(table, name)  # a complete response no longer holds it
        return refused

    def forget(self, type_url: str, names: Iterable[str]) -> None:
        table = self._tables[type_url]
        for name in names:
            self._drop(table, name)
            self._drop_refusal(table, name)
            table.absent.discard(name)

    def mark_absent(self, type_url: str, names: Iterable[str]) -> None:
        names = list(names)
        log.warning("the control plane did not send %s %s", _kind(type_url), ", ".join(map(repr, names))[:MAX_LINE])
        self._tables[type_url].absent.update(names)
        self._changed = True

    # ---------------------------------------------------------------------------------------------------- publication

    def missing(self) -> list[tuple[str, str]]:
        """(type URL, name) of everything that publication waits for; an empty name stands for the whole type."""
        waits = [(url, "") for url in (protos.CLUSTER, protos.LISTENER) if not self._tables[url].received]
        for url in _REFERRED_BY:
            waits.extend((url, name) for name in sorted((self.wanted(url) or frozenset()) - self.answered(url)))
        return waits

    def take(self) -> Resources | None:
        """The whole, when it differs from the last one taken and nothing that it refers to is still on its way."""
        if not self._changed or self._waits():
            return None
        self._changed = False
        return Resources(
            listeners=self._values(protos.LISTENER),
            routes=self._values(protos.ROUTE),
            clusters=self._values(protos.CLUSTER),
            assignments=self._values(protos.ENDPOINT),
        )

    def _waits(self) -> bool:
        if not (self._tables[protos.CLUSTER].received and self._tables[protos.LISTENER].received):
            return True
        return any((self.wanted(url) or frozenset()) - self.answered(url) for url in _REFERRED_BY)

    def _values(self, type_url: str) -> Mapping[str, Any]:
        """Accepted values by name; the same mapping while nothing changes. What nobody refers to any more is left out."""
        table = self._tables[type_url]
        wanted = self.wanted(type_url)
        if table.values is None or table.values_for is not wanted:
            values: dict[str, Any] = {} if type_url != protos.LISTENER else {**self._deny_all(table)}
            for name, entry in table.accepted.items():
                if wanted is None or name in wanted:
                    values[name] = entry.value
            table.values, table.values_for = values, wanted
        return table.values

    def _deny_all(self, table: _Table) -> dict[str, Listener]:
        """An inbound listener that cannot be understood and has no predecessor denies, instead of not being there."""
        denied = {
            name: deny_all_listener(name)
            for name, entry in table.refused.items()
            if name not in table.accepted and _may_be_inbound(name, entry.raw)
        }
        if table.unreadable and not any(entry.value.direction == "INBOUND" for entry in table.accepted.values()):
            denied.setdefault("virtualInbound", deny_all_listener("virtualInbound"))
        return denied

    # ---------------------------------------------------------------------------------------------------- one resource

    def _take_in(self, type_url: str, table: _Table, version: str, name: str, raw: bytes) -> str:
        """Accept or refuse one resource; returns the reason of a refusal, else an empty text."""
        table.absent.discard(name)
        current, refusal = table.accepted.get(name), table.refused.get(name)
        if current is not None and current.raw == raw:
            current.version = version
            self._drop_refusal(table, name)
            return ""
        if refusal is not None and refusal.raw == raw:
            refusal.version = version
            return refusal.reason
        try:
            value, unsupported = self._decode(type_url, raw)
            if value.name != name:
                raise InvalidResourceError(type_url, name, "name", f"decoded as {value.name!r}")
        except InvalidResourceError as error:
            return self._refuse(type_url, table, version, name, raw, str(error))
        except Exception as error:  # a decoder must not end the stream: its failure is one refused resource
            log.exception("decoding %s %r failed", _kind(type_url), name)
            return self._refuse(
                type_url, table, version, name, raw, f"{_kind(type_url)} {name!r}: cannot be decoded: {error!r}"
            )
        self._drop_refusal(table, name)
        self._drop(table, name)
        table.accepted[name] = _Accepted(raw, version, value, unsupported, references(value))
        table.names[raw] = name
        self._touch(table)
        self._report(type_url, name, unsupported)
        return ""

    def _decode(self, type_url: str, raw: bytes) -> tuple[Any, tuple[str, ...]]:
        self.decoded += 1
        if self.decoded % BREATHE_EVERY == 0:
            self._breathe()
        return self._decoders[type_url](raw)

    def _refuse(self, type_url: str, table: _Table, version: str, name: str, raw: bytes, reason: str) -> str:
        reason = reason[:MAX_REASON]
        self._drop_refusal(table, name)
        table.refused[name] = _Refused(raw, version, reason)
        if raw:
            table.names[raw] = name
        self._touch(table)
        if name in table.accepted:
            log.error("refused: %s; the last good one stays in use", reason)
        elif type_url == protos.LISTENER and _may_be_inbound(name, raw):
            log.critical("refused: %s; there is no good one yet: ALL INBOUND REQUESTS ARE DENIED", reason)
        else:
            log.error("refused: %s; there is no good one yet", reason)
        return reason

    def _refuse_unusable(self, type_url: str, table: _Table, version: str, unusable: Mapping[str, str]) -> None:
        """Named ones become refusals without bytes; for the rest only their number is kept."""
        nameless = 0
        for name, reason in unusable.items():
            if name and not name.startswith("resources["):
                text = f"{_kind(type_url)} {name!r}: {reason}"
                if name not in table.refused or table.refused[name].reason != text:
                    self._refuse(type_url, table, version, name, b"", text)
            else:
                nameless += 1
                log.error("refused: %s %s: %s", _kind(type_url), name, reason)
        if nameless != table.unreadable:
            table.unreadable = nameless
            self._touch(table)

    def _drop(self, table: _Table, name: str) -> None:
        entry = table.accepted.pop(name, None)
        if entry is not None:
            table.names.pop(entry.raw, None)
            self._touch(table)

    def _drop_refusal(self, table: _Table, name: str) -> None:
        entry = table.refused.pop(name, None)
        if entry is not None:
            table.names.pop(entry.raw, None)
            self._touch(table)

    def _touch(self, table: _Table) -> None:
        table.values = None
        table.refers_to_stale = self._changed = True

    # -------------------------------------------------------------------------------------------------------- reports

    def _report(self, type_url: str, name: str, unsupported: tuple[str, ...]) -> None:
        """One log line for fields that are seen for the first time and not acted on."""
        kind = _kind(type_url)
        new = [key for key in (f"{kind}.{path}" for path in unsupported) if key not in self._reported]
        if new and len(self._reported) < MAX_REPORTED_FIELDS:
            self._reported.update(dict.fromkeys(new))
            log.warning("%s %r sets fields that are not acted on: %s", kind, name, ", ".join(new)[:MAX_LINE])

    def unsupported(self) -> dict[str, int]:
        """Fields that are set and not acted on, as ``<type>.<path>``, with the number of resources that set them."""
        counts: dict[str, int] = {}
        for url, table in self._tables.items():
            for entry in list(table.accepted.values()):
                for path in entry.unsupported:
                    key = f"{_kind(url)}.{path}"
                    counts[key] = counts.get(key, 0) + 1
        return counts

    def dump(self) -> list[Dumped]:
        """Everything held, with the last refusal of each name, sorted by name within a type."""
        result = []
        for url, table in self._tables.items():
            accepted, refused = dict(table.accepted), dict(table.refused)
            for name in sorted(accepted.keys() | refused.keys()):
                good, bad = accepted.get(name), refused.get(name)
                result.append(
                    Dumped(
                        url,
                        name,
                        good.version if good else "",
                        good.raw if good else b"",
                        bad.reason if bad else "",
                        good.unsupported if good else (),
                    )
                )
        return result


def references(value: Any) -> tuple[str, ...]:
    """Names of the route configurations of a listener, or of the load assignment of a cluster."""
    if isinstance(value, Cluster):
        return (value.eds_name or value.name,) if value.type is ClusterType.EDS and value.assignment is None else ()
    if not isinstance(value, Listener):
        return ()
    filters: list[Any] = [chain.filter for chain in value.filter_chains]
    filters.append(value.default_filter_chain.filter if value.default_filter_chain else None)
    filters.append(value.api)
    return tuple({item.rds: None for item in filters if isinstance(item, HttpConnectionManager) and item.rds})


def deny_all_listener(name: str) -> Listener:
    """An inbound listener that completes any handshake and answers every request with 403."""
    denying = HttpConnectionManager(rbac=(("proxyless.rbac", Rbac.deny_all("invalid-configuration")),))
    tls = FilterChain(
        match=FilterChainMatch(transport_protocol="tls"),
        name="denied-tls",
        tls=DownstreamTls(require_client_certificate=False),
        filter=denying,
    )
    plain = FilterChain(match=FilterChainMatch(transport_protocol="raw_buffer"), name="denied", filter=denying)
    return Listener(name=name, direction="INBOUND", filter_chains=(tls, plain), use_original_dst=True)


def _may_be_inbound(name: str, raw: bytes) -> bool:
    """True unless the bytes clearly say that the listener is not an inbound one."""
    from google.protobuf.message import DecodeError

    try:
        message = protos.message("envoy.config.listener.v3.Listener").FromString(raw)
    except DecodeError:
        return True
    inbound = 1  # core.v3.TrafficDirection.INBOUND
    return bool(message.traffic_direction == inbound) or not raw or name == "virtualInbound"


def _kind(type_url: str) -> str:
    return type_url.rpartition(".")[2]


def _default_decoders() -> Mapping[str, Decoder]:
    from proxyless.xds import decode

    return {
        protos.LISTENER: decode.decode_listener,
        protos.ROUTE: decode.decode_route_configuration,
        protos.CLUSTER: decode.decode_cluster,
        protos.ENDPOINT: decode.decode_load_assignment,
    }
