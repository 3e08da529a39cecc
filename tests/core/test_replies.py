"""Numbers that another process puts into a header."""

from __future__ import annotations

import pytest

from proxyless.core.replies import parse_grpc_status


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (b"0", 0),
        (b"14", 14),
        (b"999", 999),
        (b"", None),
        (b"-1", None),
        (b" 1", None),
        (b"1.0", None),
        ("²".encode("latin-1"), None),
        (b"9" * 5000, None),  # more digits than int() takes
    ],
)
def test_a_grpc_status_is_a_short_number(value: bytes, status: int | None) -> None:
    assert parse_grpc_status(value) == status
