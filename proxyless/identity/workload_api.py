"""Our identity from a SPIFFE Workload API: a SPIRE agent, or the embedded one (rules M-30 to M-37, M-41, M-45, M-75).

One thread holds the stream open and is never the reason that anything fails: a bad answer is dropped whole, a lost stream is
opened again with back-off, and what was last good stays in use until it expires or is withdrawn.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from proxyless.errors import InvalidSvidError, NoIdentityError
from proxyless.identity.bundle import TrustBundle
from proxyless.identity.endpoint import Endpoint, parse_endpoint
from proxyless.identity.response import Selection, Update, read_response
from proxyless.identity.rotation import Age, RotationWatch
from proxyless.identity.source import Callback, IdentityHolder, IdentitySnapshot
from proxyless.identity.stream import Ended, Received, SvidStream
from proxyless.identity.svid import X509Svid
from proxyless.unix import sit_out

__all__ = ["Counters", "Timings", "WorkloadApiSource"]

logger = logging.getLogger(__name__)

NOT_RETRIED = frozenset({"INVALID_ARGUMENT", "UNIMPLEMENTED"})  # M-35
_CLOSE = object()


class Uniform(Protocol):
    """What is needed of `random.Random`."""

    def uniform(self, a: float, b: float) -> float: ...


@dataclass(frozen=True, slots=True)
class Timings:
    """All in seconds. `reopen`: before a stream that served is opened again; `first`, `cap`: back-off after failures, doubling,
    each within a quarter of its value; `settle`: before an SVID that a response leaves out is given up (recorded: SPIRE sends
    intermediate states 1 ms apart); `tick`: at most between two looks at the clock."""

    reopen: float = 0.1
    first: float = 0.5
    cap: float = 24.0
    settle: float = 0.05
    tick: float = 5.0


@dataclass(slots=True)
class Counters:
    """What happened since the start, for metrics: good responses, responses dropped, streams opened, and SVIDs that were not
    renewed in time."""

    responses: int = 0
    dropped: int = 0
    streams: int = 0
    overdue: int = 0


class _StreamLostError(Exception):
    """The stream ended without a good response: back off."""


class _RefusedError(Exception):
    """The endpoint will never serve us: asking again is of no use."""


@dataclass(frozen=True, slots=True)
class _Loss:
    """An identity in use is missing from a response; `replacement` takes its place at `at` (monotonic)."""

    at: float
    replacement: X509Svid | None
    bundles: Mapping[str, TrustBundle]


class WorkloadApiSource:
    """An `IdentitySource` that follows a Workload API.

    Args:
        address: as in ``SPIFFE_ENDPOINT_SOCKET``.
        hint, spiffe_id: which identity to use when there are several; without them the first one.
        now: wall clock in POSIX seconds, for validity.
        rng: for jitter.

    Raises:
        SettingsError: the address is none.
    """

    def __init__(
        self,
        address: str | Endpoint,
        *,
        hint: str = "",
        spiffe_id: str = "",
        now: Callable[[], float] = time.time,
        timings: Timings = Timings(),
        rng: Uniform = random,
    ) -> None:
        self.endpoint = address if isinstance(address, Endpoint) else parse_endpoint(address)
        self.counters = Counters()
        self._selection = Selection(hint, spiffe_id)
        self._now, self._timings, self._rng = now, timings, rng
        self._holder = IdentityHolder(now)
        self._watch = RotationWatch()
        self._prepare()
        _sources.add(self)

    def _prepare(self) -> None:
        """State of one run; also what is left after a fork."""
        self._start_lock = threading.Lock()
        self._inbox: queue.Queue[Any] = queue.Queue(maxsize=32)
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._problem = "the Workload API client has not been started"
        self._denials = 0
        self._failing = False
        self._loss: _Loss | None = None
        self._warned: set[str] = set()

    # ---------------------------------------------------------------------------------------------- for other threads

    @property
    def current(self) -> IdentitySnapshot | None:
        return self._holder.current

    @property
    def generation(self) -> int:
        return self._holder.generation

    @property
    def status(self) -> str:
        """Empty with a valid SVID; else why there is none."""
        return "" if self._holder.current is not None else self._problem

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        return self._holder.subscribe(callback)

    def wait(self, timeout: float) -> bool:
        """Block until there is an identity; False after `timeout` seconds without one."""
        return self._holder.wait(timeout)

    def start(self) -> None:
        """Start to follow; no effect while it does. After `close` it follows again, and keeps what it had until then."""
        with self._start_lock:
            if self._closing.is_set():
                if self._thread is not None:
                    self._thread.join()  # nearly always over: `close` has waited for it
                self._closing, self._inbox, self._thread = threading.Event(), queue.Queue(maxsize=32), None
                self._failing, self._loss = False, None
            if self._thread is None:
                self._problem = f"waiting for the first answer of the Workload API at {self.endpoint}"
                self._thread = threading.Thread(target=self._run, name="proxyless-identity", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop following. The identity stays usable until it expires."""
        self._closing.set()
        with contextlib.suppress(queue.Full):  # then the thread is awake, and sees the event next
            self._inbox.put_nowait(_CLOSE)
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=5.0)

    def _forget(self) -> None:
        """In a child after fork: the parent's key, stream and thread are not ours (M-45)."""
        self._prepare()
        self._holder.forget()
        self._watch.watch(None)

    # ------------------------------------------------------------------------------------------------- the one thread

    def _run(self) -> None:
        import tenacity

        while not self._closing.is_set():
            retrying = tenacity.Retrying(
                retry=tenacity.retry_if_exception_type(_StreamLostError),
                wait=self._delay,
                stop=tenacity.stop_when_event_set(self._closing),
                sleep=self._back_off,
                reraise=True,
            )
            try:
                retrying(self._follow)
            except _StreamLostError:
                continue  # closing
            except _RefusedError as error:
                self._trouble(f"{error}; this is not tried again, correct it and restart", logging.ERROR)
                while not self._closing.is_set():
                    self._pause(self._timings.tick)
            except Exception:
                self._trouble("the Workload API client failed; it starts again", logging.ERROR)
                logger.exception("unexpected failure while following the Workload API")
                self._pause(self._timings.tick)
            self._pause(self._jittered(self._timings.reopen))

    def _delay(self, state: Any) -> float:
        """After the n-th failure in a row: doubled each time up to the cap, within a quarter (M-35)."""
        doubled = self._timings.first * 2.0 ** min(state.attempt_number - 1, 32)
        return self._jittered(min(doubled, self._timings.cap))

    def _jittered(self, seconds: float) -> float:
        return seconds * self._rng.uniform(0.75, 1.25)

    def _follow(self) -> None:
        """One stream from its opening to its end. Returns when the next one may be opened soon.

        Raises:
            _StreamLostError: it ended without a good response.
            _RefusedError: the endpoint refuses for good.
        """
        stream = SvidStream(self.endpoint, self._inbox)
        self.counters.streams += 1
        good = False
        try:
            while not self._closing.is_set():
                event = self._next_event(self._next_look())
                if event is None:
                    if self._look_at_clock():
                        return
                elif event is _CLOSE or event.stream is not stream:
                    continue
                elif isinstance(event, Received):
                    good = self._take(event.data) or good
                else:
                    self._ended(event, good)
                    return
        finally:
            stream.close()

    def _back_off(self, seconds: float) -> None:
        sit_out(seconds, self._pause, self.endpoint.target if self.endpoint.kind == "unix" else "")

    def _pause(self, seconds: float) -> bool:
        """Sleep, while looking at the clock and dropping what old streams still say. -> closing"""
        end = time.monotonic() + seconds
        while not self._closing.is_set() and (left := end - time.monotonic()) > 0:
            if self._next_event(min(left, self._next_look())) is None:
                self._look_at_clock()
        return self._closing.is_set()

    def _next_event(self, timeout: float) -> Any:
        try:
            return self._inbox.get(timeout=timeout)
        except queue.Empty:
            return None

    def _ended(self, ended: Ended, good: bool) -> None:
        text = f"Workload API at {self.endpoint}: {ended.code}: {ended.details[:200]}"
        if ended.code in NOT_RETRIED:
            raise _RefusedError(text)
        self._trouble(text, logging.WARNING)
        if ended.code == "PERMISSION_DENIED":
            self._denials += 1
            if self._holder.latest is not None:
                if self._denials == 1:
                    return  # SPIRE says so for an instant when an authority is tainted: ask again at once (M-36)
                self._withdraw("the Workload API denied our identity twice: it is withdrawn")
        if not good:
            raise _StreamLostError(text)

    # --------------------------------------------------------------------------------------------- what a response does

    def _take(self, data: bytes) -> bool:
        """Use a response. False when it was dropped."""
        try:
            update = read_response(data, self._now())
        except InvalidSvidError as error:
            self.counters.dropped += 1
            self._trouble(f"dropped a response of the Workload API: {error}", logging.ERROR, always=True)
            return False
        self.counters.responses += 1
        self._denials = 0
        if self._failing:
            self._failing = False
            logger.info("the Workload API at %s answers again", self.endpoint)
        self._remark(update)
        try:
            chosen: X509Svid | None = self._selection.choose(update.svids)
        except NoIdentityError as error:
            chosen = None
            self._trouble(str(error), logging.ERROR)
        self._apply(update, chosen)
        return True

    def _apply(self, update: Update, chosen: X509Svid | None) -> None:
        in_use = self._holder.current
        if in_use is not None and not any(_same_identity(in_use.svid, svid) for svid in update.svids):
            # Left out: perhaps for an instant only. What the response adds or takes from the bundles counts at once.
            at = time.monotonic() + self._timings.settle if self._loss is None else self._loss.at
            self._loss = _Loss(at, chosen, update.bundles)
            if in_use.svid.spiffe_id.trust_domain in update.bundles:
                self._holder.replace(in_use.svid, update.bundles)
            return
        self._loss = None
        if chosen is None:
            self._withdraw("the identity that was chosen is not offered any more")
        else:
            self._use(chosen, update.bundles)

    def _use(self, svid: X509Svid, bundles: Mapping[str, TrustBundle]) -> None:
        before = self._holder.latest
        if before is not None and before.svid.spiffe_id != svid.spiffe_id:
            logger.warning("our identity changes from %s to %s", before.svid.spiffe_id, svid.spiffe_id)
        if self._holder.replace(svid, bundles):
            logger.info(
                "identity %s, serial %s, valid for %.0f s, generation %d, trust domains %s",
                svid.spiffe_id,
                svid.serial,
                svid.not_after - self._now(),
                self._holder.generation,
                ", ".join(sorted(bundles)),
            )
        if svid.not_before > self._now():
            self._problem = "the SVID is not valid yet by the clock of this machine"
        self._watch.watch(svid)

    def _withdraw(self, reason: str) -> None:
        self._loss = None
        self._watch.watch(None)
        if self._holder.withdraw():
            self._problem = reason
            logger.error("%s; new connections are refused", reason)

    def _remark(self, update: Update) -> None:
        """Say once what is accepted and not acted on, or is likely a mistake."""
        if update.revocation_lists:
            self._warn_once("crl", "the Workload API sends revocation lists; they are not enforced")
        if update.rejected_anchors:
            self._warn_once(
                "anchors", f"{update.rejected_anchors} certificates in bundles are no CA and are not trusted"
            )
        if update.expired:
            self._warn_once("expired", f"{update.expired} SVIDs in a response have expired and are not used")
        if len(update.svids) > 1 and not self._selection:
            names = ", ".join(str(svid.spiffe_id) for svid in update.svids[:5])
            self._warn_once(
                "several",
                f"the Workload API gives several identities ({names}) and the first is used: choose one by hint or ID",
            )

    # ------------------------------------------------------------------------------------------------------------- time

    def _next_look(self) -> float:
        """Seconds until something is due."""
        now = self._now()
        due = min(self._watch.next_at(), self._holder.waiting_until) - now
        if self._loss is not None:
            due = min(due, self._loss.at - time.monotonic())
        return min(max(due, 0.001), self._timings.tick)

    def _look_at_clock(self) -> bool:
        """Do what is due. True when the stream is to be opened anew, to hear what the other end has for us."""
        loss = self._loss
        if loss is not None and time.monotonic() >= loss.at:
            self._loss = None
            if loss.replacement is None:
                self._withdraw("the identity that was chosen is not offered any more")
            else:
                self._use(loss.replacement, loss.bundles)
        self._holder.promote()
        age = self._watch.step(self._now())
        if age is Age.OVERDUE:
            self.counters.overdue += 1
            logger.warning("the SVID was not renewed by 70 percent of its life; opening a new stream")
            return True
        if age is Age.CRITICAL:
            logger.error("the SVID was not renewed by 85 percent of its life; connections fail when it expires")
        if age is Age.EXPIRED:
            self._withdraw("the SVID has expired and was not renewed")
            return True
        return False

    # ---------------------------------------------------------------------------------------------------------- logging

    def _trouble(self, text: str, level: int, *, always: bool = False) -> None:
        """Keep for `status`; log the first of a row, and the others for those who look closely."""
        self._problem = text
        logger.log(level if always or not self._failing else logging.DEBUG, "%s", text)
        self._failing = True

    def _warn_once(self, topic: str, text: str) -> None:
        if topic not in self._warned:
            self._warned.add(topic)
            logger.warning("%s", text)


def _same_identity(one: X509Svid, other: X509Svid) -> bool:
    """Not by SPIFFE ID alone: two SVIDs in one response may share it (recorded)."""
    return one.spiffe_id == other.spiffe_id and one.hint == other.hint


_sources: weakref.WeakSet[WorkloadApiSource] = weakref.WeakSet()


def _after_fork() -> None:
    for source in tuple(_sources):
        source._forget()


os.register_at_fork(after_in_child=_after_fork)
