"""The embedded SPIFFE Workload API: one Unix socket for each workload, as a SPIRE agent would serve it (SPIFFE Workload API).

Who calls is known by the socket: it lies in a directory that only this user can enter, so processes of one uid are one trust
boundary. Streams get the whole state at every change, never twice the same. The server runs in a thread and loop of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import stat
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

import grpc
import grpc.aio

from proxyless import protos
from proxyless.controlplane import jwt_svid
from proxyless.controlplane.authority import Authority, Uniform, renewal_time
from proxyless.controlplane.jwt_svid import InvalidTokenError
from proxyless.errors import InvalidSpiffeIdError, SettingsError
from proxyless.identity.svid import X509Svid
from proxyless.spiffe import SpiffeId

__all__ = ["Identity", "WorkloadApiServer"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_HINT_BYTES = 1024  # Workload API 8
MAX_SOCKET_PATH = 107  # sun_path of Linux, without its NUL
MERGE = 0.01  # seconds: changes that come together are sent together
LONGEST_SLEEP = 60.0


@dataclass(frozen=True, slots=True)
class Identity:
    """What a workload is registered as. `ttl` None: the authority's default."""

    spiffe_id: SpiffeId
    hint: str = ""
    dns_names: tuple[str, ...] = ()
    ttl: float | None = None

    def __post_init__(self) -> None:
        if len(self.hint.encode()) > MAX_HINT_BYTES:
            raise SettingsError(f"hint of {self.spiffe_id}: at most {MAX_HINT_BYTES} bytes are allowed")


class WorkloadApiServer:
    """Serves SVIDs of one authority, and renews them at half life.

    Methods may be called from any thread except the server's own, and block until done.

    Args:
        authority: issues the SVIDs; its clock is the one that counts.
        rng: for the jitter of renewal.
    """

    def __init__(self, authority: Authority, *, rng: Uniform = random) -> None:
        self._authority = authority
        self._rng = rng
        self._endpoints: dict[str, _Endpoint] = {}
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxyless-workload-api", daemon=True)
        self._thread.start()
        self._keeper = asyncio.run_coroutine_threadsafe(self._keep_fresh(), self._loop)
        authority.subscribe(self._bundle_changed)

    def serve(self, path: str | Path, *identities: Identity | SpiffeId) -> None:
        """Listen on a new socket for the workload with these identities; without any, its calls are denied.

        Raises:
            SettingsError: the directory is open to others, or the path is too long or cannot be bound.
            InvalidSvidError: the authority does not issue such an identity.
        """
        place = str(path)
        _private_directory(Path(place))
        endpoint = _Endpoint(self._authority, self._rng, place, _registered(identities))
        self._run(self._open(place, endpoint))

    def update(self, path: str | Path, *identities: Identity | SpiffeId) -> None:
        """Register the workload of a socket as something else; open streams are told, or ended when nothing is left."""
        self._run(self._renew(self._endpoints[str(path)], _registered(identities)))

    def rotate(self, path: str | Path | None = None) -> None:
        """Issue new SVIDs now: for one socket, or for all."""
        for endpoint in [self._endpoints[str(path)]] if path is not None else list(self._endpoints.values()):
            self._run(self._renew(endpoint, endpoint.identities))

    def remove(self, path: str | Path) -> None:
        """Stop to serve a socket."""
        self._run(self._shut(self._endpoints.pop(str(path))))

    def close(self) -> None:
        """End all streams, remove the sockets, end the thread. A second call does nothing."""
        if self._closed:
            return
        self._closed = True
        self._keeper.cancel()
        self._run(self._shut(*self._endpoints.values()))
        self._endpoints.clear()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5.0)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=30.0)

    def _bundle_changed(self) -> None:
        if not self._closed:
            self._loop.call_soon_threadsafe(self._publish_all)

    # ------------------------------------------------------------------------------------------- on the server's thread

    async def _open(self, place: str, endpoint: _Endpoint) -> None:
        endpoint.issue()
        await endpoint.listen()
        self._endpoints[place] = endpoint
        self._wake.set()

    async def _renew(self, endpoint: _Endpoint, identities: tuple[Identity, ...]) -> None:
        endpoint.identities = identities
        endpoint.issue()
        self._wake.set()

    async def _shut(self, *endpoints: _Endpoint) -> None:
        await asyncio.gather(*(endpoint.close() for endpoint in endpoints))

    def _publish_all(self) -> None:
        for endpoint in self._endpoints.values():
            endpoint.publish()

    async def _keep_fresh(self) -> None:
        """Renew what is due, for ever."""
        while True:
            try:
                self._authority.maintain()
                now = self._authority.now()
                for endpoint in self._endpoints.values():
                    if endpoint.due <= now:
                        endpoint.issue()
                due = min((endpoint.due for endpoint in self._endpoints.values()), default=float("inf"))
                sleep = min(max(due - self._authority.now(), 0.01), LONGEST_SLEEP)
            except Exception:
                logger.exception("renewing SVIDs failed; it is tried again")
                sleep = 1.0
            self._wake.clear()
            try:
                async with asyncio.timeout(sleep):
                    await self._wake.wait()
            except TimeoutError:
                continue


class _Endpoint:
    """One socket, its workload, and the streams that are open on it. Lives on the server's thread."""

    def __init__(self, authority: Authority, rng: Uniform, place: str, identities: tuple[Identity, ...]) -> None:
        self._authority, self._rng, self._place = authority, rng, place
        self._server: grpc.aio.Server | None = None
        self._svids: tuple[X509Svid, ...] = ()
        self._changed = asyncio.Event()
        self._closing = False
        self.identities = identities
        self.due = float("inf")

    def issue(self) -> None:
        """A new SVID for each identity; tells the streams."""
        self._svids = tuple(
            self._authority.issue(entry.spiffe_id, ttl=entry.ttl, dns_names=entry.dns_names, hint=entry.hint)
            for entry in self.identities
        )
        now = self._authority.now()
        self.due = min((renewal_time(svid, now, self._rng) for svid in self._svids), default=float("inf"))
        self.publish()

    def publish(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    async def listen(self) -> None:
        server = grpc.aio.server(options=(("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024)))
        server.add_generic_rpc_handlers((_handlers(self),))
        try:
            server.add_insecure_port(f"unix:{quote(self._place)}")
        except RuntimeError as error:
            raise SettingsError(f"cannot listen on {self._place}: {error}") from None
        await server.start()
        os.chmod(self._place, stat.S_IRUSR | stat.S_IWUSR)
        self._server = server

    async def close(self) -> None:
        self._closing = True
        self.publish()
        if self._server is not None:
            await self._server.stop(grace=1.0)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._place)

    async def fetch_x509_svid(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        async for data in self._states(context, self._svid_response):
            yield data

    async def fetch_jwt_bundles(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        async for data in self._states(context, self._jwt_bundles_response):
            yield data

    async def fetch_jwt_svid(self, request: Any, context: Any) -> bytes:
        """Arguments are looked at before the caller is, as SPIRE does (recorded)."""
        await _admit(context)
        if not request.audience or not all(request.audience):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "audience must be specified")
        wanted = request.spiffe_id
        if wanted:
            try:
                SpiffeId.parse(wanted)
            except InvalidSpiffeIdError as error:
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"invalid requested SPIFFE ID: {error}")
        entries = [entry for entry in self.identities if wanted in ("", str(entry.spiffe_id))]
        if not entries:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
        response = protos.message("JWTSVIDResponse")()
        for entry in entries:
            token = self._authority.issue_jwt(entry.spiffe_id, list(request.audience))
            response.svids.add(spiffe_id=str(entry.spiffe_id), svid=token, hint=entry.hint)
        return _serialised(response)

    async def validate_jwt_svid(self, request: Any, context: Any) -> bytes:
        """Needs no identity (recorded)."""
        await _admit(context)
        try:
            spiffe_id, claims = self._authority.validate_jwt(request.svid, request.audience)
        except InvalidTokenError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        response = protos.message("ValidateJWTSVIDResponse")(spiffe_id=str(spiffe_id))
        response.claims.update(claims)
        return _serialised(response)

    async def fetch_x509_bundles(self, request: Any, context: Any) -> AsyncIterator[bytes]:
        async for data in self._states(context, self._bundles_response):
            yield data

    async def _states(self, context: Any, build: Callable[[], bytes]) -> AsyncIterator[bytes]:
        """The whole state now, and again at each change of it."""
        await _admit(context)
        sent = None
        while True:
            changed = self._changed
            if self._closing:
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the Workload API is shutting down")
            if not self._svids:
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
            state = build()
            if state != sent:
                sent = state
                yield state
            await changed.wait()
            await asyncio.sleep(MERGE)

    def _svid_response(self) -> bytes:
        response = protos.message("X509SVIDResponse")()
        anchors = b"".join(self._authority.bundle)
        for svid in self._svids:
            response.svids.add(
                spiffe_id=str(svid.spiffe_id),
                x509_svid=b"".join(svid.chain),
                x509_svid_key=svid.private_key,
                bundle=anchors,
                hint=svid.hint,
            )
        for trust_domain, foreign in self._authority.federated.items():
            response.federated_bundles[f"spiffe://{trust_domain}"] = b"".join(foreign)
        return _serialised(response)

    def _bundles_response(self) -> bytes:
        response = protos.message("X509BundlesResponse")()
        for trust_domain, anchors in self._authority.bundles.items():
            response.bundles[f"spiffe://{trust_domain}"] = b"".join(anchors)
        return _serialised(response)

    def _jwt_bundles_response(self) -> bytes:
        response = protos.message("JWTBundlesResponse")()
        response.bundles[f"spiffe://{self._authority.trust_domain}"] = jwt_svid.jwks(self._authority.jwt_keys)
        return _serialised(response)


def _handlers(endpoint: _Endpoint) -> grpc.GenericRpcHandler:
    """The service has no package on the wire; methods that are not here answer Unimplemented."""

    def stream(behaviour: Callable[[Any, Any], AsyncIterator[bytes]], request: str) -> grpc.RpcMethodHandler:
        return grpc.unary_stream_rpc_method_handler(behaviour, request_deserializer=protos.message(request).FromString)

    def unary(behaviour: Callable[[Any, Any], Awaitable[bytes]], request: str) -> grpc.RpcMethodHandler:
        return grpc.unary_unary_rpc_method_handler(behaviour, request_deserializer=protos.message(request).FromString)

    return grpc.method_handlers_generic_handler(
        "SpiffeWorkloadAPI",
        {
            "FetchX509SVID": stream(endpoint.fetch_x509_svid, "X509SVIDRequest"),
            "FetchX509Bundles": stream(endpoint.fetch_x509_bundles, "X509BundlesRequest"),
            "FetchJWTSVID": unary(endpoint.fetch_jwt_svid, "JWTSVIDRequest"),
            "FetchJWTBundles": stream(endpoint.fetch_jwt_bundles, "JWTBundlesRequest"),
            "ValidateJWTSVID": unary(endpoint.validate_jwt_svid, "ValidateJWTSVIDRequest"),
        },
    )


async def _admit(context: Any) -> None:
    """Workload Endpoint 3: exactly one security header with exactly this value, looked at before anything else."""
    values = [value for key, value in context.invocation_metadata() or () if key == "workload.spiffe.io"]
    if values != ["true"]:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")


def _registered(identities: tuple[Identity | SpiffeId, ...]) -> tuple[Identity, ...]:
    """Of equal hints the first counts (Workload API 5.2.1)."""
    entries = [entry if isinstance(entry, Identity) else Identity(entry) for entry in identities]
    hints: set[str] = set()
    kept = []
    for entry in entries:
        if entry.hint and entry.hint in hints:
            logger.warning(
                "hint %r of %s is taken by an earlier identity: it is not served", entry.hint, entry.spiffe_id
            )
            continue
        hints.add(entry.hint)
        kept.append(entry)
    return tuple(kept)


def _private_directory(path: Path) -> None:
    """The directory of a socket: made 0700, or refused when others can enter it."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH:
        raise SettingsError(f"socket path {path}: longer than {MAX_SOCKET_PATH} bytes; choose a shorter directory")
    folder = path.parent
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise SettingsError(
            f"directory {folder}: must belong to this user and be closed to others (mode 0700, it is "
            f"{stat.S_IMODE(found.st_mode):04o}), because who can open the socket has its identity"
        )


def _serialised(message: Any) -> bytes:
    """Deterministic, so that equal states have equal bytes."""
    data: bytes = message.SerializeToString(deterministic=True)
    return data
