"""Where our identity comes from: one immutable pair of SVID and bundles at a time, replaced as a whole (rules M-30, M-41)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from proxyless.identity.bundle import TrustBundle
from proxyless.identity.svid import X509Svid

__all__ = ["IdentityHolder", "IdentitySnapshot", "IdentitySource", "StaticSource"]

logger = logging.getLogger(__name__)

Callback = Callable[["IdentitySnapshot | None"], None]


@dataclass(frozen=True, slots=True)
class IdentitySnapshot:
    """Our SVID and what we trust, as one unit.

    Attributes:
        svid: what we present.
        bundles: by trust domain; the own one is among them.
        generation: grows with every change; never repeats within a process.
    """

    svid: X509Svid
    bundles: Mapping[str, TrustBundle]
    generation: int


class IdentitySource(Protocol):
    """What the TLS layer and the runtime need to know of an identity."""

    @property
    def current(self) -> IdentitySnapshot | None:
        """The pair to use for a new handshake; None when there is none that is valid now."""

    @property
    def generation(self) -> int:
        """Grows when the SVID or a bundle changed, or the identity was withdrawn. Starts at 0."""

    @property
    def status(self) -> str:
        """One line for ``/ready``: empty when all is well, else why there is no identity."""

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call back after every change, on the thread that made it; the result ends that."""

    def start(self) -> None: ...

    def close(self) -> None: ...


class IdentityHolder:
    """Holds the current pair for a source. Reading is lock-free; writing comes from one thread.

    An SVID that is not yet valid here waits until it is, and the one before serves until then (M-41). New bundles count at
    once, also with the old SVID (M-34).
    """

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._callbacks: list[Callback] = []
        self._snapshot: IdentitySnapshot | None = None
        self._waiting: tuple[X509Svid, Mapping[str, TrustBundle]] | None = None
        self._generation = 0
        self._changed = threading.Condition()

    @property
    def current(self) -> IdentitySnapshot | None:
        snapshot = self._snapshot
        return snapshot if snapshot is not None and snapshot.svid.valid_at(self._now()) else None

    @property
    def generation(self) -> int:
        return self._generation

    @property
    def latest(self) -> IdentitySnapshot | None:
        """The last pair that was not withdrawn, valid now or not."""
        return self._snapshot

    def replace(self, svid: X509Svid, bundles: Mapping[str, TrustBundle]) -> bool:
        """Take a new pair. False when nothing changes for now: it is equal to the one in use, or waits for its time."""
        old = self._snapshot
        self._waiting = None
        if svid.not_before > self._now():
            self._waiting = (svid, bundles)
            if old is None or not old.svid.valid_at(self._now()):
                return False
            svid = old.svid
        if old is not None and old.svid.chain == svid.chain and dict(old.bundles) == dict(bundles):
            return False
        self._publish(svid, bundles)
        return True

    def withdraw(self) -> bool:
        """No identity any more: new handshakes fail closed (M-36). False when there was none."""
        self._waiting = None
        if self._snapshot is None:
            return False
        self._publish(None, {})
        return True

    def promote(self) -> bool:
        """Use the pair that waited for its not_before, when that time has come."""
        waiting = self._waiting
        if waiting is None or waiting[0].not_before > self._now():
            return False
        self._waiting = None
        self._publish(*waiting)
        return True

    @property
    def waiting_until(self) -> float:
        """When the pair that waits becomes valid, POSIX seconds; infinite when there is none."""
        waiting = self._waiting
        return float("inf") if waiting is None else waiting[0].not_before

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    def wait(self, timeout: float) -> bool:
        """Block until there is a valid identity, at most `timeout` seconds. For start-up and tests."""
        with self._changed:
            return self._changed.wait_for(lambda: self.current is not None, timeout)

    def forget(self) -> None:
        """After a fork: keys are not inherited (M-45), locks of the parent are not trusted."""
        self._changed = threading.Condition()
        self._snapshot = self._waiting = None
        self._generation += 1

    def _publish(self, svid: X509Svid | None, bundles: Mapping[str, TrustBundle]) -> None:
        generation = self._generation + 1
        snapshot = None
        if svid is not None:
            snapshot = IdentitySnapshot(svid, MappingProxyType(dict(bundles)), generation)
        with self._changed:
            self._snapshot = snapshot
            self._generation = generation
            self._changed.notify_all()
        for callback in tuple(self._callbacks):
            try:
                callback(snapshot)
            except Exception:
                logger.exception("a subscriber of identity changes failed")


class StaticSource:
    """An identity that is given, not fetched: tests, and processes that get theirs another way."""

    def __init__(
        self,
        svid: X509Svid | None = None,
        bundles: Iterable[TrustBundle] = (),
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._holder = IdentityHolder(now)
        if svid is not None:
            self.replace(svid, bundles)

    @property
    def current(self) -> IdentitySnapshot | None:
        self._holder.promote()
        return self._holder.current

    @property
    def generation(self) -> int:
        return self._holder.generation

    @property
    def status(self) -> str:
        if self.current is not None:
            return ""
        return "no identity was given" if self._holder.latest is None else "the SVID is not valid at this time"

    def replace(self, svid: X509Svid, bundles: Iterable[TrustBundle]) -> None:
        """Use another pair from now on."""
        self._holder.replace(svid, {bundle.trust_domain: bundle for bundle in bundles})

    def withdraw(self) -> None:
        """Use no identity from now on."""
        self._holder.withdraw()

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        return self._holder.subscribe(callback)

    def start(self) -> None:
        """Nothing to start."""

    def close(self) -> None:
        """Nothing to close; the identity stays usable."""
