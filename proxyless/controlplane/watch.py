"""Notices that a directory has changed, by looking: names, sizes, times and inodes of its files.

Works on every file system and through symlinks, so the atomic `..data` swap of a Kubernetes volume counts as one change. A
change is reported once it has been quiet for a while: an editor's half-written file is never read on purpose, and reading
one by accident does no harm, since what does not load changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["DirectoryWatch", "fingerprint"]

SUFFIXES = (".yaml", ".yml", ".json")

Fingerprint = Mapping[str, tuple[int, int, int, int]]


def fingerprint(directory: Path) -> Fingerprint:
    """What the manifest files of a tree look like now: path to (inode, size, modification and change time in ns)."""
    found: dict[str, tuple[int, int, int, int]] = {}
    for path in _files(directory):
        try:
            status = os.stat(path)  # through symlinks: what is read
        except OSError:
            continue  # removed meanwhile; the next look sees it gone
        found[path] = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    return found


def _files(directory: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(directory, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            if name.endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(folder, name)


class DirectoryWatch:
    """Give it the time and it says whether the directory has changed and is quiet again.

    Pure but for `fingerprint`: the caller owns the clock, so a test needs no waiting.
    """

    def __init__(self, directory: Path, quiet: float = 0.1) -> None:
        """`quiet`: seconds without a further change before a change is reported."""
        self._directory = directory
        self._quiet = quiet
        self._reported: Fingerprint = fingerprint(directory)
        self._seen: Fingerprint = self._reported
        self._since = float("-inf")

    def poll(self, now: float) -> bool:
        """True once for each change, when it is complete. `now` in monotonic seconds."""
        current = fingerprint(self._directory)
        if current != self._seen:
            self._seen, self._since = current, now
            return False
        if current == self._reported or now - self._since < self._quiet:
            return False
        self._reported = current
        return True
