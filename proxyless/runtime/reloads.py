"""Workers that replace each other while their listening socket stays open (gunicorn on HUP).

The old ones are told to go as soon as the new ones are forked, which have the application yet to load. Would the old ones leave
the mesh at once, no endpoint were there meanwhile, although callers that just connect are answered: they wait in the backlog. So
an old worker goes on until a new one is known to callers. Master and workers tell each other by empty files in the directory that
they share.
"""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["Reloads"]

_BEGUN, _DONE = re.compile(r"reload-(\d+)"), re.compile(r"reloaded-(\d+)")


class Reloads:
    """What is known of them in `directory`. Any process.

    Attributes:
        born: how many there had been when this was made, which a worker does when it starts.
    """

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)
        self.born = self._last(_BEGUN)

    def begin(self) -> None:
        """The master: workers that were forked until now are being replaced."""
        (self._directory / f"reload-{self._last(_BEGUN) + 1}").touch()

    def done(self) -> None:
        """A worker: callers know this one."""
        (self._directory / f"reloaded-{self.born}").touch()

    @property
    def awaits_successor(self) -> bool:
        """This worker is being replaced, and callers know no newer one yet."""
        return self._last(_BEGUN) > self.born >= self._last(_DONE)

    def _last(self, name: re.Pattern[str]) -> int:
        try:
            found = [name.fullmatch(path.name) for path in self._directory.iterdir()]
        except OSError:  # cleaned away, as old files in /tmp are
            return 0
        return max((int(match[1]) for match in found if match), default=0)
