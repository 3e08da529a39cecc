"""Workloads that announce themselves: a stream for each worker process, an endpoint while at least one of them is open.

Who may serve what is the operator's to say (`proxyless.workloads` of the mesh settings) and is looked up by the verified
identity of the connection: nobody becomes `payments` by saying so. Refusals are answered with the reason and logged with
who asked.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio

from proxyless.controlplane.ads import Identify
from proxyless.controlplane.hosts import expand
from proxyless.controlplane.registry import DRAINING, HEALTHY, UNHEALTHY, RegisteredWorkload
from proxyless.protos import REGISTER_METHOD, message
from proxyless.spiffe import SpiffeId

__all__ = ["RegistrationServicer", "RegistrationTable"]

log = logging.getLogger("proxyless.controlplane.registration")

MAX_STREAMS_PER_IDENTITY = 1024
TELL_TIMEOUT = 1.0  # seconds that a change of configuration waits at most for a caller to take a refusal
_MAX_LABELS = 64
_MAX_TEXT = 253

# Numbers of proxyless.registration.v1.Readiness.
_HEALTH = {0: UNHEALTHY, 1: UNHEALTHY, 2: HEALTHY, 3: DRAINING}

_Key = tuple[SpiffeId, str, str, int]  # identity, service host, address, port


class _RefusedError(Exception):
    """Why a workload may not register as it asks."""


@dataclass(slots=True)
class _Stream:
    health: str
    labels: dict[str, str]


@dataclass(slots=True)
class RegistrationTable:
    """Who is registered now. Used on one event loop; `on_change` is called there after each change."""

    may_serve: Callable[[SpiffeId, str], bool]
    on_change: Callable[[], None]
    _endpoints: dict[_Key, dict[object, _Stream]] = field(default_factory=dict)

    def workloads(self) -> tuple[RegisteredWorkload, ...]:
        """One for each endpoint, however many workers it has. READY wins; all must say DRAINING for it to be drained.

        Without those that may not serve any more what they serve: a right ends with the operator's list, not with the stream.
        """
        allowed = (key for key in self._endpoints if self.may_serve(key[0], key[1]))
        return tuple(found for key in allowed if (found := self._workload(key)) is not None)

    def revoked(self) -> list[tuple[object, _Key]]:
        """Streams, with their endpoints, that were admitted and may not serve any more."""
        gone = [(key, streams) for key, streams in self._endpoints.items() if not self.may_serve(key[0], key[1])]
        return [(owner, key) for key, streams in gone for owner in streams]

    def streams_of(self, identity: SpiffeId) -> int:
        return sum(len(streams) for key, streams in self._endpoints.items() if key[0] == identity)

    def put(self, owner: object, previous: _Key | None, key: _Key, health: str, labels: dict[str, str]) -> None:
        """Set what the stream `owner` says; `previous` is the endpoint it counted for until now."""
        if previous is not None and previous != key:
            self.remove(owner, previous)
        before = self._workload(key)
        streams = self._endpoints.setdefault(key, {})
        streams.pop(owner, None)  # the newest word is last, and its labels count
        streams[owner] = _Stream(health, labels)
        if self._workload(key) != before:
            self.on_change()

    def remove(self, owner: object, key: _Key) -> None:
        """The stream has ended, or stands for another endpoint now."""
        before = self._workload(key)
        streams = self._endpoints.get(key, {})
        streams.pop(owner, None)
        if not streams:
            self._endpoints.pop(key, None)
        if self._workload(key) != before:
            self.on_change()

    def _workload(self, key: _Key) -> RegisteredWorkload | None:
        streams = self._endpoints.get(key)
        if not streams:
            return None
        identity, service, address, port = key
        return RegisteredWorkload(
            identity=identity,
            service=service,
            address=address,
            port=port,
            labels=dict(next(reversed(streams.values())).labels),
            health=_health({stream.health for stream in streams.values()}),
        )


def _health(words: set[str]) -> str:
    if HEALTHY in words:
        return HEALTHY
    return DRAINING if words == {DRAINING} else UNHEALTHY


class _Caller:
    """The other end of one stream. It is answered in turn, and may be told something that it did not ask."""

    def __init__(self, context: Any, identity: SpiffeId) -> None:
        self._context, self._identity, self._turn = context, str(identity), asyncio.Lock()

    async def answer(self, refusal: str) -> None:
        async with self._turn:
            await self._context.write(
                message("proxyless.registration.v1.Registered")(
                    accepted=not refusal, reason=refusal, identity=self._identity
                )
            )


class RegistrationServicer:
    """``WorkloadRegistration/Register``. `handler` gives the service for one listener."""

    def __init__(self, table: RegistrationTable) -> None:
        self.table = table

    async def revoke(self) -> None:
        """Tell those who may not serve any more what they serve; who has left or does not listen is no endpoint anyway."""
        told = [
            asyncio.wait_for(owner.answer(_not_on_the_list(*key[:2])), TELL_TIMEOUT)
            for owner, key in self.table.revoked()
            if isinstance(owner, _Caller)
        ]
        await asyncio.gather(*told, return_exceptions=True)

    def handler(self, identify: Identify) -> Any:
        """A generic RPC handler whose callers are named by `identify`."""

        async def register(_: AsyncIterator[Any], context: Any) -> None:
            identity = identify(context)
            if identity is None:
                log.warning("registration refused: no verified identity (%s)", context.peer())
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no verified identity on this connection")
                return
            await self._serve(context, identity)

        method = grpc.stream_stream_rpc_method_handler(
            register,
            request_deserializer=message("proxyless.registration.v1.Workload").FromString,
            response_serializer=lambda answer: answer.SerializeToString(),
        )
        service, _, name = REGISTER_METHOD[1:].partition("/")
        return grpc.method_handlers_generic_handler(service, {name: method})

    async def _serve(self, context: Any, identity: SpiffeId) -> None:
        caller = _Caller(context, identity)
        key: _Key | None = None
        try:
            while (workload := await context.read()) is not grpc.aio.EOF:
                key, refusal = self._apply(caller, key, workload, identity)
                await caller.answer(refusal)
        finally:
            if key is not None:
                log.info("a worker of %s that served %s at %s:%d is gone", identity, *key[1:])
                self.table.remove(caller, key)

    def _apply(self, owner: object, key: _Key | None, workload: Any, identity: SpiffeId) -> tuple[_Key | None, str]:
        """Take one message in: the endpoint that the stream stands for now, or None and why not."""
        try:
            wanted = self._check(workload, identity, key)
        except _RefusedError as error:
            log.warning("registration of %s refused: %s", identity, error)
            if key is not None:
                self.table.remove(owner, key)
            return None, str(error)
        if key != wanted:
            log.info("%s serves %s at %s:%d", identity, *wanted[1:])
        self.table.put(owner, key, wanted, _HEALTH.get(workload.readiness, UNHEALTHY), dict(workload.labels))
        return wanted, ""

    def _check(self, workload: Any, identity: SpiffeId, key: _Key | None) -> _Key:
        """The endpoint that this message stands for."""
        if not identity.namespace or not identity.service_account:
            raise _RefusedError(f"{identity} is not of the form spiffe://<trust domain>/ns/<ns>/sa/<sa>")
        if not workload.service or len(workload.service) > _MAX_TEXT:
            raise _RefusedError("service is missing or too long")
        service = expand(workload.service, identity.namespace)
        if not self.table.may_serve(identity, service):
            raise _RefusedError(_not_on_the_list(identity, service))
        try:
            address = str(ipaddress.ip_address(workload.address or "127.0.0.1"))
        except ValueError:
            raise _RefusedError(f"address {workload.address[:80]!a} is not an IP address") from None
        if not 0 < workload.port < 65536:
            raise _RefusedError(f"port {workload.port} is outside of 1 to 65535")
        if len(workload.labels) > _MAX_LABELS or any(
            len(text) > _MAX_TEXT for pair in workload.labels.items() for text in pair
        ):
            raise _RefusedError(f"more than {_MAX_LABELS} labels, or one longer than {_MAX_TEXT} characters")
        if key is None and self.table.streams_of(identity) >= MAX_STREAMS_PER_IDENTITY:
            raise _RefusedError(f"{identity} has {MAX_STREAMS_PER_IDENTITY} registration streams already")
        return identity, service, address, workload.port


def _not_on_the_list(identity: SpiffeId, service: str) -> str:
    return f"the operator's list (proxyless.workloads in mesh.yaml) does not let {identity} serve {service!a}"
