"""The descriptor set as a database: a file is decoded when a message of it is first needed.

A process uses about half of the 148 files; decoding all of them takes 4 MiB, the ones in use 2 MiB. The index is read off the
wire format itself (protobuf encoding: varint tags, length-delimited fields), without making a message of any file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["DescriptorDatabase"]

# FileDescriptorProto: name, package, dependency; message_type, enum_type, service, and the name in each of those.
_NAME, _PACKAGE, _DEPENDENCY = 1, 2, 3
_DECLARATIONS = frozenset({4, 5, 6})
_LENGTH_DELIMITED = 2
_LONGEST = 512
_FIXED = {1: 8, 5: 4}


class _File:
    """Where a file begins and ends in the set, and the paths of the files that it needs."""

    __slots__ = ("dependencies", "end", "loaded", "start")

    def __init__(self, start: int, end: int, dependencies: tuple[str, ...]) -> None:
        self.start, self.end, self.dependencies = start, end, dependencies
        self.loaded = False


class DescriptorDatabase:
    """The files of a set by path, and which of them declares a symbol.

    `google.protobuf.descriptor_pool.DescriptorPool` can ask a database by itself, but wants every file as a message of
    `descriptor_pb2`, which takes 0.8 MiB; serialised files it takes as they are.

    Args:
        data: a serialised FileDescriptorSet; kept as it is.
    """

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._files: dict[str, _File] = {}
        self._symbols: dict[str, str] = {}
        for _, start, end in _fields(self._data, 0, len(data)):
            self._index(start, end)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def declares(self, symbol: str) -> str:
        """Path of the file that declares a full name, or what it is nested in.

        Raises:
            KeyError: no such symbol.
        """
        if len(symbol) > _LONGEST:  # a name comes from the other side of a stream, and is shortened dot by dot below
            raise KeyError(symbol)
        outer = symbol
        while outer not in self._symbols:
            outer, dot, _ = outer.rpartition(".")
            if not dot:
                raise KeyError(symbol)
        return self._symbols[outer]

    def load(self, pool: Any, path: str) -> None:
        """Add a file to a `DescriptorPool`, after those that it depends on; no effect when it is there.

        Raises:
            KeyError: no such file.
        """
        file = self._files[path]
        if file.loaded:
            return
        for dependency in file.dependencies:
            self.load(pool, dependency)
        pool.AddSerializedFile(bytes(self._data[file.start : file.end]))
        file.loaded = True

    def _index(self, start: int, end: int) -> None:
        name = package = ""
        declared, dependencies = [], []
        for number, begin, stop in _fields(self._data, start, end):
            if number == _NAME:
                name = self._text(begin, stop)
            elif number == _PACKAGE:
                package = self._text(begin, stop) + "."
            elif number == _DEPENDENCY:
                dependencies.append(self._text(begin, stop))
            elif number in _DECLARATIONS:
                declared.append(next(self._text(b, s) for n, b, s in _fields(self._data, begin, stop) if n == _NAME))
        self._files[name] = _File(start, end, tuple(dependencies))
        for each in declared:
            self._symbols[package + each] = name

    def _text(self, start: int, end: int) -> str:
        return str(self._data[start:end], "utf-8")


def _fields(data: memoryview, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, end) of each length-delimited field between two positions."""
    while position < end:
        tag, position = _varint(data, position)
        kind = tag & 7
        if kind == _LENGTH_DELIMITED:
            length, position = _varint(data, position)
            yield tag >> 3, position, position + length
            position += length
        elif kind in _FIXED:
            position += _FIXED[kind]
        else:
            _, position = _varint(data, position)


def _varint(data: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
