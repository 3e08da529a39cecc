"""Is our SVID renewed in time? We do not ask for renewal, we watch (rule M-33).

Issuers renew at about half life (SPIRE, recorded: at 49 to 60 percent). So nothing by 70 percent is worth a warning and a new
stream, and nothing by 85 percent is an error.
"""

from __future__ import annotations

from enum import IntEnum

from proxyless.identity.svid import X509Svid

__all__ = ["Age", "RotationWatch"]


class Age(IntEnum):
    """How far an SVID is on its way from not_before to not_after."""

    FRESH = 0
    OVERDUE = 1  # 70 percent
    CRITICAL = 2  # 85 percent
    EXPIRED = 3


_SHARES = {Age.OVERDUE: 0.70, Age.CRITICAL: 0.85, Age.EXPIRED: 1.0}


class RotationWatch:
    """Reports each age of each SVID once."""

    def __init__(self) -> None:
        self._svid: X509Svid | None = None
        self._reported = Age.FRESH

    def watch(self, svid: X509Svid | None) -> None:
        """From now on this one counts; the same one again changes nothing."""
        if self._svid is not None and svid is not None and svid.chain == self._svid.chain:
            return
        self._svid, self._reported = svid, Age.FRESH

    def step(self, now: float) -> Age | None:
        """The age reached since the last call, if it is a new one. `now` is POSIX seconds."""
        age = max((age for age in _SHARES if self._at(age) <= now), default=Age.FRESH)
        if age <= self._reported:
            return None
        self._reported = age
        return age

    def next_at(self) -> float:
        """When the next age begins, POSIX seconds; infinite when there is none."""
        return min((self._at(age) for age in _SHARES if age > self._reported), default=float("inf"))

    def _at(self, age: Age) -> float:
        svid = self._svid
        if svid is None:
            return float("inf")
        return svid.not_before + _SHARES[age] * (svid.not_after - svid.not_before)
